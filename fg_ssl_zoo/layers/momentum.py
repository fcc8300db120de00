"""Teacher of a student: the same network, whose weights are a slow average of the student's."""

import copy
from typing import TypeVar

import torch
from timm.layers.drop import DropPath
from torch import nn

from fg_ssl_zoo.layers.frozen import TRACKING

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy that receives no gradient.

    In training its norms work with the statistics of the batch it is shown, and leave the running
    ones alone: these are its own, and they, too, move by `follow` only.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if getattr(module, TRACKING, False):
            setattr(module, TRACKING, False)
    return teacher


def keep_all_paths(network: nn.Module) -> None:
    """Switch off stochastic depth and dropout for good, in training mode too.

    A teacher that stays in training mode for its norms would else answer at random. DINO's is built
    without them (facebookresearch/dino).
    """
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Teacher <- momentum * teacher + (1 - momentum) * student, weights and running statistics.

    Args:
        teacher: Of `teacher_of`; is changed.
        student: Has the same parts in the same order.
        momentum: 1 leaves the teacher as it is.
    """
    for theirs, own in (
        (list(teacher.parameters()), list(student.parameters())),
        (list(teacher.buffers()), list(student.buffers())),
    ):
        assert [x.shape for x in theirs] == [x.shape for x in own]
        pairs = list(zip(theirs, own, strict=True))
        moving = [(a, b) for a, b in pairs if a.is_floating_point()]
        if moving:
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                [a for a, _ in moving], [b for _, b in moving], 1 - momentum
            )
        for a, b in pairs:  # counts of batches
            if not a.is_floating_point():
                a.copy_(b)
