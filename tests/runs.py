"""A short run of any method through the training loop: one process or several, stopped or not."""

import json

import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.loop import Fit, fit
from fg_ssl_zoo.engine.measuring import Measuring
from fg_ssl_zoo.engine.run_folder import RunFolder


class Measures(Measuring):
    """Measures what a test gives."""

    def __init__(self, now=dict, *, every=10, early=0, warning=lambda measured: None):
        super().__init__(every, early)
        self.now, self.warning = now, warning


def go_on(
    path, images, build, settings, size=64, accelerate=lambda: Accelerator(cpu=True), **job_options
):
    """Train the method that `build()` gives from where the folder stops to the end."""
    torch.set_num_threads(1)
    accelerator = accelerate()
    method = build()
    folder = RunFolder(path)
    if accelerator.is_main_process:
        folder.path.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    found = checkpoint.positions(folder.checkpoints)
    start = max(found, default=Position())
    accelerator.wait_for_everyone()
    notes = method.annotate(images, accelerator)
    job = Fit(
        train=settings,
        dataset=ViewDataset(images, method.views(size), 0, notes),
        accelerator=accelerator,
        folder=folder,
        start=start,
        state=checkpoint.load(found[start]) if found else None,
        num_workers=0,
        **job_options,
    )
    fit(method, job)
    return method


def end_of(path):
    """State of the method in the newest checkpoint."""
    found = checkpoint.positions(path / "checkpoints")
    return checkpoint.load(found[max(found)])["method"]


def launch(function, *arguments):
    """Run in two gloo processes, which must not inherit that this one trains alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    debug_launcher(function, arguments, num_processes=2)


def metrics(folder):
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    """The losses in the log of a run."""
    return [line["train/loss"] for line in metrics(folder) if "train/loss" in line]
