"""Every snippet of the README is run: Python word for word, commands with fewer steps."""

import re
import shlex
from pathlib import Path

import cv2

import fg_ssl_zoo
from fg_ssl_zoo import cli, pretrain

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = ["stages[0].train.steps=1", "stages[0].train.batch_size=8", "data.num_workers=0"]


def snippets(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    return [
        shlex.split(line, comments=True) for text in snippets("sh") for line in text.splitlines()
    ]


def test_the_two_commands_stand_under_their_marks():
    assert "<!-- train -->\n```sh\npip install -e . && accelerate launch train.py\n```" in README
    assert "<!-- tests -->\n```sh\npip install -e '.[test]' && pytest\n```" in README


def test_the_quick_start_runs_word_for_word(monkeypatch):
    for name in ("FG_SSL_ZOO_DIR", "FG_SSL_ZOO_ORG"):
        monkeypatch.delenv(name, raising=False)
    (snippet,) = snippets("python")
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["backbone"].num_features == 1280
    assert names["classifier"].num_classes == 200
    assert names["maps"].feature_info.channels()[-1] == 320


def test_the_commands_for_ones_own_pictures_run(tmp_path, monkeypatch, birds):
    monkeypatch.chdir(tmp_path)
    for index in range(16):
        path = tmp_path / "photos" / birds.classes[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), birds[index]["image"])
    monkeypatch.setattr("fg_ssl_zoo.hub.classifier_folder.export_onnx", lambda *_, **__: False)
    ran = []
    for words in commands():
        if words[0] == "fgssl":
            small = [word.replace("resnet18", "test_resnet") for word in words[1:]]
            cached = words[1] in ("eval", "report", "suspects", "classifier")
            cli.main([*small, *(["--cache", "cache"] if cached else [])])
            ran.append(words[1])
        elif words[:3] == ["accelerate", "launch", "train.py"]:
            pretrain.main([*words[3:], *FEW, "backbone=test_resnet"])
            ran.append("train")
    assert ran == ["data", "train", "train", "eval", "report", "suspects", "classifier", "predict",
                   "embed", "compare-splits"]  # fmt: skip
    assert (tmp_path / "views.png").stat().st_size > 10_000


def test_the_tree_names_what_there_is():
    tree = README.partition("## The tree")[2].split("```")[1]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith(" ")}
    package = {path.name for path in (ROOT / "fg_ssl_zoo").iterdir()}
    assert named == {name for name in package if not name.startswith(("_", "."))}
    for line in tree.strip().splitlines():
        name = line.split()[0]
        folder = ROOT / "fg_ssl_zoo" if line.startswith(" ") else ROOT
        assert (folder / name).exists(), name


def test_the_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README, re.DOTALL):
        assert (ROOT / path).is_file(), path


def test_the_version_is_the_changelogs():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {fg_ssl_zoo.__version__}" in changelog
