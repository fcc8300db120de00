"""The order of images in every epoch, and the share of each process."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Order:
    """Which images a step sees.

    Attributes:
        num_images: Number of images in the data set.
        batch_size: Batch size of all processes together; the rest of an epoch is dropped.
        seed: Seed of the permutations.
    """

    num_images: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.batch_size > self.num_images:
            raise ValueError(
                f"train.batch_size: {self.batch_size} is more than the {self.num_images} "
                f"training images; use {self.num_images} or less"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of one pass."""
        return self.num_images // self.batch_size

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """(epoch, index) of every image of a step."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        order = _permutation(self.num_images, self.seed, epoch)[start : start + self.batch_size]
        return [(epoch, int(index)) for index in order]


@functools.lru_cache(maxsize=1)
def _permutation(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the images in an epoch; kept while its steps are asked for one after the other."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


def pictures_of_a_pass(batch_size: int, world: int, parts: int, where: str = "train") -> int:
    """Number of images in one forward pass of one process.

    Args:
        batch_size: Batch size of one optimizer step, all processes together.
        world: Number of processes.
        parts: Number of accumulated parts of a batch.
        where: Path of the settings, for the error.

    Raises:
        ValueError: Processes and parts do not divide the batch.
    """
    if batch_size % (world * parts):
        raise ValueError(
            f"{where}.batch_size: {batch_size} is not divisible by {world} processes "
            f"x {parts} accumulated parts"
        )
    return batch_size // (world * parts)


class Share(Sampler[list[tuple[int, int]]]):
    """This process's rows of every step in [first, last), in `parts` batches a step."""

    def __init__(self, order: Order, steps: range, rank: int, world: int, parts: int) -> None:
        self.rows = pictures_of_a_pass(order.batch_size, world, parts)
        self.order, self.steps, self.parts = order, steps, parts
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return len(self.steps) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            drawn = self.order(step)
            for part in range(self.parts):
                start = (part * self.world + self.rank) * self.rows
                yield drawn[start : start + self.rows]
