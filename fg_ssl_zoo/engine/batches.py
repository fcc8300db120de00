"""Batches on the device: on a GPU the next one is copied while the step computes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from fg_ssl_zoo.data.device_views import finish
from fg_ssl_zoo.method import Batch


def on_device(
    loader: Iterable[dict[str, Any]], device: torch.device, note_corrupt: Callable[[list], None]
) -> Iterator[Batch]:
    """Batches of a loader on a device, with finished views.

    On a GPU, a batch is copied from pinned memory on a stream of its own, one ahead; the step's
    stream waits for the copy and not the other way round. Elsewhere it is copied when asked for.

    Args:
        loader: Gives uint8 images and `corrupt`, the names of unreadable ones.
        device: Device of the run.
        note_corrupt: Is given these names when the batch is handed over.
    """
    if device.type != "cuda":
        for batch in loader:
            note_corrupt(batch.pop("corrupt"))
            yield cast(Batch, finish(cast(dict, send_to_device(batch, device))))
        return
    copying, waiting = torch.cuda.Stream(device), None
    for batch in loader:
        corrupt = batch.pop("corrupt")
        with torch.cuda.stream(copying):
            moved = cast(dict, send_to_device(batch, device, non_blocking=True))
            copied = copying.record_event()
        if waiting is not None:
            yield _handed_over(*waiting, note_corrupt)
        waiting = (moved, corrupt, copied)
    if waiting is not None:
        yield _handed_over(*waiting, note_corrupt)


def _handed_over(
    batch: dict[str, Any], corrupt: list, copied: torch.Event, note_corrupt: Callable[[list], None]
) -> Batch:
    """A copied batch for the stream of the step."""
    note_corrupt(corrupt)
    current = torch.cuda.current_stream()
    current.wait_event(cast(torch.cuda.Event, copied))
    for value in batch.values():
        if isinstance(value, Tensor):
            value.record_stream(current)  # until the step has read it, its memory is not reused
    return cast(Batch, finish(batch))
