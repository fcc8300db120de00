"""A progress bar with the time that is left, on a terminal; elsewhere nothing."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

DELAY, INTERVAL = 2.0, 0.1
"""Seconds before a bar appears, as what is done by then needs none, and between its changes."""


def shown(items: Iterable[Item], total: int, title: str, *, size: int = 1) -> Iterator[Item]:
    """The same items, with a bar on standard error while they are worked on.

    There is a bar where standard error is a terminal, in the first of several processes, from
    `DELAY` seconds on; it is removed at the end.

    Args:
        items: Batches or other pieces of work.
        total: What the bar counts to: pictures of all batches together, for instance.
        title: In front of the bar.
        size: Of `total` that an item stands for; the last item may hold less.
    """
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        yield from items
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
