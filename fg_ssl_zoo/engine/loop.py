"""The training loop: `fit` trains a method on images.

The random draws of a step are a pure function of (seed, position), so a continued run equals an
uninterrupted one to the bit.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.loader import (
    TooManyCorruptImages,
    ViewDataset,
    resolve_num_workers,
    step_loader,
)
from fg_ssl_zoo.data.order import Order, order_of
from fg_ssl_zoo.engine import checkpoint, hardware, sharding
from fg_ssl_zoo.engine.batches import on_device
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import Meter, Progress, write_held
from fg_ssl_zoo.engine.measuring import Measuring
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
"""Largest share of unreadable images."""


class TrainingStopped(RuntimeError):
    """A run that has diverged; the message says what was measured and what to try."""


@dataclass
class Fit:
    """One round of one stage: the inputs of the loop besides the method.

    Attributes:
        train: The stage's settings.
        dataset: The method's views of the images.
        accelerator: Devices, precision and processes.
        folder: Folder for checkpoints.
        start: Position at which the round starts.
        state: Checkpoint from which it continues, if any.
        measuring: What is measured: at the start, in between, and at the end.
        num_workers: Number of loader processes per process; `auto` depends on the cores.
        first_step: Number of optimizer steps before this round, for the log.
        channels_last: Memory format of the method.
        compile: Whether training steps use compiled networks.
        record: Record of the run so far; extended in place.
        started_norms: Names of the backbone's BatchNorms that `train.norm: auto` freezes: those
            with statistics before the first stage.
        anchor: Loss term for the start of the stage, if the recipe has one.
        keep_checkpoints: Number of newest checkpoints that are kept.
        title: Title of the progress bar.
    """

    train: Train
    dataset: ViewDataset
    accelerator: Accelerator
    folder: RunFolder
    start: Position = field(default_factory=Position)
    state: dict[str, Any] | None = None
    measuring: Measuring = field(default_factory=Measuring)
    num_workers: int | str = "auto"
    first_step: int = 0
    channels_last: bool = False
    compile: bool = False
    record: Record = field(default_factory=Record)
    started_norms: frozenset[str] = frozenset()
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
        """Whether an event with a period in epochs is due after `done` steps."""
        return done == self.total or done % max(1, round(epochs * self.order.steps_per_epoch)) == 0

    def is_measure_left(self) -> bool:
        """Whether the run begins with a measurement: the first one, or an interrupted one."""
        if not self.record.measurements:
            return True
        done = self.start.step
        measured = self.record.measurements[-1]["step"] == self.first_step + done
        return done > 0 and self.measures_after(done) and not measured

    def measures_after(self, done: int) -> bool:
        """Whether a measurement is due after `done` steps."""
        return done == self.measuring.early or self.due(self.measuring.every, done)

    def take_measure(self, done: int) -> None:
        """Measure, record and log."""
        first = not self.record.measurements
        if self.record.start_left and not first:
            start = self.record.measurements[0]
            found = self.measuring.whole_start()
            start |= found
            self.record.start_left = False
            self._tell_measure(found, int(start["step"]), "the start")
        found = self.measuring.before_first_step() if first else self.measuring.now()
        if done == self.total or (first and found):
            found = {**found, **self.measuring.at_ends()}
        self.record.measurements.append({"step": self.first_step + done, **found})
        if not found:
            return
        self._tell_measure(found, self.first_step + done, f"step {done}")
        early = done == self.measuring.early
        if early and (line := self.measuring.warning(self.record.measurements)):
            self.progress.say(f"{self.title}: {line}")

    def _tell_measure(self, found: Mapping[str, float], step: int, when: str) -> None:
        self.accelerator.log(dict(found), step=step)
        values = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        on = self.measuring.images_read()
        self.progress.say(f"{self.title}: {when}, {values}{f' ({on})' if on else ''}")

    def forward(self, wrapped: nn.Module, method: Method, batch: Batch) -> MethodOutput:
        """The method's loss, plus the anchor's term if there is one."""
        with self.accelerator.autocast():
            if self.anchor is None:
                return wrapped(batch)
            with listening(method.backbone) as heard:
                output = wrapped(batch)
            term = self.anchor.loss(heard)
        metrics = {**output.metrics, "loss/start": term.detach()}
        return MethodOutput(output.loss + term, metrics)

    def keep_picture(self, method: Method, batch: Batch, done: int) -> None:
        """Write the method's image of a batch, if it draws one; the method does not change."""
        if not self.accelerator.is_main_process or not isinstance(method, DrawsPictures):
            return
        with evaluating(method), torch.no_grad():
            picture = method.picture(batch)
        at = replace(self.start, step=done)
        self.folder.keep_picture(at.file_name.replace(".pt", ".png"), picture.cpu().numpy())

    def save(self, method: nn.Module, optimizer: Any, done: int) -> Path:
        """Write a checkpoint on the main process; the others wait for it."""
        at = replace(self.start, step=done)
        optimizer_state = optimizer.state_dict()
        if self.accelerator.is_main_process:
            state = {
                "method": method.state_dict(),
                "optimizer": optimizer_state,
                "record": asdict(self.record),
            }
            self.folder.sync_metrics()
            write_held(self.accelerator.trackers)
            checkpoint.save(self.folder.checkpoints, at, state, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return self.folder.checkpoints / at.file_name

    def check_loss(self, loss: float, lr: float, done: int) -> None:
        """Stop if the loss is not finite.

        Raises:
            TrainingStopped: The message says what was measured and what to try.
        """
        if not math.isfinite(loss):
            self._stop(f"the loss is {loss}", lr, done)

    def check_weights(self, method: nn.Module, optimizer: Any, lr: float, done: int) -> None:
        """Stop before storing or measuring weights that are not finite; all processes agree.

        The loss of a step is computed before its update, so it does not show the update's effect.

        Raises:
            TrainingStopped: The message says what was measured and what to try.
        """
        state = {**method.state_dict(), **moments(optimizer)}
        found = checkpoint.not_finite(sharding.own_part(state))
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

    def remember_corrupt(self, names: list[str]) -> None:
        """Add unreadable images of a batch."""
        self.newly_corrupt |= set(names) - self.corrupt

    def note_corrupt(self) -> None:
        """Write the names of unreadable images of all processes, which call this together.

        Raises:
            TooManyCorruptImages: More than 1 % of the images.
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
        """The exception that ends the process, after a checkpoint of `done` steps."""
        self.progress.close()
        kept = f"after step {done} of {self.total}; checkpoint {path}" if path else "before a step"
        raise Interrupted(
            f"stopped by {signals.name} {kept}. Run the same command again to continue", number
        )


def refuse_broken(state: Mapping[str, Tensor], what: str) -> None:
    """Refuse start weights that are not finite.

    Args:
        state: State dict of the network, or of the method around it.
        what: Which weights these are, for the message.

    Raises:
        TrainingStopped: Names the first such tensor, and what to try.
    """
    if name := checkpoint.not_finite(state):
        raise TrainingStopped(
            f"{what}: {name} holds values that are not finite; use another init, or delete the "
            "checkpoint that holds them to continue from the one before"
        )


def total_steps(train: Train, order: Order) -> int:
    """Optimizer steps of a round."""
    return train.steps or max(1, round(train.epochs * order.steps_per_epoch))


def fit(method: Method, job: Fit) -> None:
    """Train a method in place, from `job.start` to the end of its round.

    Raises:
        TrainingStopped: The loss or a weight is not finite.
        Interrupted: A signal was received, or the launcher has ended; the checkpoint is written.
        CheckpointError: A checkpoint could not be written; the last one is kept.
        TooManyCorruptImages: More than 1 % of the images are unreadable.
    """
    accelerator, train = job.accelerator, job.train
    if job.channels_last and not accelerator.is_fsdp2:  # which shards contiguous weights only
        nn.Module.to(method, memory_format=torch.channels_last)
    if accelerator.num_processes > 1:
        synchronise(method, accelerator.device)
    saved = job.folder.checkpoints / job.start.file_name
    if job.state:
        checkpoint.load_into(method, job.state, "method", saved)
    source = f"checkpoint {saved.name}" if job.state else "the weights to start from"
    refuse_broken(method.state_dict(), source)
    train_mode(method, train, job.started_norms)
    trained = sharding.trained_copy(method, accelerator)
    wrapped, optimizer = sharding.prepare(trained, create_optimizer(trained, train), accelerator)
    kept = sharding.WholeState(optimizer)
    if job.state:
        checkpoint.load_into(kept, job.state, "optimizer", saved)
    loaded = iter(job.loader)  # draws from torch's generator, which each step seeds anew
    batches, meter = on_device(loaded, accelerator.device, job.remember_corrupt), Meter()
    losses = [torch.tensor(loss, device=accelerator.device) for loss in job.record.losses]
    with Signals(accelerator) as signals, hardware.compiled(trained, job.compile):
        if job.is_measure_left():
            begun = saved if job.start.step else None
            try:
                with signals.stopping_at_once(), hardware.uncompiled(job.compile):
                    job.take_measure(job.start.step)
            except KeyboardInterrupt:
                job.interrupted(signals, signals.number, job.start.step, begun)
            if begun:
                job.save(method, kept, job.start.step)
        sharding.rest(method, trained)
        for step in range(job.start.step, job.total):
            began, waited = time.perf_counter(), 0.0
            seed_step(job.dataset.seed, job.start, step, accelerator.process_index)
            lr = schedule(optimizer, train, step / job.total)
            output = batch = None
            for part in range(train.accumulate):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                with sharding.sync_only_last(accelerator, wrapped, part == train.accumulate - 1):
                    output = job.forward(wrapped, trained, batch)
                    accelerator.backward(output.loss / train.accumulate)
                losses.append(output.loss.detach().float())
            if train.clip_grad_norm:
                accelerator.clip_grad_norm_(wrapped.parameters(), train.clip_grad_norm)
            with sharding.stepping(accelerator):
                optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            trained.on_step_end(done / job.total)
            meter.count(train.batch_size, waited)
            job.record.images_seen += train.batch_size
            job.record.seconds += time.perf_counter() - began

            shown, stop = None, 0
            log = done == job.total or done % LOG_EVERY == 0
            if log or signals.due(done):
                seconds = time.perf_counter() - began
                stop, corrupt = signals.agreed(done, seconds, len(job.newly_corrupt))
                if corrupt:
                    job.note_corrupt()
            measure = job.measures_after(done)
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
                    meter.reset()  # without the import of TensorBoard
                    losses = []
            job.progress.step(shown)
            if not save:
                continue
            job.check_weights(trained, optimizer, lr, done)
            sharding.gather(trained, method)
            path = job.save(method, kept, done)  # before a measurement, which may take long
            if stop:
                job.interrupted(signals, stop, done, path)
            if measure:
                assert batch is not None
                with hardware.uncompiled(job.compile):
                    job.keep_picture(method, batch, done)
                try:
                    with signals.stopping_at_once(), hardware.uncompiled(job.compile):
                        job.take_measure(done)
                except KeyboardInterrupt:
                    job.interrupted(signals, signals.number, done, path)
                meter.reset()
                job.save(method, kept, done)
            sharding.rest(method, trained)
    method.to(accelerator.device)
    job.progress.close()


def seed_step(seed: int, position: Position, step: int, rank: int) -> None:
    """Seed torch for one step of one process, so that dropout needs no saved state."""
    state = np.random.SeedSequence([seed, position.stage, position.round, step, rank])
    torch.manual_seed(int(state.generate_state(1, np.uint64)[0]) >> 1)
