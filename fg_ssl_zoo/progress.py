"""What is said while something takes long: a bar on a terminal; elsewhere lines, or nothing."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

DELAY, INTERVAL = 2.0, 0.1
"""Seconds before a bar appears, as what is done by then needs none, and between its changes."""


def shown(
    items: Iterable[Item],
    total: int,
    title: str,
    *,
    size: int = 1,
    lines_every: float | None = None,
) -> Iterator[Item]:
    """The same items, with a bar on standard error while they are worked on.

    There is a bar where standard error is a terminal, in the first of several processes, from
    `DELAY` seconds on; it is removed at the end.

    Args:
        items: Batches or other pieces of work.
        total: What the bar counts to: pictures of all batches together, for instance.
        title: In front of the bar.
        size: Of `total` that an item stands for; the last item may hold less.
        lines_every: Seconds between lines on standard output where there is no terminal; no lines
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
            tell(f"{title}: {done} of {total} pictures")


def tell(text: str) -> None:
    """Print a line; where nobody reads it any more, a run stops as at the end of its terminal.

    Raises:
        BrokenPipeError: No run that handles signals is under way.
    """
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        hangup = getattr(signal, "SIGHUP", signal.SIGTERM)
        if signal.getsignal(hangup) == signal.SIG_DFL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at the end
        signal.raise_signal(hangup)
