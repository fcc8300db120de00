"""Mean and variance of features during training; part of every checkpoint."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FeatureBank(nn.Module):
    """The newest feature vectors, and their exact moments.

    Args:
        size: Number of vectors that are stored.
        width: Width of a vector.

    Attributes:
        items: (size, width); zero where nothing has been written.
        count: () number of vectors pushed so far; the next is written at count modulo size.
    """

    items: Tensor
    count: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("items", torch.zeros(size, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, new: Float[Tensor, "n d"]) -> None:
        """Replace the oldest vectors by those of all processes; the result is equal on each."""
        size = len(self.items)
        numbers = self.count + torch.arange(len(new), device=new.device)
        self.items[numbers[-size:] % size] = new[-size:].to(self.items.dtype)
        self.count += len(new)

    @torch.no_grad()
    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and variance (divided by n) of the stored vectors; zero if there are none."""
        size = len(self.items)
        kept = (torch.arange(size, device=self.items.device) < self.count)[:, None]
        number = self.count.clamp(1, size)
        mean = self.items.sum(0) / number  # unwritten rows are zero
        return mean, ((self.items - mean).square() * kept).sum(0) / number


class MovingMean(nn.Module):
    """Exponential moving average of vectors; at the beginning it is their plain mean.

    The n-th vector has weight max(1 / n, 1 - decay), so no bias correction is needed.

    Args:
        width: Width of a vector.
        decay: Share of the old value that is kept in the long run.
    """

    value: Tensor
    count: Tensor

    def __init__(self, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, new: Float[Tensor, " d"]) -> None:
        """Update with a vector that is equal on all processes."""
        self.count += 1
        self.value.lerp_(new.to(self.value.dtype), (1 / self.count).clamp_min(1 - self.decay))


class MovingMoments(nn.Module):
    """Moving averages of features and of their squares: little memory, but not exact.

    Args:
        width: Width of a feature vector.
        decay: Share of the average that is kept at each batch.
    """

    def __init__(self, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.width = width
        self.both = MovingMean(2 * width, decay)

    @torch.no_grad()
    def push(self, new: Float[Tensor, "n d"]) -> None:
        """Update with the batch of all processes; the result is equal on each."""
        self.both.push(torch.cat([new.mean(0), new.square().mean(0)]))

    @torch.no_grad()
    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and variance; zero before the first batch."""
        mean, square = self.both.value.split(self.width)
        return mean.clone(), (square - mean.square()).clamp_min(0)
