"""Memory, open files and threads of a training over many steps, seen from outside."""

import contextlib
import statistics
import time
from dataclasses import dataclass, field

import psutil

from tests.endurance.faults import Row
from tests.endurance.processes import loader_processes
from tests.endurance.runs import Run

MOST_GROWTH = {"main": 2.0, "workers": 2.0}
"""MB between the second window and the last that the allocator alone may account for."""

LOADERS = 3
"""Fewer would be threads of the training process."""


@dataclass
class Samples:
    """What was seen between two steps.

    Attributes:
        main, workers: Resident memory in MB of the training process and of its loader processes.
        files, threads: Open files and threads of all of them.
    """

    main: list[float] = field(default_factory=list)
    workers: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def take(self, process, loaders):
        """Add a sample; a process may end meanwhile."""
        with contextlib.suppress(psutil.Error):
            every = [psutil.Process(process), *loaders]
            memory = [found.memory_info().rss / 1e6 for found in every]
            files = sum(found.num_fds() for found in every)
            threads = sum(found.num_threads() for found in every)
            self.main.append(memory[0])
            self.workers.append(sum(memory[1:]))
            self.files.append(files)
            self.threads.append(threads)

    def row(self):
        """Typical memory; fewest files and threads, as a checkpoint or a measurement opens more."""
        memory = statistics.median(self.main), statistics.median(self.workers)
        return (*memory, min(self.files), min(self.threads))


def steady(root, steps, count=8, every=0.1):
    """Train for so many steps with `LOADERS` loader processes; a row, and a table of the windows.

    The steps are divided into `count` windows; the first is the warm-up. From the second to the
    last, memory may grow by `MOST_GROWTH`, and neither files nor threads at all.
    """
    words = [
        f"data.num_workers={LOADERS}", f"stages[0].train.steps={steps}", "stages[0].train.lr=0.01",
        f"stages[0].train.checkpoint_every={steps // 32}", f"monitor.every={steps // 16}",
    ]  # fmt: skip
    run = Run(root / "steady", *words)
    windows = [Samples() for _ in range(count)]
    process, loaders = run.processes[0].pid, []
    while run.is_alive:
        with contextlib.suppress(psutil.Error):
            loaders = [loader for loader in loaders if loader.is_running()]
            if len(loaders) < LOADERS and run.logged:  # those of the first measurement have ended
                loaders = loader_processes(process)[:LOADERS]
        if len(loaders) == LOADERS and (done := run.logged) < steps:
            windows[done * count // steps].take(process, loaders)
        time.sleep(every)
    ended = run.end()
    row = Row(f"memory, files, threads over {steps} steps, {LOADERS} loader processes", steps)
    row.take(ended)
    seen = [window.row() for window in windows if window.main]
    row.message = f"{len(seen)} of {count} windows" if len(seen) < count else growth(seen)
    row.lost = int(ended[0].code != 0 or row.message != FLAT)
    return row, table(seen, steps // count)


FLAT = "flat"


def growth(seen):
    """What grew from the second window to the last, and by how much."""
    first, last = seen[1], seen[-1]
    limits = (*MOST_GROWTH.values(), 0, 0)
    names = ("MB of the main process", "MB of the loaders", "open files", "threads")
    grew = [
        f"{b - a:.3g} {name}" for a, b, most, name in zip(first, last, limits, names, strict=True)
        if b - a > most
    ]  # fmt: skip
    return ", ".join(grew) or FLAT


def table(seen, steps):
    """Lines of the windows."""
    lines = ["| steps | main, MB | loaders, MB | open files | threads |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for number, (main, workers, files, threads) in enumerate(seen):
        lines.append(
            f"| to {(number + 1) * steps} | {main:.1f} | {workers:.1f} | {files} | {threads} |"
        )
    return "\n".join(lines)
