"""Momentum teacher: a network whose weights are a moving average of the student's."""

import copy
from typing import TypeVar

import torch
from timm.layers.drop import DropPath
from torch import nn

from fg_ssl_zoo.layers.frozen import TRACKING

Network = TypeVar("Network", bound=nn.Module)


def teacher_of(student: Network) -> Network:
    """A copy that receives no gradient.

    In training, its norms use the statistics of the batch. Its running statistics change only by
    `follow`, like its weights.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if getattr(module, TRACKING, False):
            setattr(module, TRACKING, False)
    return teacher


def keep_all_paths(network: nn.Module) -> None:
    """Remove stochastic depth and dropout permanently, also in training mode.

    A teacher in training mode would otherwise give random outputs. DINO builds its teacher without
    them (facebookresearch/dino).
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
        teacher: Module that `teacher_of` returned; changed in place.
        student: Module with the same structure.
        momentum: Momentum in 0..1; with 1 the teacher does not change.
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
        counters = [(a, b) for a, b in pairs if not a.is_floating_point()]
        if counters:  # of batches; one kernel instead of one for each norm
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [a for a, _ in counters], [b for _, b in counters]
            )
