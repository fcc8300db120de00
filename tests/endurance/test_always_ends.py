"""A process whose worker dies, or that fails with workers, ends soon, says why, and leaves none."""

import contextlib
import errno
import io
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import resource_sharer
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.data.loader import ViewDataset, image_loader, step_loader, worker_failure
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.thread_loader import MOST_THREADS
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.signals import Signals
from fg_ssl_zoo.pretrain import main
from tests.endurance.processes import children, end, start, wait_until

ROOT = Path(__file__).parents[2]

WORDS = [
    "backbone=test_resnet",
    "data={name: drawn, image_size: 64, num_images: 16, num_classes: 4, num_workers: 3}",
    "stages[0].method=simclr",
    "stages[0].options={hidden_size: 16, projection_size: 8}",
    "stages[0].train={steps: 100000, batch_size: 8, optimizer: sgd, lr: 0.01}",
    "monitor={every: 1000000, k: 3}",
]


class Views:
    """Views of one small image, or that raise an error."""

    def __init__(self, error):
        self.error = error

    def __call__(self, sample, generator):
        if self.error is not None:
            raise self.error
        return {"image": np.zeros((3, 2, 2), np.float32)}


def load(images, error, loader, count):
    """Go through a loader with workers, and fail after the first batch where no worker does."""
    views = Views(error)
    if loader == "step":
        dataset = ViewDataset(images, views, 0)
        batches = step_loader(dataset, Order(16, 4, 0), range(99), num_workers=count)
    else:
        batches = image_loader(images, views, range(16), batch_size=2, num_workers=count)
    for _ in batches:
        raise ArithmeticError("of the training process")


@pytest.mark.parametrize("loader", ["step", "image"])
@pytest.mark.parametrize("error", [None, KeyError("of a worker"), ValueError("of a worker")])
@pytest.mark.parametrize("count", [MOST_THREADS, MOST_THREADS + 1], ids=["threads", "processes"])
def test_an_exception_with_workers_ends_the_process(birds, tmp_path, loader, error, count):
    ended = end(start(load, birds, error, loader, count, log=tmp_path / "log"), tmp_path / "log")
    assert ended.code == 1
    assert ("of a worker" if error else "of the training process") in ended.text
    assert not ended.orphans
    if isinstance(error, ValueError):
        assert ended.text.rstrip().endswith("\nValueError: of a worker")


def killed(tmp_path, who):
    """Train with three workers and kill one of them, or the training process."""
    log = tmp_path / "log"
    process = start(main, [*WORDS, f"output={tmp_path / 'run'}"], log=log)
    pid = process.pid
    wait_until(lambda: "step 0, eval" in log.read_text())  # the measurement had workers of its own
    workers = wait_until(lambda: len(found := children(pid)) == 3 and found)
    wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") > 1)
    os.kill(workers[0].pid if who == "worker" else pid, signal.SIGKILL)
    return end(process, log)


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_in_one_line(tmp_path):
    ended = killed(tmp_path, "worker")
    assert ended.code == 2
    last = ended.text.rstrip().splitlines()[-1]
    assert last.startswith("error: a process that loads images has ended (DataLoader worker (pid")
    assert last.endswith("run the same command again to continue")
    assert "Traceback" not in ended.text
    assert not ended.orphans


def batches_of(images):
    """Batches of three loader processes."""
    return image_loader(images, Views(None), range(16), batch_size=2, num_workers=3)


def die_before_its_batch(images):
    """A worker that is killed between two batches."""
    handler = signal.getsignal(signal.SIGCHLD)
    batches = batches_of(images)
    next(batches)
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()
    torch.save({"weight": torch.zeros(3)}, io.BytesIO())  # torch's own handler raises here
    assert signal.getsignal(signal.SIGCHLD) is handler
    return batches


def die_with_its_batch(images):
    """A worker that is killed while it hands over a batch: its connection ends before it does."""

    def reset(_):
        threading.Timer(0.3, multiprocessing.active_children()[0].kill).start()
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    resource_sharer.DupFd.detach = reset
    return batches_of(images)


def read_all(die, images):
    batches = die(images)
    try:
        list(batches)
    except RuntimeError as error:
        sys.exit(worker_failure(error))


@pytest.mark.parametrize("die", [die_before_its_batch, die_with_its_batch])
@pytest.mark.slow
def test_a_dead_worker_is_noticed_at_its_batch_and_nowhere_else(birds, tmp_path, die):
    log = tmp_path / "log"
    ended = end(start(read_all, die, birds, log=log), log)
    assert ended.code == 1
    assert ended.text.startswith("a process that loads images has ended (DataLoader worker (pid")


def hang_up(connection):
    """Call a worker that has a batch to hand over, and hang up: the news of a death came here."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(connection._id[0])
    time.sleep(0.5)
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def read_and_hang_up(images):
    resource_sharer.DupFd.detach = hang_up
    list(batches_of(images))


def test_a_worker_says_nothing_when_the_training_process_hangs_up(birds, tmp_path):
    log = tmp_path / "log"
    ended = end(start(read_and_hang_up, birds, log=log), log)
    assert ended.code == 1
    assert "worker (pid 7) is killed" in ended.text
    assert "_serve" not in ended.text


@pytest.mark.slow
def test_the_workers_of_a_killed_run_end(tmp_path):
    ended = killed(tmp_path, "run")
    assert ended.code == -signal.SIGKILL
    assert not ended.orphans


def launch(words):
    """Train in a process of its own, as `accelerate launch` does, and pass no signal on."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    process = multiprocessing.get_context("fork").Process(target=main, args=(words,))
    process.start()
    process.join()


def test_a_run_whose_launcher_is_ended_stops_with_a_checkpoint(tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    words = [*WORDS, "data.num_workers=0", f"output={run}"]
    process = start(launch, words, log=log)
    wait_until((run / "metrics.jsonl").is_file)
    process.terminate()
    wait_until(lambda: "stopped by the end of its launcher after step" in log.read_text())
    assert len(list((run / "checkpoints").glob("*.pt"))) == 1
    assert not end(process, log).orphans


def started_with(word):
    """Live processes with this word in their command; torchrun gives each a group of its own."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if word in process.cmdline():
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [
    ["--cpu", "--num_processes=1"],
    ["--multi_gpu", "--num_processes=2", "--main_process_port=0"],  # without GPUs, on the CPU
])  # fmt: skip
def test_sigterm_to_accelerate_launch_alone_ends_its_processes_with_a_checkpoint(tmp_path, options):
    run, log = tmp_path / "run", tmp_path / "log"
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch", *options]
    launcher += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    words = [*WORDS, "data.num_workers=0", "speed.threads=1", f"output={run}"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*launcher, str(ROOT / "train.py"), *words], stdout=file, stderr=file,
            cwd=tmp_path, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        metrics = run / "metrics.jsonl"
        wait_until(lambda: metrics.is_file() and "train/loss" in metrics.read_text(), 600)
        process.terminate()
        assert process.wait(120)
        wait_until(lambda: not started_with(words[-1]), 300)
    finally:
        for left in started_with(words[-1]):
            left.kill()
    said = re.search(r"stopped by \w.* after step (\d+) of 100000; checkpoint", log.read_text())
    assert said
    assert checkpoint.newest(run / "checkpoints")[0].step == int(said[1])


def test_a_launcher_that_ended_before_the_training_stops_it_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(os, "getppid", lambda: -1)  # since the process began
    with Signals(Accelerator(cpu=True)) as signals:
        assert signals.agreed(1, 1.0) == (signal.SIGTERM, 0)


def test_other_errors_are_no_failure_of_a_worker():
    assert worker_failure(RuntimeError("shapes differ")) is None
    assert worker_failure(ValueError("DataLoader worker (pid 1) ...")) is None
