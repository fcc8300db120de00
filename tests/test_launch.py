"""The commands of the documentation, as processes of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TINY = [
    "backbone=test_resnet",
    "data.num_images=32",
    "data.num_classes=4",
    "stages[0].train.steps=3",
    "stages[0].train.batch_size=8",
    "monitor.k=3",
]
pytestmark = pytest.mark.slow


def run(command, folder, *words):
    """A training run of few steps."""
    return call(command, folder.parent, *TINY, f"output={folder}", *words)


def call(command, folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    script = [str(ROOT / word) if word == "train.py" else word for word in shlex.split(command)]
    while "=" in script[0]:
        name, _, value = script.pop(0).partition("=")
        environment[name] = value
    script[0] = str(Path(sys.executable).parent / script[0])
    ran = subprocess.run(
        [*script, *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=280,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


def documented(*words):
    """The commands of docs/launching.md that hold all the words."""
    text = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if all(word in line for word in words)]


def rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.parametrize("command", documented("2", "train.py"))
def test_the_two_process_commands_really_run_two(command, tmp_path):
    assert "2 processes" in run(command, tmp_path / "two")


def test_one_and_two_processes_end_with_the_same_results(tmp_path):
    assert "1 process" in run("python -m fg_ssl_zoo.pretrain", tmp_path / "one")
    run(documented("torchrun")[0], tmp_path / "two")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two["rankme"] == pytest.approx(one["rankme"], rel=1e-2)
        assert two["feature_std"] == pytest.approx(one["feature_std"], rel=1e-2)


@pytest.mark.parametrize("command", documented("torchrun"))
def test_an_evaluation_by_two_processes_equals_that_by_one(command, tmp_path):
    words = ["eval", "test_resnet@scratch", "--data", "drawn", "num_images=40", "num_classes=4"]
    words += ["--image-size", "48", "--protocols", "knn", "linear", "retrieval"]
    two = command.replace("train.py", "-m fg_ssl_zoo.cli")
    found = []
    for name, start in (("one", "python -m fg_ssl_zoo.cli"), ("two", two)):
        call(start, tmp_path, *words, "--out", name, "--cache", f"cache_{name}")
        found.append(json.loads((tmp_path / name / "results.json").read_text()))
    assert [results["processes"] for results in found] == [1, 2]
    one, two = (results["rows"][0]["scores"] for results in found)
    assert one == two
