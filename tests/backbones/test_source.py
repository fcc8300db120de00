"""What words mean, before anything is built: architecture, kind of the weights and their place."""

from pathlib import Path

import pytest

from fg_ssl_zoo.backbones.source import Source, source_of, source_of_init
from fg_ssl_zoo.backbones.weights.locate import Published
from tests.tiny_zoo import NAME, exported, recipe_of

OURS = "fgssl_resnet18_drawn.simclr"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("resnet18@scratch", Source("scratch", "resnet18")),
        ("resnet18@a1_in1k", Source("a1_in1k", "resnet18", "timm", "resnet18.a1_in1k")),
        ("resnet18.a1_in1k", Source("resnet18.a1_in1k", None, "timm", "resnet18.a1_in1k")),
        (OURS, Source(OURS, None, "timm", OURS)),
        (f"{OURS}@v1", Source(f"{OURS}@v1", None, "timm", f"{OURS}@v1")),
        ("hf-hub:a/b@v1", Source("hf-hub:a/b@v1", None, "timm", "hf-hub:a/b@v1")),
        ("resnet18@hf-hub:a/b", Source("hf-hub:a/b", "resnet18", "timm", "hf-hub:a/b")),
        (
            "test_vit{depth: 6}@w.safetensors#partial",
            Source(
                "w.safetensors#partial", "test_vit", "file", "w.safetensors#partial", {"depth": 6}
            ),
        ),
    ],
)
def test_words_become_a_source(words, expected):
    assert source_of(words) == expected


def test_a_name_of_ours_is_found_later_and_a_folder_at_once(tmp_path, monkeypatch):
    place = source_of_init("resnet18", OURS, {}).place
    assert isinstance(place, Published)
    assert (place.name, place.revision) == (OURS, None)
    exported(tmp_path / "run" / "export", recipe_of(name=NAME))
    run = str(tmp_path / "run")
    source = source_of_init("test_resnet", run, {})
    assert (source.kind, source.place) == ("folder", tmp_path / "run" / "export")
    assert source_of(run).place == f"local-dir:{tmp_path / 'run' / 'export'}"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source_of("local-dir:~/run/export").place == f"local-dir:{Path(run) / 'export'}"


@pytest.mark.parametrize(
    ("architecture", "init", "message"),
    [
        ("resnet19", "scratch", "unknown backbone 'resnet19'; did you mean"),
        ("resnet18.a1_in1k", "scratch", "unknown backbone 'resnet18.a1_in1k'"),
        ("resnet18", "runs/none", "init: 'runs/none' is neither scratch, a .safetensors file"),
        ("resnet18", "local-dir:", "init: local-dir: names nothing; write local-dir:FOLDER"),
        ("resnet18", "hf-hub:", "init: hf-hub: names nothing; write hf-hub:OWNER/NAME"),
        ("resnet18", f"runs/{OURS}", "there is no runs/fgssl_resnet18_drawn.simclr; train it"),
    ],
)
def test_words_without_a_meaning_name_what_would_be_right(
    architecture, init, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        source_of_init(architecture, init, {})
