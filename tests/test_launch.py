"""The commands of the documentation, as processes of their own."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import pytest

from fg_ssl_zoo.data.drawn import DrawnBirds
from tests.hub_server import Hub, client_environment
from tests.parquet import save_parquet
from tests.runs import losses

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
    joined = [re.sub(r"\s*\\\n\s*", " ", block) for block in blocks]
    lines = [line.partition("#")[0].strip() for block in joined for line in block.splitlines()]
    return [line for line in lines if all(word in line for word in words)]


def shown(language, word):
    """The only block of docs/launching.md in a language that holds the word."""
    text = (ROOT / "docs" / "launching.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def rows(folder):
    return json.loads((folder / "results.json").read_text())["rows"]


@pytest.mark.parametrize("command", documented("2", "OMP_NUM_THREADS", "train.py"))
def test_the_two_process_commands_really_run_two(command, tmp_path):
    assert "2 processes" in run(command, tmp_path / "two")


def test_one_and_two_processes_end_with_the_same_results(tmp_path):
    assert "1 process" in run("python -m fg_ssl_zoo.pretrain", tmp_path / "one")
    run(documented("torchrun")[0], tmp_path / "two")
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two["rankme"] == pytest.approx(one["rankme"], rel=1e-2)
        assert two["feature_std"] == pytest.approx(one["feature_std"], rel=1e-2)


def test_two_processes_stream_a_hub_data_set_as_one_reads_its_files(tmp_path, monkeypatch):
    save_birds(tmp_path / "wrens" / "data")
    words = ["data.name=wrens", "speed.precision=fp32", *TINY[3:]]
    files = ["data.path=wrens", "backbone=test_resnet", "output=files"]
    call("python -m fg_ssl_zoo.pretrain", tmp_path, *files, *words)
    with Hub() as hub:
        hub.publish("owner/wrens", tmp_path / "wrens")
        for key, value in client_environment(hub.url, tmp_path / "cache").items():
            monkeypatch.setenv(key, value)
        streamed = ["data.hub_id=owner/wrens", "data.streaming=true", "output=hub"]
        call(documented("torchrun")[0], tmp_path, "backbone=test_resnet", *streamed, *words)
    assert losses(tmp_path / "hub") == pytest.approx(losses(tmp_path / "files"), rel=1e-4)
    assert not list((tmp_path / "cache").rglob("*.parquet"))  # nothing is copied to the disk


def save_birds(folder):
    """Forty drawn birds in row groups of eight."""
    birds = DrawnBirds(40, num_classes=4, image_size=64, seed=0)
    png = [cv2.imencode(".png", birds[i]["image"][..., ::-1])[1].tobytes() for i in range(40)]
    for split, some in (("train", range(32)), ("test", range(32, 40))):
        file = folder / f"{split}-00000-of-00001.parquet"
        images = [{"bytes": png[i], "path": None} for i in some]
        save_parquet(file, images, [i % 4 for i in some], list("abcd"), group=8)


@pytest.mark.parametrize("kind", ["MULTI_GPU", "FSDP"])
def test_the_configuration_files_start_what_they_say(kind, tmp_path):
    text = shown("yaml", f"distributed_type: {kind}").replace(
        "num_processes: 8", "num_processes: 2"
    )
    (tmp_path / "file.yaml").write_text(text.replace("Block ", "BasicBlock "))
    command = (
        f"accelerate launch --config_file file.yaml --main_process_port {free_port()} train.py"
    )
    said = run(command, tmp_path / "run")
    assert "2 processes" in said
    assert ("weights sharded (FSDP2)" in said) == (kind == "FSDP")


def on_loopback(command, port):
    command = command.replace("--num_processes 16", "--num_processes 2").replace("29500", port)
    return command.replace("10.0.0.1", "127.0.0.1").replace("RECIPE ", "")


def test_two_launchers_are_two_machines_of_one_run(tmp_path):
    port = free_port()
    first, second = (
        on_loopback(line, port).replace("output=/shared/run", "")
        for line in documented("--num_machines 2", "--machine_rank")
    )
    with ThreadPoolExecutor(2) as machines:
        both = [machines.submit(run, line, tmp_path / "run") for line in (first, second)]
        said = [machine.result() for machine in both]
    assert "2 processes" in said[0]
    assert "2 processes" not in said[1]
    assert rows(tmp_path / "run")


STAND_INS = {
    "scontrol": "echo 127.0.0.1\necho 127.0.0.2",
    "srun": 'SLURM_NODEID=0 "$@" & first=$!; SLURM_NODEID=1 "$@" || exit 1; wait $first',
}


def test_the_slurm_script_starts_one_run_on_two_nodes(tmp_path):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    words = " ".join([str(ROOT / "train.py"), *TINY, f"output={tmp_path / 'run'}"])
    script = shown("bash", "srun").replace("train.py RECIPE output=/shared/run", words)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    nodes = {"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    ran = subprocess.run(
        ["bash", "-c", on_loopback(script, free_port())],
        env={**os.environ, **nodes, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "2 processes" in ran.stdout
    assert rows(tmp_path / "run")


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
