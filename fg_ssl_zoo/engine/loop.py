"""The loop: from a method and pictures to trained weights; read it once, from the top.

What a step draws is a pure function of (seed, position), so that a run which was stopped and goes on equals
one that was not, to the bit.
"""

import math
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.loader import (
    Order,
    TooManyCorruptImages,
    ViewDataset,
    resolve_num_workers,
    step_loader,
)
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import Meter, Progress
from fg_ssl_zoo.engine.optim import create_optimizer, lr_at, set_lr
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.method import Method

LOG_EVERY = 10
"""Steps between log lines; several processes agree on stopping at these."""

MOST_CORRUPT = 0.01
"""Share of the pictures that may be unreadable."""


class TrainingStopped(RuntimeError):
    """A run that goes nowhere; the message says what was seen and what to try."""


class Interrupted(SystemExit):
    """Ctrl-C or SIGTERM: a checkpoint was written and the message says how to go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(128 + number)
        self.message = message


@dataclass
class Fit:
    """One round of one stage: everything the loop needs besides the method.

    Attributes:
        train: The stage's settings.
        dataset: Pictures through the method's views.
        accelerator: Devices, precision and processes.
        folder: Where checkpoints go.
        start: Position to begin at.
        state: Checkpoint to begin from, if any.
        measure: Called with the backbone at the start, every `measure_every` epochs and at the end.
        measure_every: In epochs.
        num_workers: Of each process.
        measurements: `{"step": ..., "eval/...": ...}` so far; a part of the checkpoint.
    """

    train: Train
    dataset: ViewDataset
    accelerator: Accelerator
    folder: RunFolder
    start: Position = field(default_factory=Position)
    state: dict[str, Any] | None = None
    measure: Callable[[], dict[str, float]] = dict
    measure_every: float = 10
    num_workers: int | str = "auto"
    first_step: int = 0
    channels_last: bool = False
    measurements: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        world = self.accelerator.num_processes
        self.order = Order(len(self.dataset.images), self.train.batch_size, self.dataset.seed)
        self.total = total_steps(self.train, self.order)
        steps = range(self.start.step, self.total)
        self.loader = step_loader(
            self.dataset,
            self.order,
            steps,
            num_workers=resolve_num_workers(self.num_workers, world),
            rank=self.accelerator.process_index,
            world=world,
            parts=self.train.accumulate,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self.corrupt: set[str] = set()

    def every(self, epochs: float) -> int:
        """An interval of epochs in steps, at least one."""
        return max(1, round(epochs * self.order.steps_per_epoch))

    @property
    def images_per_second(self) -> float:
        """Of the training steps of this process, measurements left out."""
        return self.seen / self.seconds if self.seconds else 0.0

    seen: int = 0
    seconds: float = 0.0


def total_steps(train: Train, order: Order) -> int:
    """Optimizer steps of a round."""
    return train.steps or max(1, round(train.epochs * order.steps_per_epoch))


def fit(method: Method, job: Fit, *, title: str = "train") -> None:
    """Train a method in place, from `job.start` to the end of its round.

    Raises:
        TrainingStopped: The loss is no number any more.
        Interrupted: A signal came; the checkpoint is written.
        CheckpointError: The disk refused a checkpoint; the last good one stands.
        TooManyCorruptImages: More than one picture in a hundred cannot be read.
    """
    accelerator, train = job.accelerator, job.train
    if job.channels_last:
        method.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if accelerator.num_processes > 1:
        synchronise(method, accelerator.device)
    if job.state:
        method.load_state_dict(job.state["method"])
    optimizer = create_optimizer(method, train)
    wrapped, optimizer = accelerator.prepare(method, optimizer)
    if job.state:
        optimizer.load_state_dict(job.state["optimizer"])
    method.train()

    def measure(step: int) -> None:
        found = job.measure()
        job.measurements.append({"step": job.first_step + step, **found})
        accelerator.log(found, step=job.first_step + step)
        progress.say(
            f"{title}: step {step}, " + ", ".join(f"{k} {v:.4g}" for k, v in found.items())
        )

    def save(step: int) -> Path:
        state = {
            "method": accelerator.unwrap_model(wrapped).state_dict(),
            "optimizer": optimizer.state_dict(),
            "measurements": job.measurements,
        }
        path = job.folder.checkpoints / replace(job.start, step=step).file_name
        if accelerator.is_main_process:
            checkpoint.save(job.folder.checkpoints, replace(job.start, step=step), state)
        accelerator.wait_for_everyone()
        return path

    progress = Progress(
        job.total, done=job.start.step, title=title, shown=accelerator.is_main_process
    )
    if job.start.step == 0 and not job.measurements:
        measure(0)
    batches = iter(job.loader)
    meter, losses = Meter(), []
    with Signals() as signals:
        for step in range(job.start.step, job.total):
            began = time.perf_counter()
            seed_everything(job.dataset.seed, job.start, step, accelerator.process_index)
            set_lr(optimizer, lr_at(train, step / job.total))
            waited, loss, metrics = 0.0, torch.zeros((), device=accelerator.device), {}
            for part in range(train.accumulate):
                asked = time.perf_counter()
                batch = _to_device(next(batches), job)
                waited += time.perf_counter() - asked
                with _sync_only_last(accelerator, wrapped, part == train.accumulate - 1):
                    output = wrapped(batch)
                    accelerator.backward(output.loss / train.accumulate)
                loss += output.loss.detach() / train.accumulate
                metrics = output.metrics
            if train.clip_grad_norm:
                accelerator.clip_grad_norm_(wrapped.parameters(), train.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            method.on_step_end(done / job.total)
            losses.append(loss)
            meter.count(train.batch_size, waited)
            job.seen, job.seconds = (
                job.seen + train.batch_size,
                job.seconds + time.perf_counter() - began,
            )

            last = done == job.total
            due = {
                "log": last or done % LOG_EVERY == 0,
                "measure": last or done % job.every(job.measure_every) == 0,
                "save": last or done % job.every(train.checkpoint_every) == 0,
            }
            shown = None
            if due["log"] or due["save"]:
                mean = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
                _check_loss(mean, job, done, lr_at(train, step / job.total))
            if due["log"]:
                shown = {
                    "train/loss": mean,
                    "train/lr": lr_at(train, step / job.total),
                    **meter.read(),
                }
                shown |= {key: float(value) for key, value in metrics.items()}
                accelerator.log(shown, step=job.first_step + done)
                losses = []
            progress.step(shown)
            if due["measure"]:
                measure(done)
                meter.reset()
            stop = signals.agreed(accelerator, due["log"])
            if due["save"] or stop:
                path = save(done)
            if stop and not last:
                progress.close()
                raise Interrupted(f"stopped by {signals.name} after step {done} of {job.total}; "
                                  f"checkpoint {path}. Run the same command again to go on", stop)  # fmt: skip
    progress.close()


class Signals:
    """Turns SIGINT and SIGTERM into a wish to stop after the step; a second one stops at once."""

    def __enter__(self) -> "Signals":
        self.number = 0
        self.before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller handles signals
                continue
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return signal.Signals(self.number).name if self.number else "another process"

    def agreed(self, accelerator: Accelerator, meeting: bool) -> int:
        """Number of a signal that any process got, 0 for none; several processes meet only now and then."""
        if accelerator.num_processes == 1:
            return self.number
        if not meeting:
            return 0
        mine = torch.tensor([self.number], device=accelerator.device)
        gathered = accelerator.gather(mine)
        return int(gathered.max()) if isinstance(gathered, Tensor) else 0


def seed_everything(seed: int, position: Position, step: int, rank: int) -> None:
    """Seed torch for one step of one process: what dropout or sampling draws needs no saved state."""
    state = np.random.SeedSequence([seed, position.stage, position.round, step, rank])
    torch.manual_seed(int(state.generate_state(1, np.uint64)[0]) >> 1)


def _to_device(batch: dict[str, Any], job: Fit) -> dict[str, Any]:
    """A batch on the device; names of unreadable pictures are noted and too many of them are an error."""
    new = set(batch.pop("corrupt")) - job.corrupt
    if new:
        job.corrupt |= new
        with job.folder.corrupt.open("a", encoding="utf-8") as file:
            file.writelines(f"{message}\n" for message in sorted(new))
        share = len(job.corrupt) / len(job.dataset.images)
        if share > MOST_CORRUPT:
            raise TooManyCorruptImages(
                f"{len(job.corrupt)} of {len(job.dataset.images)} images cannot be decoded, more than "
                f"{MOST_CORRUPT:.0%}; their names are in {job.folder.corrupt}"
            )
    return send_to_device(batch, job.accelerator.device, non_blocking=True)


def _sync_only_last(
    accelerator: Accelerator, wrapped: nn.Module, last: bool
) -> AbstractContextManager[Any]:
    """Gradients are averaged over processes once a step."""
    return nullcontext() if last else accelerator.no_sync(wrapped)


def _check_loss(loss: float, job: Fit, step: int, lr: float) -> None:
    if math.isfinite(loss):
        return
    good = list(checkpoint.positions(job.folder.checkpoints).values())
    kept = f" The last good checkpoint is {good[-1]}." if good else ""
    raise TrainingStopped(
        f"the loss is {loss} at step {step} of {job.total} (learning rate {lr:.3g}, {job.train.optimizer}). "
        "Try a lower train.lr, train.clip_grad_norm=1, a longer train.warmup, or speed.precision=fp32."
        + kept
    )
