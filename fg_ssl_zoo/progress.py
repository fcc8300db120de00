"""Progress of long loops: a bar on a terminal; otherwise lines, or nothing."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

DELAY, INTERVAL = 2.0, 0.1
"""Seconds until a bar appears, and between its updates."""


def shown(
    items: Iterable[Item],
    total: int,
    title: str,
    *,
    size: int = 1,
    lines_every: float | None = None,
) -> Iterator[Item]:
    """Yield the items and show a progress bar on standard error.

    The bar appears after `DELAY` seconds if standard error is a terminal, in the first process
    only; it is removed at the end.

    Args:
        items: Batches or other pieces of work.
        total: Final value of the bar, such as the number of images in all batches.
        title: Text before the bar.
        size: Units of `total` in one item; the last item may hold fewer.
        lines_every: Seconds between lines on standard output if there is no terminal; no lines
            when not given.
    """
    if os.environ.get("RANK", "0") != "0":
        yield from items
        return
    if not sys.stderr.isatty():
        yield from (
            items if lines_every is None else _in_lines(items, total, title, size, lines_every)
        )
        return
    from tqdm import tqdm

    with tqdm(
        total=total, desc=title, delay=DELAY, leave=False, file=sys.stderr, dynamic_ncols=True,
        mininterval=INTERVAL, miniters=1,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]",
    ) as bar:  # fmt: skip
        for item in items:
            yield item
            bar.update(min(size, total - bar.n))


def _in_lines(
    items: Iterable[Item], total: int, title: str, size: int, every: float
) -> Iterator[Item]:
    printed = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        done, now = number * size, time.monotonic()
        if done < total and now - printed >= every:
            printed = now
            tell(f"{title}: {done} of {total} images")


def tell(text: str) -> None:
    """Print a line; if the output is closed, the run stops as for SIGHUP.

    Raises:
        BrokenPipeError: The output is closed, and no run is active that handles signals.
    """
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        hangup = getattr(signal, "SIGHUP", signal.SIGTERM)
        if signal.getsignal(hangup) == signal.SIG_DFL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # also not at exit
        signal.raise_signal(hangup)
