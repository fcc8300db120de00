"""Batches that are prepared in advance by threads of the training process.

OpenCV and libjpeg release the interpreter lock, which is needed for a quarter to a third of the
work on an image. Two threads therefore run in parallel at no extra cost, while two loader processes
cost up to a third more (docs/performance.md). More helpers than `MOST_THREADS` are processes.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import Dataset

MOST_THREADS = 2
"""Largest number of helpers that are threads."""


class ThreadLoader:
    """Batches in order; an error of a thread is raised where its batch would have come.

    Args:
        dataset: Read by several threads at once.
        batches: Keys of every batch.
        collate: Rows -> batch.
        num_threads: Number of threads that assemble batches.
        prefetch_factor: Batches of each thread that are made ahead.
        pin_memory: Copy the batches to pinned memory, which needs an accelerator.
    """

    def __init__(
        self,
        dataset: Dataset[dict[str, Any]],
        batches: Iterable[Sequence[Any]],
        *,
        collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
        num_threads: int,
        prefetch_factor: int,
        pin_memory: bool = False,
    ) -> None:
        self.dataset, self.batches, self.collate = dataset, batches, collate
        self.num_threads, self.prefetch_factor = num_threads, prefetch_factor
        self.pin_memory = pin_memory

    def __iter__(self) -> Iterator[dict[str, Any]]:
        torch.empty((), dtype=torch.int64).random_()  # as torch's loader draws its workers' seed
        return self._made()

    def _made(self) -> Iterator[dict[str, Any]]:
        pool = ThreadPoolExecutor(self.num_threads, thread_name_prefix="pictures")
        left, ahead = iter(self.batches), self.num_threads * self.prefetch_factor
        try:
            made: deque[Future[dict[str, Any]]] = deque(
                pool.submit(self._batch, keys) for keys in itertools.islice(left, ahead)
            )
            while made:
                batch = made.popleft().result()
                made.extend(pool.submit(self._batch, keys) for keys in itertools.islice(left, 1))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, keys: Sequence[Any]) -> dict[str, Any]:
        batch = self.collate([self.dataset[key] for key in keys])
        if not self.pin_memory:
            return batch
        return {
            key: value.pin_memory() if isinstance(value, torch.Tensor) else value
            for key, value in batch.items()
        }
