"""Which images a step reads: the order of every epoch, and the share of each process.

The order is a pure function of (seed, batch size, epoch), so a run continues at any step without a
saved state, and is the same for any number of processes and workers.

    one group               a permutation of all images in every epoch
    groups with weights     each source has its own sequence of permutations, and an epoch takes the
                            next round(weight * count) images of it; the sources are mixed
    blocks (shards)         blocks are shuffled and dealt to `LANES` lanes; each lane is shuffled
                            in a moving buffer; a batch takes the same number from each lane

A process reads the same lanes in every step, and so its own shards, where the number of processes
divides `LANES` and the batch.
"""

import functools
import math
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import Sampler

LANES = 16
"""Number of sequences of blocks that are read in parallel."""


@dataclass(frozen=True, eq=False)
class Group:
    """Consecutive images of a data set that are ordered together.

    Attributes:
        count: Number of images.
        weight: How often each image is read in an epoch, on average.
        blocks: (k,) numbers of images in each block, which is fast to read as a whole (a tar file,
            a row group); their sum is `count`.
        buffer: Number of images of consecutive blocks that are shuffled together; all when not
            given.
    """

    count: int
    weight: float = 1.0
    blocks: np.ndarray | None = None
    buffer: int | None = None

    @property
    def per_epoch(self) -> int:
        """Images of this group in every epoch."""
        return max(1, round(self.weight * self.count))


@runtime_checkable
class HasGroups(Protocol):
    """Images that have weights, or that are slow to read in an arbitrary order."""

    @property
    def groups(self) -> list[Group]:
        """Groups that together contain all images, in their order."""
        ...


def groups_of(images: Sized) -> list[Group]:
    """The groups of a source; one group of all images if it declares none."""
    return images.groups if isinstance(images, HasGroups) else [Group(len(images))]


def order_of(images: Sized, batch_size: int, seed: int) -> "Order":
    """The order in which a source is trained on."""
    return Order(len(images), batch_size, seed, tuple(groups_of(images)))


@dataclass(frozen=True)
class Order:
    """Which images a step sees.

    Attributes:
        num_images: Number of images in the data set.
        batch_size: Batch size of all processes together; the rest of an epoch is dropped.
        seed: Seed of the permutations.
        groups: Groups of the data set; one group of all images when not given.
    """

    num_images: int
    batch_size: int
    seed: int
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", (Group(self.num_images),))
        if self.batch_size > self.per_epoch:
            raise ValueError(
                f"train.batch_size: {self.batch_size} is more than the {self.per_epoch} "
                f"training images; use {self.per_epoch} or less"
            )

    @property
    def per_epoch(self) -> int:
        """Images of one epoch; with weights, another number than `num_images`."""
        return sum(group.per_epoch for group in self.groups)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of one pass."""
        return self.per_epoch // self.batch_size

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """(pass, index) of every image of a step; no two steps have the same.

        The pass is the epoch; with weights, how often the source of the image was read before.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.batch_size
        passes, indices = _epoch(self, epoch)
        rows = slice(start, start + self.batch_size)
        return list(zip(passes[rows].tolist(), indices[rows].tolist(), strict=True))


@functools.lru_cache(maxsize=1)
def _epoch(order: Order, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) pass and (n,) index of the images of an epoch, in the order of reading."""
    groups = order.groups
    if len(groups) == 1 and groups[0].weight == 1:
        indices = _one_pass(groups[0], [order.seed, epoch], order.batch_size)
        return np.full(len(indices), epoch, np.int32), indices
    counts = [group.per_epoch for group in groups]
    mixed = np.repeat(np.arange(len(groups)), counts)
    mixed = np.random.default_rng([order.seed, epoch, len(groups)]).permutation(mixed)
    passes, indices = np.empty(len(mixed), np.int32), np.empty(len(mixed), np.int64)
    first = 0
    for number, (group, count) in enumerate(zip(groups, counts, strict=True)):
        drawn = np.arange(epoch * count, (epoch + 1) * count)  # counted from the start of the run
        which, within = np.divmod(drawn, group.count)
        own = np.empty(count, np.int64)
        for one in np.unique(which):
            sequence = _one_pass(group, [order.seed, int(one), number])
            own[which == one] = sequence[within[which == one]]
        passes[mixed == number], indices[mixed == number] = which, first + own
        first += group.count
    return passes, indices


def _one_pass(group: Group, seed: Sequence[int], batch_size: int = 1) -> np.ndarray:
    """(count,) indices: all images of a group once."""
    generator = np.random.default_rng(seed)
    if group.blocks is None or group.buffer is None or group.buffer >= group.count:
        return generator.permutation(np.arange(group.count, dtype=_number(group.count)))
    sequence = _blocks_in_turn(group.blocks, generator)
    lanes = math.gcd(batch_size, LANES)
    length = group.count // lanes
    for lane in range(lanes):
        rows = sequence[lane * length : (lane + 1) * length]
        places = np.arange(length) + generator.uniform(0, group.buffer, length)
        rows[:] = rows[np.argsort(places)]
    return _dealt(sequence, lanes, batch_size)


def _number(count: int) -> type[np.signedinteger[Any]]:
    """The smallest integer type that holds an index: the order of all images is kept in memory."""
    return np.int32 if count < 2**31 else np.int64


def _blocks_in_turn(sizes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Indices block by block, the blocks in a random order, each rotated by a random number.

    The images of an incomplete last batch are the end of this sequence, and are dropped. Without
    the rotation, a single block would lose the same last images in every epoch.
    """
    number = _number(int(sizes.sum()))
    chosen = generator.permutation(len(sizes))
    starts = (np.cumsum(sizes) - sizes)[chosen].astype(number)
    sizes = sizes[chosen].astype(number)
    turned = (generator.random(len(sizes)) * sizes).astype(number)
    each = np.repeat(np.arange(len(sizes), dtype=number), sizes)
    indices = np.arange(len(each), dtype=number)
    indices += (turned - (np.cumsum(sizes, dtype=number) - sizes))[each]
    indices %= sizes[each]
    indices += starts[each]
    return indices


def _dealt(sequence: np.ndarray, lanes: int, batch_size: int) -> np.ndarray:
    """Batches with the same number of images of each lane, lane by lane; the remainder is last."""
    length, each = len(sequence) // lanes, batch_size // lanes
    steps = length // each
    beside = sequence[: lanes * length].reshape(lanes, length)
    batches = beside[:, : steps * each].reshape(lanes, steps, each).transpose(1, 0, 2)
    left = beside[:, steps * each :]
    return np.concatenate([batches.reshape(-1), left.reshape(-1), sequence[lanes * length :]])


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
