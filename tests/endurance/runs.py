"""Small runs for faults: start one, break it, let the same command go on, compare the ends."""

import json
import os
import re
import socket
import sys

import torch
import torch.utils.tensorboard  # here, and not in every run that is forked from this process
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.pretrain import main
from tests.endurance.processes import end, start

WORDS = [
    "backbone=test_resnet",
    "data={name: drawn, image_size: 32, num_images: 16, num_classes: 4, num_workers: 0}",
    "stages[0].method=simclr",
    "stages[0].options={hidden_size: 16, projection_size: 8}",
    "stages[0].train={steps: 24, batch_size: 8, optimizer: sgd, lr: 0.1, checkpoint_every: 1}",
    "monitor={every: 3, k: 3}",
]

RATES = ("images_per_second", "data_wait")
"""What a log line says of the clock."""


def _train(words, rank, processes, port):
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    if processes > 1:
        os.environ.update({
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        })  # fmt: skip
    main(words)


class Run:
    """A run in processes of its own.

    Args:
        folder: Of the run; a log of each process lies beside it.
        *words: Overrides of the recipe.
        processes: How many train.
        second: More overrides, of the last process.
    """

    def __init__(self, folder, *words, processes=1, second=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder = folder
        self.logs = [folder.with_name(f"{folder.name}.{rank}.log") for rank in range(processes)]
        for log in self.logs:
            log.unlink(missing_ok=True)
        words = [*WORDS, f"output={folder}", *words]
        self.processes = [
            start(
                _train, [*words, *second] if rank == processes - 1 else words, rank, processes,
                port, log=log,
            )
            for rank, log in enumerate(self.logs)
        ]  # fmt: skip

    @property
    def steps(self):
        """Steps of the newest checkpoint."""
        return max((at.step for at in checkpoint.positions(self.folder / "checkpoints")), default=0)

    @property
    def logged(self):
        """The last step in the log."""
        if not (log := self.folder / "metrics.jsonl").is_file():
            return 0
        steps = re.findall(rb'^\{"step": (\d+),.*\}$', log.read_bytes()[-2000:], re.MULTILINE)
        return int(steps[-1]) if steps else 0

    @property
    def is_alive(self):
        return all(process.is_alive() for process in self.processes)

    def kill(self, number, ranks=None):
        for process in self.processes[slice(ranks)]:
            if process.is_alive():
                os.kill(process.pid, number)

    def end(self, seconds=900):
        """How its processes ended; slow machines take minutes."""
        return [
            end(process, log, seconds)
            for process, log in zip(self.processes, self.logs, strict=True)
        ]


def result(folder):
    """All that a run ends with and that has to be equal: weights, moments, scores, the log."""
    found = checkpoint.newest(folder / "checkpoints")[1]
    results = json.loads((folder / "results.json").read_text())
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {
        "weights": found["method"],
        "optimizer": found["optimizer"],
        "export": load_file(folder / "export" / "model.safetensors"),
        "rows": results["rows"],
        "curve": results["curve"],
        "log": [{key: value for key, value in line.items() if key not in RATES} for line in lines],
    }


def difference(one, two, where="run"):
    """The first place where two results differ; `None` where they are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, two) else where
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return where
        found = (difference(one[key], two[key], f"{where}.{key}") for key in one)
        return next((place for place in found if place), None)
    if isinstance(one, list | tuple) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        found = (difference(a, b, f"{where}[{n}]") for n, (a, b) in pairs)
        return next((place for place in found if place), None)
    return None if one == two else where


def say(text):
    """A line on standard error, at once: the table comes last."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
