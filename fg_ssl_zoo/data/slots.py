"""Transfer batches of loader processes through reused shared memory.

torch allocates new shared memory for every batch, whose pages the kernel must clear and map. Here,
a process creates a few slots with its first batches and sends their tensors once. Later batches are
stacked into the same memory, and only the number of the slot is sent.

A loader process has at most `prefetch_factor` batches that the training process has not taken. With
one more slot, a slot is reused only after its batch was copied.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Room = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""Key, shape and type -> a tensor to write to."""


def stacked(key: str, values: Sequence[Any], room: Room | None = None) -> Tensor:
    """Arrays, tensors or numbers of the rows of a batch as one tensor.

    Args:
        key: Key of the batch.
        values: One of each row, of equal shape.
        room: Where the tensor is written; new memory when not given.
    """
    first = values[0]
    if isinstance(first, np.ndarray):
        if room is None:
            return torch.from_numpy(np.stack(values))
        kind = torch.from_numpy(np.empty(0, first.dtype)).dtype
        out = room(key, (len(values), *first.shape), kind)
        np.stack(values, out=out.numpy())
        return out
    made = torch.stack(list(values)) if isinstance(first, Tensor) else torch.tensor(values)
    return made if room is None else room(key, tuple(made.shape), made.dtype).copy_(made)


@dataclass
class Filled:
    """What a loader process sends for a batch.

    Attributes:
        reader: Number of the reader that holds the slots.
        slot: (process, number of the slot in it).
        rows: Key -> rows of the batch.
        new: Tensors that the reader does not have yet.
        corrupt: The batch's.
    """

    reader: int
    slot: tuple[int, int]
    rows: dict[str, int]
    new: dict[str, Tensor]
    corrupt: list[str]

    def pin_memory(self) -> dict[str, Any]:
        """The batch in pinned memory; torch's thread for that calls this as soon as it comes."""
        held = _READERS[self.reader].tensors_of(self)
        return {"corrupt": self.corrupt, **{k: value.pin_memory() for k, value in held.items()}}


@dataclass
class SlotReader:
    """The training process's side: knows the slots of all loader processes of one loader."""

    number: int = field(default_factory=itertools.count().__next__)
    held: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _READERS[self.number] = self

    def __call__(self, message: Any) -> dict[str, Any]:
        """A copy of the batch in a slot; a message that used no slot is returned as it is."""
        if not isinstance(message, Filled):
            return message
        held = self.tensors_of(message)
        return {"corrupt": message.corrupt, **{key: value.clone() for key, value in held.items()}}

    def tensors_of(self, message: Filled) -> dict[str, Tensor]:
        """The rows of a batch in its slot, which are written again later."""
        slot = self.held.setdefault(message.slot, {})
        slot.update(message.new)
        return {key: slot[key][:rows] for key, rows in message.rows.items()}


_READERS: "WeakValueDictionary[int, SlotReader]" = WeakValueDictionary()


class SlotCollate:
    """The loader process's side.

    Args:
        collate: Rows and a `Room` -> batch; an empty batch is sent as it is.
        count: Slots of each process.
    """

    def __init__(
        self, collate: Callable[[Sequence[dict[str, Any]], Room], dict[str, Any]], count: int
    ) -> None:
        self.collate, self.reader = collate, -1
        self.slots: list[dict[str, Tensor]] = [{} for _ in range(count)]
        self.turn = 0

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Filled | dict[str, Any]:
        """Stack the rows into the next slot."""
        number, self.turn = self.turn, (self.turn + 1) % len(self.slots)
        slot, new = self.slots[number], {}

        def room(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            there = slot.get(key)
            if (
                there is None
                or there.dtype != dtype
                or there.shape[1:] != shape[1:]
                or len(there) < shape[0]
            ):
                slot[key] = new[key] = there = torch.empty(shape, dtype=dtype).share_memory_()
            return there[: shape[0]]

        batch = self.collate(rows, room)
        if not batch:
            return batch
        corrupt = batch.pop("corrupt")
        worker = get_worker_info()
        assert worker is not None  # a loader without processes has no slots
        sizes = {key: len(value) for key, value in batch.items()}
        return Filled(self.reader, (worker.id, number), sizes, new, corrupt)
