"""Mean and variance of features over the data, as training goes on; parts of every checkpoint."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FeatureBank(nn.Module):
    """The newest feature vectors, and their exact moments.

    Args:
        size: Vectors that are kept.
        width: Of a vector.

    Attributes:
        items: (size, width), zero where nothing has been written.
        count: () vectors that were ever pushed; the next is written at this number modulo the size.
    """

    items: Tensor
    count: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("items", torch.zeros(size, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, new: Float[Tensor, "n d"]) -> None:
        """Write vectors over the oldest ones; those of all processes, the same on each."""
        size = len(self.items)
        numbers = self.count + torch.arange(len(new), device=new.device)
        self.items[numbers[-size:] % size] = new[-size:].to(self.items.dtype)
        self.count += len(new)

    @torch.no_grad()
    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and variance (over n, not n - 1) of what is kept; zero of nothing."""
        size = len(self.items)
        kept = (torch.arange(size, device=self.items.device) < self.count)[:, None]
        number = self.count.clamp(1, size)
        mean = self.items.sum(0) / number  # what is not written yet is zero
        return mean, ((self.items - mean).square() * kept).sum(0) / number


class MovingMean(nn.Module):
    """Exponential moving average of vectors, which begins as their plain mean.

    The weight of a new vector is 1 / n for the n-th, and never below `1 - decay`, so that no
    correction for the start is needed.

    Args:
        width: Of a vector.
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
        """Move towards a vector; the same on all processes."""
        self.count += 1
        self.value.lerp_(new.to(self.value.dtype), (1 / self.count).clamp_min(1 - self.decay))


class MovingMoments(nn.Module):
    """Moving averages of features and of their squares: next to no memory, and not exact.

    Args:
        width: Of a feature vector.
        decay: Of a batch.
    """

    def __init__(self, width: int, decay: float = 0.99) -> None:
        super().__init__()
        self.width = width
        self.both = MovingMean(2 * width, decay)

    @torch.no_grad()
    def push(self, new: Float[Tensor, "n d"]) -> None:
        """Count a batch; that of all processes, the same on each."""
        self.both.push(torch.cat([new.mean(0), new.square().mean(0)]))

    @torch.no_grad()
    def moments(self) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Mean and variance; zero before the first batch."""
        mean, square = self.both.value.split(self.width)
        return mean.clone(), (square - mean.square()).clamp_min(0)
