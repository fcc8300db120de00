"""Processor time and memory of the ways to load images beside a training process.

    python benchmarks/loader.py FOLDER [--image-size 224] [--batches 40] [--only slots]

    process    in the training process
    threads    two threads of it
    workers    two loader processes, torch's own transport of batches
    slots      two loader processes that write into shared memory again and again (data/slots.py)

The ways take turns on the same batches. Images per core-second count the processor time of all
processes, from the start of the loader to its end; the number behind is the median of the ratios to
the first way. Memory is the proportional set size of all processes after a quarter of the batches
and at the end.
"""

import argparse
import os
import resource
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import psutil
import torch

from fg_ssl_zoo.config import Data, Speed
from fg_ssl_zoo.data import loader
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.loader import ViewDataset, collate, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.engine import hardware


def main() -> None:
    """Print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS))
    chosen = parser.parse_args()
    hardware.switch_on(hardware.choose(Speed(threads=1), convolutional=True))
    cv2.setNumThreads(0)
    images, _ = load_splits(Data(path=chosen.folder))
    views = RandomViews(chosen.image_size, augmentations_of("simclr"), (None, None))
    dataset, order = ViewDataset(images, views, 0), Order(len(images), chosen.batch_size, 0)
    rates: dict[str, list[float]] = {way: [] for way in chosen.only}
    memory: dict[str, tuple[int, int]] = {}
    for turn in range(chosen.turns):
        steps = range(turn * chosen.batches, (turn + 1) * chosen.batches)
        for way in chosen.only:
            began, quarter, end = cpu_seconds(), 0, 0
            for number, batch in enumerate(WAYS[way](dataset, order, steps)):
                assert len(batch["images"]) == chosen.batch_size
                if number == chosen.batches // 4:
                    quarter = megabytes()
                elif number == chosen.batches - 1:
                    end = megabytes()
            seconds = cpu_seconds() - began
            rates[way].append(chosen.batches * chosen.batch_size / seconds)
            memory.setdefault(way, (quarter, end))
    first = rates[chosen.only[0]]
    for way, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, first, strict=True))
        quarter, end = memory[way]
        print(
            f"{way:9} {statistics.median(found):7.0f} images per core-second, {ratio:.2f}; "
            f"{quarter} then {end} MB"
        )


def in_process(dataset: ViewDataset, order: Order, steps: range) -> Iterator[Any]:
    """No helper."""
    return iter(step_loader(dataset, order, steps, num_workers=0))


def with_slots(dataset: ViewDataset, order: Order, steps: range) -> Iterator[Any]:
    """As a run with three helpers and more has them."""
    return iter(_processes(dataset, order, steps))


def with_workers(dataset: ViewDataset, order: Order, steps: range) -> Iterator[Any]:
    """As a run did before there were slots."""
    made = _processes(dataset, order, steps)
    made.collate_fn = collate
    return iter(made)


def _processes(dataset: ViewDataset, order: Order, steps: range) -> Any:
    most, loader.MOST_THREADS = loader.MOST_THREADS, 0
    try:
        return step_loader(dataset, order, steps, num_workers=2)
    finally:
        loader.MOST_THREADS = most


def with_threads(dataset: ViewDataset, order: Order, steps: range) -> Iterator[Any]:
    """As a run with `data.num_workers=2`."""
    return iter(step_loader(dataset, order, steps, num_workers=2))


WAYS = {
    "process": in_process,
    "threads": with_threads,
    "workers": with_workers,
    "slots": with_slots,
}


def cpu_seconds() -> float:
    """Of this process and of those that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def megabytes() -> int:
    """Proportional set size of this process and its children."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total // 1024


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    main()
