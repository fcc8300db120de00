"""Every command and line of docs/publishing.md, in its order, against a Hub on loopback."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.weights import locate as zoo
from fg_ssl_zoo.hub.export import add_picture
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import NAME, RECIPE, exported, recipe_of, registered

PAGE = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text(encoding="utf-8")
SMALL = PAGE.replace("fgssl_resnet18_drawn.simclr", NAME)


@pytest.fixture(scope="module", autouse=True)
def tiny_name(tmp_path_factory):
    yield from registered({NAME: RECIPE}, tmp_path_factory.mktemp("recipes"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own upload
def test_every_snippet_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    monkeypatch.setenv("FG_SSL_ZOO_ORG", "me")
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    exported(tmp_path / "runs" / "garden" / "export")
    other = recipe_of(name="fgssl_tiny_cub.srgan_discriminator")
    exported(tmp_path / "runs" / "garden" / "export_discriminator", other)
    torch.save({"weight": torch.ones(2)}, "model.pth")
    names = {}
    with Hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", SMALL, re.MULTILINE | re.DOTALL):
            if language == "python":
                exec(compile(code, "publishing.md", "exec"), names)
                continue
            for line in code.splitlines():
                words = shlex.split(line, comments=True)[1:]
                found = [sorted(map(str, tmp_path.glob(word))) if "*" in word else [word]
                         for word in words]  # fmt: skip
                cli.main([word for group in found for word in group])
        assert set(hub.repos) == {f"me/{NAME}", "me/birds", f"me/{other.name}"}
        assert b"released" in hub.repos[f"me/{NAME}"].commits[-1].files["results.json"]
    assert names["model"].num_features == 96
    assert Path("model.safetensors").is_file()
    assert "would be published" in capsys.readouterr().out
    folder = Path("runs/garden/export")
    shown = (folder / "picture.png").read_bytes()
    assert shown == Path("parts/grid.png").read_bytes()
    assert "and the parts that this model finds" in (folder / "README.md").read_text(
        encoding="utf-8"
    )
    Path("neighbours.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (code,) = re.findall(r"`fg_ssl_zoo\.hub\.export\.(add_picture\(.*?\))`", PAGE)
    eval(code, {"add_picture": add_picture})
