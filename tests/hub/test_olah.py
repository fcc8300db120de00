"""The download path through a server that is not ours: olah, a mirror that keeps what it fetched.

It stands between the client and the Hub on loopback. `pip install olah`, in an environment of its
own, with its `olah-cli` on the PATH; skipped without it. It has no uploads and no listing.
"""

import shutil
import socket
import subprocess
import time
from contextlib import contextmanager

import pytest
import timm
import torch
from transformers import AutoModel

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.weights import locate as zoo
from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError
from fg_ssl_zoo.cli import main
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import NAME, RECIPE, exported, registered

OLAH = shutil.which("olah-cli")
REPO = f"fg-ssl-zoo/{NAME}"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(OLAH is None, reason="olah-cli is not on the PATH"),
]


@pytest.fixture(scope="module", autouse=True)
def tiny_name(tmp_path_factory):
    yield from registered({NAME: RECIPE}, tmp_path_factory.mktemp("recipes"))


@contextmanager
def mirror(hub, folder):
    """The address of an olah that asks this Hub, and keeps its files in the folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    upstream = hub.url.removeprefix("http://")
    lines = ["[basic]", 'host = "127.0.0.1"', f"port = {port}", 'repos-path = "kept"']
    lines += ['hf-scheme = "http"', f'hf-netloc = "{upstream}"', f'hf-lfs-netloc = "{upstream}"']
    (folder / "olah.toml").write_text("\n".join(lines))
    words = [OLAH, "-c", "olah.toml", "--log-path", "logs"]
    server = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{wait_for(port)}"
    finally:
        server.terminate()
        server.wait()


def wait_for(port, seconds=120):
    for _ in range(seconds * 5):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return port
    raise TimeoutError(port)


def test_names_pull_and_transformers_work_through_a_foreign_mirror(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    exported(tmp_path / "model")
    wanted = open_backbone(str(tmp_path / "model")).model.state_dict()
    with Hub() as hub:
        hub.publish(REPO, tmp_path / "model")
        with mirror(hub, tmp_path) as url:
            point_client_at(url, tmp_path / "first", monkeypatch)
            found = timm.create_model(NAME, pretrained=True).state_dict()
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
            assert AutoModel.from_pretrained(REPO).timm_model.num_features == 96
            main(["pull", NAME])
            assert (tmp_path / "model" / "README.md").read_text() in shown(capsys, "info", NAME)
            missing = {"hf_hub_id": "fg-ssl-zoo/none"}
            with pytest.raises(PretrainedWeightsError, match="RepositoryNotFoundError"):
                timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=missing)
            asked = len(hub.log)
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "second"))
            found = timm.create_model(NAME, pretrained=True).state_dict()
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
            assert {verb for verb, _ in hub.log[asked:]} == {"HEAD"}  # it kept the files


def shown(capsys, *words):
    main(list(words))
    return capsys.readouterr().out
