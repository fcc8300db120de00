"""The loader: which image is read at which step, by which process.

    Order        a pure function step -> indices, equal for any number of processes and workers
    ViewDataset  (epoch, index) -> views, with a generator seeded by (seed, epoch, index)
    step_loader  the batches of steps [first, last) of this process

A run continued at step k asks for steps from k on, so nothing is skipped and no state is stored.
One loader serves all epochs, so workers are not restarted.
"""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, cast
from weakref import WeakSet

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from fg_ssl_zoo.data.datasets import without_masks
from fg_ssl_zoo.data.decode import max_pixels
from fg_ssl_zoo.data.order import Order, Share
from fg_ssl_zoo.data.sample import (
    CorruptImage,
    Images,
    ReadsMasks,
    Sample,
    Views,
    WrongMask,
    read_for_training,
    reduction_of,
)
from fg_ssl_zoo.data.slots import Room, SlotCollate, SlotReader, stacked
from fg_ssl_zoo.data.thread_loader import MOST_THREADS, ThreadLoader
from fg_ssl_zoo.ops.distributed import local_processes
from fg_ssl_zoo.progress import shown

PREFETCH = 4
"""Number of batches that each loader process prepares in advance."""


class TooManyCorruptImages(ValueError):
    """More than one image in a hundred cannot be decoded."""


class ViewDataset(Dataset[dict[str, Any]]):
    """The views of images; the key is (epoch, index).

    An unreadable image is replaced by the next readable one and named under `corrupt`.
    """

    def __init__(
        self, images: Images, views: Views, seed: int, notes: dict[str, Tensor] | None = None
    ) -> None:
        self.images, self.views, self.seed, self.notes = images, views, seed, notes or {}

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        corrupt: list[str] = []
        for offset in range(len(self.images)):
            used = (index + offset) % len(self.images)
            try:
                sample = _read_for_training(self.images, used, self.views)
            except CorruptImage as error:
                corrupt.append(str(error))
                continue
            generator = np.random.default_rng([self.seed, epoch, index])
            noted = {name: rows[used] for name, rows in self.notes.items()}
            seen = self.views(cast(Sample, {**sample, **noted}), generator)
            return {**seen, "index": used, "corrupt": corrupt}
        raise TooManyCorruptImages(
            f"none of the {len(self.images)} images can be decoded; {corrupt[0]}"
        )


def _read_for_training(images: Images, index: int, views: Views) -> Sample:
    """As `_read`; reduced, and from the cache of images, where the source can do that."""
    reduction = reduction_of(views)

    def read(source: Images) -> Sample:
        return read_for_training(source, index, reduction)

    return _without_wrong_mask(images, views, read)


def _read(images: Images, index: int, views: Views) -> Sample:
    return _without_wrong_mask(images, views, lambda source: source[index])


def _without_wrong_mask(images: Images, views: Views, read: Callable[[Images], Sample]) -> Sample:
    """Read an image; an invalid part mask matters only to views that read masks."""
    try:
        return read(images)
    except WrongMask:
        if isinstance(views, ReadsMasks) and views.reads_masks:
            raise
        return read(without_masks(images))


def collate(rows: Sequence[dict[str, Any]], room: Room | None = None) -> dict[str, Any]:
    """Stack arrays, tensors and numbers; `corrupt` stays one flat list of messages.

    Args:
        rows: Rows of the batch.
        room: Where the tensors are written; new memory when not given.
    """
    batch: dict[str, Any] = {"corrupt": [message for row in rows for message in row["corrupt"]]}
    for key in rows[0].keys() - {"corrupt"}:
        batch[key] = stacked(key, [row[key] for row in rows], room)
    return batch


Loader = DataLoader[dict[str, Any]] | ThreadLoader
"""A loader with processes, or with threads."""


def step_loader(
    dataset: ViewDataset,
    order: Order,
    steps: range,
    *,
    num_workers: int,
    rank: int = 0,
    world: int = 1,
    parts: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """Batches of this process for the steps of a range, `parts` batches a step.

    Up to `MOST_THREADS` workers are threads, more of them processes.
    """
    max_pixels()  # a wrong one is refused here: an error in a worker comes with a traceback
    share = Share(order, steps, rank, world, parts)
    return _loader(dataset, share, collate, num_workers, PREFETCH, pin_memory)


def _loader(
    dataset: Dataset[dict[str, Any]],
    batches: Sampler[list[Any]],
    collate: Callable[..., dict[str, Any]],
    num_workers: int,
    prefetch: int,
    pin_memory: bool = False,
) -> Loader:
    """Batches by no helper, threads or processes; a process with threads is not to be forked."""
    if 0 < num_workers <= MOST_THREADS:
        return ThreadLoader(
            dataset,
            batches,
            collate=collate,
            num_threads=num_workers,
            prefetch_factor=prefetch,
            pin_memory=pin_memory,
        )
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=SlotCollate(collate, prefetch + 1) if num_workers else collate,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker,
        prefetch_factor=prefetch if num_workers else None,
    )


class _Loader(DataLoader[dict[str, Any]]):
    """A loader whose failures are one line and whose workers end with their process.

    A worker that dies is noticed when its batch is asked for, at most five seconds later. torch
    would also raise an error at once, wherever the training process is: in the middle of a
    checkpoint, or in a callback that prints and drops it.
    """

    def __iter__(self) -> Iterator[dict[str, Any]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        before = set(multiprocessing.active_children())
        reader = SlotReader()
        if isinstance(self.collate_fn, SlotCollate):
            self.collate_fn.reader = reader.number
        with _without_child_handler():
            # now: it draws a number, which a step's seed has to follow
            batches = super().__iter__()
        workers = set(multiprocessing.active_children()) - before
        _kill_at_exit(workers)
        return _read_out(batches, reader, workers)


@contextlib.contextmanager
def _without_child_handler() -> Iterator[None]:
    """Undo what torch does to SIGCHLD, on systems that have it; only the main thread sets it."""
    number = getattr(signal, "SIGCHLD", None)
    handler = signal.getsignal(number) if number else None
    yield
    if number and handler is not None and signal.getsignal(number) is not handler:
        signal.signal(number, handler)


def _read_out(
    batches: Iterator[Any], reader: SlotReader, workers: Collection[BaseProcess]
) -> Iterator[dict[str, Any]]:
    """The batches; an error of a worker says what it said there, without torch's traceback.

    Raises:
        RuntimeError: A worker has died; with torch's words (`worker_failure`).
    """
    try:
        yield from map(reader, batches)
    except (ValueError, OSError, EOFError, UnpicklingError) as error:
        if message := _message_of_worker(str(error)):
            raise type(error)(message) from error
        if workers and (dead := _dead_soon(workers)):  # it was handing over a batch
            raise RuntimeError(f"DataLoader worker (pid(s) {dead}) exited unexpectedly") from error
        raise


def _dead_soon(workers: Collection[BaseProcess]) -> str:
    """Numbers of the workers that are dead within a second: a killed process takes time to end."""
    ended = wait([worker.sentinel for worker in workers], timeout=1)
    return ", ".join(str(worker.pid) for worker in workers if worker.sentinel in ended)


_workers: WeakSet[BaseProcess] = WeakSet()
"""Loader processes of this process; one that is forked from it owns none of them."""


def _kill_at_exit(workers: set[BaseProcess]) -> None:
    """Kill these when the process ends, before `multiprocessing` waits for them.

    It sends SIGTERM and waits, which would never end: workers ignore SIGTERM (`_quiet_worker`). A
    loader that is left before its end, by an exception, still has its workers then.
    """
    if workers:
        _workers.update(workers)
        _register(os.getpid())


@functools.cache
def _register(process: int) -> None:
    """Call `_kill` when this process ends."""
    Finalize(None, _kill, args=(process,), exitpriority=100)


def _kill(owner: int) -> None:
    if os.getpid() == owner:
        for worker in [worker for worker in _workers if worker.is_alive()]:
            worker.kill()
            worker.join()


def _message_of_worker(text: str) -> str | None:
    """What an exception in a worker says, without the traceback that torch puts before it."""
    found = re.match(r"Caught (\w+) in DataLoader worker process \d+\.\n", text)
    return text.rpartition(f"{found[1]}: ")[2].strip() if found else None


def worker_failure(error: BaseException) -> str | None:
    """One line about a loader process that was killed or has crashed; `None` of other errors."""
    text = " ".join(str(error).split())
    if not (isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid")):
        return None
    return (
        f"a process that loads images has ended ({text.rstrip('.')}); often the machine has no "
        "memory left: lower data.num_workers or train.batch_size, and run the same command again "
        "to continue"
    )


class _EveryImage(Dataset[dict[str, Any]]):
    """Each image once, for evaluation; one that cannot be decoded comes empty."""

    def __init__(self, images: Images, views: Views) -> None:
        self.images, self.views = images, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            sample = _read(self.images, index, self.views)
        except CorruptImage:
            return {}
        seen = self.views(sample, np.random.default_rng([0, 0, index]))
        return {**seen, "index": index, "corrupt": []}


def image_loader(
    images: Images,
    views: Views,
    indices: Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    title: str = "pictures",
    lines_every: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Every image of `indices` once and in order; what cannot be decoded is left out.

    `title` and `lines_every` are those of `progress.shown`.
    """
    loader = loader_of_all(images, views, indices, batch_size=batch_size, num_workers=num_workers)
    return shown(loader, len(indices), title, size=batch_size, lines_every=lines_every)


def loader_of_all(
    images: Images, views: Views, indices: Sequence[int], *, batch_size: int, num_workers: int
) -> Loader:
    """What `image_loader` shows the progress of; workers as in `step_loader`."""
    max_pixels()  # as in `step_loader`
    batches = BatchSampler(list(indices), batch_size, drop_last=False)
    return _loader(_EveryImage(images, views), batches, _collate_readable, num_workers, 2)


def _collate_readable(rows: Sequence[dict[str, Any]], room: Room | None = None) -> dict[str, Any]:
    readable = [row for row in rows if row]
    return collate(readable, room) if readable else {}


def resolve_num_workers(num_workers: int | str, world: int = 1, cores: int | None = None) -> int:
    """Loader processes of one training process.

    `auto` leaves the loading to the training process itself on up to two cores a process, where the
    step is the bottleneck and a worker would only take its core; else it takes up to eight.

    Args:
        num_workers: The recipe's `data.num_workers`.
        world: Number of training processes on all machines; the launcher says how many are on this
            one (`LOCAL_WORLD_SIZE`).
        cores: Cores of this machine; those that this process may use when not given.
    """
    if num_workers != "auto":
        return int(num_workers)
    mine = (cores or usable_cores()) // min(world, local_processes(world))
    return 0 if mine <= 2 else min(8, mine - 1)


def usable_cores() -> int:
    """Cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _quiet_worker(worker: int) -> None:
    """One thread a worker, no ear for signals, and no traceback when nobody reads any more.

    Ctrl-C and a scheduler's SIGTERM reach the whole process group; the training process still needs
    the batches of the step that it finishes.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _quiet_about_the_reader
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def _quiet_about_the_reader(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Leave out a traceback of a connection that the training process has closed, since it ends.

    `multiprocessing` hands over batches in a thread of the worker that prints all its errors.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
