"""Processor time of the training steps of any library, read when torch reports an event.

    start of a step   the first convolution after the last optimizer step: the views are loaded,
                      collated and normalised
    end of a step     the end of the optimizer's step

A driver is a script with one function, `train(task)`, which trains SimCLR as the documentation of
its library says. `drive` starts the clock, calls it, and ends the process after the last step that
counts. It needs only torch, as every library has an environment of its own.

    step        processor time of the training thread between start and end of a step
    run         processor time of the process and its children, from the end of a step to the end
                of a later one
    data        the rest of `run`: loading, collation, transport, normalisation, and what the
                library does between two steps
    first step  processor time of both from the start of the process to the end of the first step
"""

import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

PACKAGES = (
    "torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "albumentations",
    "lightning", "pytorch-lightning", "lightly", "lightly-train", "stable-pretraining",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What a driver trains.

    Attributes:
        images: Folder with one folder of JPEGs for each class.
        out: Empty folder for whatever the library writes.
        result: File for the figures.
        backbone: A timm name.
        image_size: In pixels.
        batch_size: Images a step; each gives two views.
        workers: Loader processes; 0 loads in the training process.
        bf16: Whether the library's own option for bf16 is switched on.
        warm: Steps that do not count.
        batches: Steps that count.
    """

    images: str
    out: str
    result: str
    backbone: str
    image_size: int
    batch_size: int
    workers: int
    bf16: bool
    warm: int
    batches: int

    @property
    def model_options(self) -> dict[str, Any]:
        """For `timm.create_model`: a ViT is built for its image size."""
        return {"img_size": self.image_size} if self.backbone.startswith("vit_") else {}


def drive(train: Callable[[Task], None]) -> None:
    """Train until the clock has counted enough steps."""
    task = Task(**json.loads(sys.argv[1]))
    torch.set_num_threads(1)
    Clock(task).start()
    train(task)
    sys.exit("the training ended before enough steps were counted")


class Clock:
    """Counts steps and their processor time."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.done = 0
        self.began: float | None = None
        self.steps = 0.0
        self.window = self.first = 0.0

    def start(self) -> None:
        """Listen to all networks and optimizers."""
        register_module_forward_pre_hook(self.on_forward)
        register_optimizer_step_post_hook(self.on_step)

    def on_forward(self, module: nn.Module, _: Any) -> None:
        if self.began is None and isinstance(module, nn.Conv2d) and torch.is_grad_enabled():
            self.began = time.thread_time()

    def on_step(self, *_: Any) -> None:
        if self.began is None:  # an optimizer inside another one
            return
        self.steps += time.thread_time() - self.began
        self.began = None
        self.done += 1
        if self.done == 1:
            self.first = cpu_seconds()
        if self.done == self.task.warm:
            self.steps, self.window = 0.0, cpu_seconds()
        if self.done == self.task.warm + self.task.batches:
            self.stop()

    def stop(self) -> None:
        """Write the figures and end the process, whatever the library would still do."""
        run = cpu_seconds() - self.window
        images = self.task.batches * self.task.batch_size
        found = {
            "step": images / self.steps,
            "data": images / (run - self.steps),
            "run": images / run,
            "first_step": self.first,
        }
        text = json.dumps({"figures": found, "versions": versions()})
        Path(self.task.result).write_text(text, encoding="utf-8")
        for child in multiprocessing.active_children():
            child.kill()  # some libraries handle SIGTERM
        os._exit(0)


def loader_of(dataset: Any, task: Task, **options: Any) -> Any:
    """The loader with the settings that the drivers share."""
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=task.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=task.workers,
        **options,
    )


def cpu_seconds() -> float:
    """Of this process and its children, living and ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    living = (child.pid for child in multiprocessing.active_children())
    return (
        time.process_time()
        + ended.ru_utime
        + ended.ru_stime
        + sum(time.clock_gettime(clock_of(pid)) for pid in living if pid)
    )


def clock_of(pid: int) -> int:
    """The clock of another process's processor time, as `clock_getcpuclockid` of Linux has it."""
    return (~pid << 3) | 2


def versions() -> dict[str, str]:
    """Python and the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
