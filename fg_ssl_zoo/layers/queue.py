"""The newest embeddings of earlier batches, as negatives."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Queue(nn.Module):
    """A ring buffer of unit vectors; part of every checkpoint.

    It starts with random directions, as in facebookresearch/moco. A batch that passes the end
    continues at the beginning, so the batch size need not divide the queue size.

    Args:
        size: Number of vectors that are stored.
        width: Width of a vector.

    Attributes:
        items: (size, width), unit length.
        place: () index at which the next batch is written.
    """

    items: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("items", F.normalize(torch.randn(size, width), dim=-1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def negatives(self) -> Float[Tensor, "k d"]:
        """A copy of `items`, since the backward pass needs the values that `push` overwrites."""
        return self.items.clone()

    @torch.no_grad()
    def push(self, new: Float[Tensor, "n d"]) -> None:
        """Replace the oldest vectors by those of all processes; the result is equal on each.

        Raises:
            ValueError: There are more vectors than the queue can hold.
        """
        size = len(self.items)
        if len(new) > size:
            raise ValueError(
                f"queue_size: {size} is smaller than the batch of {len(new)} images; use at least "
                f"{len(new)}"
            )
        places = (self.place + torch.arange(len(new), device=new.device)) % size
        self.items[places] = F.normalize(new.float(), dim=-1).to(self.items.dtype)
        self.place.copy_((self.place + len(new)) % size)
