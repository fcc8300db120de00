"""The newest embeddings of earlier batches, as negatives."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Queue(nn.Module):
    """A ring of unit vectors; part of every checkpoint.

    It starts as random directions (as in facebookresearch/moco). A batch that passes the end goes
    on at the beginning, so its size need not divide the queue's, as it must there.

    Args:
        size: Vectors that are kept.
        width: Of a vector.

    Attributes:
        items: (size, width), unit length.
        place: () where the next batch is written.
    """

    items: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("items", F.normalize(torch.randn(size, width), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Float[Tensor, "k d"]:
        """A copy of `items`: a gradient needs them as they were, and `push` writes over them."""
        return self.items.clone()

    @torch.no_grad()
    def push(self, new: Float[Tensor, "n d"]) -> None:
        """Write vectors over the oldest ones; those of all processes, the same on each.

        Raises:
            ValueError: More vectors than the queue holds.
        """
        size = len(self.items)
        if len(new) > size:
            raise ValueError(
                f"queue_size: {size} is smaller than the batch of {len(new)} images; at least "
                f"{len(new)} would do"
            )
        places = (self.place + torch.arange(len(new), device=new.device)) % size
        self.items[places] = F.normalize(new.float(), dim=-1).to(self.items.dtype)
        self.place.copy_((self.place + len(new)) % size)
