"""Communication between processes with gradients; without effect in a single process."""

import os
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def world_size() -> int:
    """Number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def local_processes(default: int = 1) -> int:
    """Number of training processes on this machine, as the launcher says; 1 or more."""
    return max(1, _launched("LOCAL_WORLD_SIZE", default))


def local_rank() -> int:
    """Number of this process among those of its machine, from 0, as the launcher says."""
    return _launched("LOCAL_RANK", 0)


def _launched(variable: str, default: int) -> int:
    """A number that a launcher sets; what is no number counts as not set."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else default


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error means that another process has ended; gloo raises plain RuntimeErrors."""
    text = str(error).lower()
    said = "gloo" in text or "connection closed by peer" in text or "connection reset" in text
    known = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and said)
    return known and dist.is_initialized() and dist.get_world_size() > 1


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone(memory_format=torch.contiguous_format)  # others may read it too
        dist.all_reduce(total)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(x: Float[Tensor, "n d"]) -> Float[Tensor, "m d"]:
    """Rows of all processes in rank order, (n, d) -> (n * world, d), with gradient.

    Every process must have the same number of rows. If the loss is the mean over a process's *own*
    anchors, the gradient averaged by data-parallel training equals that of the whole batch.
    """
    return _AllGather.apply(x) if world_size() > 1 else x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sum_over_processes(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Sum of a tensor over all processes, with gradient."""
    return _Sum.apply(x) if world_size() > 1 else x


@torch.no_grad()
def mean_over_processes(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Mean of a tensor over all processes, without gradient."""
    return sum_over_processes(x) / world_size()


@torch.no_grad()
def own_share_of_first(x: Float[Tensor, "m ..."]) -> Float[Tensor, "_ ..."]:
    """This process's rows of a tensor that the first process has drawn for all images.

    The draw therefore does not depend on the number of processes.

    Args:
        x: One row for each image of all processes; the same shape on every process.
    """
    if world_size() == 1:
        return x
    x = x.contiguous()
    dist.broadcast(x, src=0)
    return x.chunk(world_size())[rank()]
