"""The loop: from a method and pictures to trained weights; read `fit` once, from the top.

What a step draws is a pure function of (seed, position), so that a run which was stopped and goes
on equals one that was not, to the bit.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn

from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.loader import (
    TooManyCorruptImages,
    ViewDataset,
    resolve_num_workers,
    step_loader,
)
from fg_ssl_zoo.data.order import Order, order_of
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import Meter, Progress
from fg_ssl_zoo.engine.optim import create_optimizer, moments, schedule
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.engine.signals import Interrupted, Signals
from fg_ssl_zoo.layers.anchor import Anchor, listening
from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.method import Batch, DrawsPictures, Method, MethodOutput, train_mode

LOG_EVERY = 10
"""Steps between log lines."""

MOST_CORRUPT = 0.01
"""Share of the pictures that may be unreadable."""


class TrainingStopped(RuntimeError):
    """A run that goes nowhere; the message says what was seen and what to try."""


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
        measure: Called at the start, every `measure_every` epochs and at the end.
        measure_start: Called before the first step in the place of `measure`, if given.
        complete_start: Called before a later `measure` as long as `record.start_left` is true: the
            measurement of the start on all pictures.
        measured_on: Which pictures the last measurement read, for its line.
        measure_every: In epochs.
        measure_ends: Called with it at the start of a run and at the end of a round, as what it
            measures takes long.
        num_workers: Of each process; `auto` follows the cores.
        first_step: Optimizer steps of the rounds before this one; the log counts on.
        channels_last: Memory format of the method.
        record: Of the run so far; grows.
        started_norms: Batch norms of the backbone that `train.norm: auto` freezes, by name: those
            that had statistics before the first stage.
        early: Steps after which it is measured once more; 0 for never.
        judge: Called with all measurements after the early one; a sentence to say, if any.
        anchor: Keeps the backbone near the start of the stage, where the recipe asks for it.
        keep_checkpoints: Newest ones that stay.
        title: Of the progress line.
    """

    train: Train
    dataset: ViewDataset
    accelerator: Accelerator
    folder: RunFolder
    start: Position = field(default_factory=Position)
    state: dict[str, Any] | None = None
    measure: Callable[[], dict[str, float]] = dict
    measure_start: Callable[[], dict[str, float]] | None = None
    complete_start: Callable[[], dict[str, float]] = dict
    measured_on: Callable[[], str] = str
    measure_every: float = 10
    measure_ends: Callable[[], dict[str, float]] = dict
    num_workers: int | str = "auto"
    first_step: int = 0
    channels_last: bool = False
    record: Record = field(default_factory=Record)
    started_norms: frozenset[str] = frozenset()
    early: int = 0
    judge: Callable[[list[dict[str, float]]], str | None] = lambda measured: None
    anchor: Anchor | None = None
    keep_checkpoints: int = 2
    title: str = "train"

    def __post_init__(self) -> None:
        world = self.accelerator.num_processes
        self.order = order_of(self.dataset.images, self.train.batch_size, self.dataset.seed)
        self.total = total_steps(self.train, self.order)
        self.loader = step_loader(
            self.dataset,
            self.order,
            range(self.start.step, self.total),
            num_workers=resolve_num_workers(self.num_workers, world),
            rank=self.accelerator.process_index,
            world=world,
            parts=self.train.accumulate,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        self.progress = Progress(
            self.total,
            done=self.start.step,
            title=self.title,
            shown=self.accelerator.is_main_process,
        )
        self.corrupt = set(self.folder.corrupt_images())
        self.newly_corrupt: set[str] = set()

    def due(self, epochs: float, done: int) -> bool:
        """Whether something that happens every so many epochs happens after `done` steps."""
        return done == self.total or done % max(1, round(epochs * self.order.steps_per_epoch)) == 0

    def is_measure_left(self) -> bool:
        """Whether the run begins with a measurement: its first, or one that was cut off."""
        if not self.record.measurements:
            return True
        done = self.start.step
        measured = self.record.measurements[-1]["step"] == self.first_step + done
        due = done == self.early or self.due(self.measure_every, done)
        return done > 0 and due and not measured

    def take_measure(self, done: int) -> None:
        """Measure, remember and log."""
        first = not self.record.measurements
        if self.record.start_left and not first:
            start = self.record.measurements[0]
            found = self.complete_start()
            start |= found
            self.record.start_left = False
            self._tell_measure(found, int(start["step"]), "the start")
        found = (self.measure_start or self.measure)() if first else self.measure()
        if done == self.total or (first and (found or self.measure_start is None)):
            found = {**found, **self.measure_ends()}
        self.record.measurements.append({"step": self.first_step + done, **found})
        if not found:
            return
        self._tell_measure(found, self.first_step + done, f"step {done}")
        if done == self.early and (line := self.judge(self.record.measurements)):
            self.progress.say(f"{self.title}: {line}")

    def _tell_measure(self, found: Mapping[str, float], step: int, when: str) -> None:
        self.accelerator.log(dict(found), step=step)
        values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        on = self.measured_on()
        self.progress.say(f"{self.title}: {when}, {values}{f' ({on})' if on else ''}")

    def forward(self, wrapped: nn.Module, method: Method, batch: Batch) -> MethodOutput:
        """The method's loss, with the anchor's term where there is one."""
        if self.anchor is None:
            return wrapped(batch)
        with listening(method.backbone) as heard:
            output = wrapped(batch)
        with self.accelerator.autocast():
            term = self.anchor.loss(heard)
        metrics = {**output.metrics, "loss/start": term.detach()}
        return MethodOutput(output.loss + term, metrics)

    def keep_picture(self, method: Method, batch: Batch, done: int) -> None:
        """Write the method's picture of a batch, if it makes one; the method stays as it is."""
        if not self.accelerator.is_main_process or not isinstance(method, DrawsPictures):
            return
        with evaluating(method), torch.no_grad():
            picture = method.picture(batch)
        at = replace(self.start, step=done)
        self.folder.keep_picture(at.file_name.replace(".pt", ".png"), picture.cpu().numpy())

    def save(self, method: nn.Module, optimizer: Any, done: int) -> Path:
        """Write a checkpoint on the main process; the others wait for it."""
        at = replace(self.start, step=done)
        if self.accelerator.is_main_process:
            state = {
                "method": method.state_dict(),
                "optimizer": optimizer.state_dict(),
                "record": asdict(self.record),
            }
            self.folder.sync_metrics()
            checkpoint.save(self.folder.checkpoints, at, state, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return self.folder.checkpoints / at.file_name

    def check_loss(self, loss: float, lr: float, done: int) -> None:
        """Refuse to go on with a loss that is no number.

        Raises:
            TrainingStopped: What was seen and what to try.
        """
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss}", lr, done)

    def check_weights(self, method: nn.Module, optimizer: Any, lr: float, done: int) -> None:
        """Refuse to keep or to measure weights that are no numbers; all processes agree on it.

        The loss of a step is computed before its update and does not show what that did.

        Raises:
            TrainingStopped: What was seen and what to try.
        """
        state = {**method.state_dict(), **moments(optimizer)}
        found = checkpoint.not_finite(state)
        bad = torch.tensor(int(found is not None), device=self.accelerator.device)
        if int(cast(Tensor, self.accelerator.reduce(bad, "sum"))):
            self._stop(f"{found or 'a weight of another process'} is not finite", lr, done)

    def _stop(self, seen: str, lr: float, done: int) -> NoReturn:
        good = list(checkpoint.positions(self.folder.checkpoints).values())
        kept = f" The last good checkpoint is {good[-1]}." if good else ""
        raise TrainingStopped(
            f"{seen} at step {done} of {self.total} (learning rate {lr:.3g}, "
            f"{self.train.optimizer}). Try a lower train.lr, train.clip_grad_norm=1, a longer "
            f"train.warmup, or speed.precision=fp32.{kept}"
        )

    def to_device(self, batch: dict[str, Any]) -> Batch:
        """A batch on the device; unreadable pictures are remembered."""
        self.newly_corrupt |= set(batch.pop("corrupt")) - self.corrupt
        moved = send_to_device(batch, self.accelerator.device, non_blocking=True)
        return cast(Batch, moved)

    def note_corrupt(self) -> None:
        """Write the names of unreadable pictures of all processes, which call this together.

        Raises:
            TooManyCorruptImages: More than one in a hundred.
        """
        new = sorted(self.newly_corrupt)
        if self.accelerator.num_processes > 1:
            new = sorted(set(gather_object(new)) - self.corrupt)
        self.newly_corrupt = set()
        self.corrupt |= set(new)
        if self.accelerator.is_main_process:
            self.folder.note_corrupt(new)
        if len(self.corrupt) > MOST_CORRUPT * len(self.dataset.images):
            raise TooManyCorruptImages(
                f"{len(self.corrupt)} of {len(self.dataset.images)} images cannot be decoded, "
                f"more than {MOST_CORRUPT:.0%}; their names are in {self.folder.corrupt}"
            )

    def interrupted(self, signals: Signals, number: int, done: int, path: Path | None) -> NoReturn:
        """End the process; a checkpoint of `done` steps is written, or no step was done."""
        self.progress.close()
        kept = f"after step {done} of {self.total}; checkpoint {path}" if path else "before a step"
        raise Interrupted(
            f"stopped by {signals.name} {kept}. Run the same command again to go on", number
        )


def refuse_broken(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse to start from weights that are no numbers.

    Args:
        state: Of the network, or of the method around it.
        what: Of which weights, for the message.

    Raises:
        TrainingStopped: The first such tensor and what to try.
    """
    if name := checkpoint.not_finite(state):
        raise TrainingStopped(
            f"{what}: {name} holds values that are not finite; take another init, or delete the "
            "checkpoint that holds them to go on from the one before"
        )


def total_steps(train: Train, order: Order) -> int:
    """Optimizer steps of a round."""
    return train.steps or max(1, round(train.epochs * order.steps_per_epoch))


def fit(method: Method, job: Fit) -> None:
    """Train a method in place, from `job.start` to the end of its round.

    Raises:
        TrainingStopped: The loss or a weight is no number any more.
        Interrupted: A signal came, or the launcher has ended; the checkpoint is written.
        CheckpointError: The disk refused a checkpoint; the last good one stands.
        TooManyCorruptImages: More than one picture in a hundred cannot be read.
    """
    accelerator, train = job.accelerator, job.train
    if job.channels_last:
        nn.Module.to(method, memory_format=torch.channels_last)
    if accelerator.num_processes > 1:
        synchronise(method, accelerator.device)
    saved = job.folder.checkpoints / job.start.file_name
    if job.state:
        checkpoint.load_into(method, job.state, "method", saved)
    wrapped, optimizer = accelerator.prepare(method, create_optimizer(method, train))
    if job.state:
        checkpoint.load_into(optimizer, job.state, "optimizer", saved)
    source = f"checkpoint {job.start.file_name}" if job.state else "the weights to start from"
    refuse_broken(method.state_dict(), source)
    train_mode(method, train, job.started_norms)
    batches, meter = iter(job.loader), Meter()
    losses = [torch.tensor(loss, device=accelerator.device) for loss in job.record.losses]
    with Signals(accelerator) as signals:
        if job.is_measure_left():
            begun = job.folder.checkpoints / job.start.file_name if job.start.step else None
            try:
                with signals.stopping_at_once():
                    job.take_measure(job.start.step)
            except KeyboardInterrupt:
                job.interrupted(signals, signals.number, job.start.step, begun)
            if begun:
                job.save(method, optimizer, job.start.step)
        for step in range(job.start.step, job.total):
            began, waited = time.perf_counter(), 0.0
            seed_step(job.dataset.seed, job.start, step, accelerator.process_index)
            lr = schedule(optimizer, train, step / job.total)
            output = batch = None
            for part in range(train.accumulate):
                asked = time.perf_counter()
                batch = job.to_device(next(batches))
                waited += time.perf_counter() - asked
                with _sync_only_last(accelerator, wrapped, part == train.accumulate - 1):
                    output = job.forward(wrapped, method, batch)
                    accelerator.backward(output.loss / train.accumulate)
                losses.append(output.loss.detach().float())
            if train.clip_grad_norm:
                accelerator.clip_grad_norm_(wrapped.parameters(), train.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            method.on_step_end(done / job.total)
            meter.count(train.batch_size, waited)
            job.record.images_seen += train.batch_size
            job.record.seconds += time.perf_counter() - began

            shown = None
            log = done == job.total or done % LOG_EVERY == 0
            stop = 0
            if log or signals.due(done):
                seconds = time.perf_counter() - began
                stop, corrupt = signals.agreed(done, seconds, len(job.newly_corrupt))
                if corrupt:
                    job.note_corrupt()
            measure = done == job.early or job.due(job.measure_every, done)
            save = bool(stop) or measure or job.due(train.checkpoint_every, done)
            if log or save:
                pending = cast(Tensor, accelerator.reduce(torch.stack(losses), "mean"))
                loss = pending.mean().item()
                job.record.losses = [] if log else pending.tolist()
                job.check_loss(loss, lr, done)
                if log:
                    assert output is not None
                    shown = {"train/loss": loss, "train/lr": lr, **meter.read()}
                    shown |= {key: value.item() for key, value in output.metrics.items()}
                    accelerator.log(shown, step=job.first_step + done)
                    losses = []
            job.progress.step(shown)
            if not save:
                continue
            job.check_weights(method, optimizer, lr, done)
            path = job.save(method, optimizer, done)  # before a measurement, which may take long
            if stop:
                job.interrupted(signals, stop, done, path)
            if measure:
                assert batch is not None
                job.keep_picture(method, batch, done)
                try:
                    with signals.stopping_at_once():
                        job.take_measure(done)
                except KeyboardInterrupt:
                    job.interrupted(signals, signals.number, done, path)
                meter.reset()
                job.save(method, optimizer, done)
    job.progress.close()


def seed_step(seed: int, position: Position, step: int, rank: int) -> None:
    """Seed torch for one step of one process: what dropout draws needs no saved state."""
    state = np.random.SeedSequence([seed, position.stage, position.round, step, rank])
    torch.manual_seed(int(state.generate_state(1, np.uint64)[0]) >> 1)


def _sync_only_last(
    accelerator: Accelerator, wrapped: nn.Module, last: bool
) -> AbstractContextManager[Any]:
    """Gradients are averaged over processes once a step."""
    return nullcontext() if last else accelerator.no_sync(wrapped)
