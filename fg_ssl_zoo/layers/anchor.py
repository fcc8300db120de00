"""A term that keeps a network near its start: the features of the same pictures stay alike.

    loss + weight * mean over pictures of 1 - cos(h, h_start)

Feature distillation to the start (Li & Hoiem, 2016, arXiv 1606.09282, keep the outputs; features
as in Romero et al., 2015): the pictures are those that the method shows its backbone, the start is
fixed and in evaluation mode.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Heard = list[tuple[Tensor, Tensor]]
"""Normalised pictures and the features of them that carry a gradient, pass by pass."""


@runtime_checkable
class Listened(Protocol):
    """A network that reports its passes to `listener`."""

    listener: Heard | None


class Anchor:
    """The start of a stage and how strongly it holds.

    Args:
        start: Is copied; neither trained nor part of a checkpoint.
        weight: Of the term.
    """

    def __init__(self, start: nn.Module, weight: float) -> None:
        self.start = copy.deepcopy(start).eval().requires_grad_(False)
        self.weight = weight

    def loss(self, heard: Heard) -> Tensor:
        """The weighted term of the passes of one step.

        Raises:
            ValueError: The method has asked the backbone for no pooled features.
        """
        if not heard:
            raise ValueError(
                "start_distillation: this method reads no pooled features of the backbone; "
                "0 would do"
            )
        self.start.to(heard[0][0].device)
        errors = []
        for images, features in heard:
            with torch.no_grad():
                kept = self.start(images)
            errors.append(1 - F.cosine_similarity(features.float(), kept.float(), dim=-1))
        return self.weight * torch.cat(errors).mean()


@contextmanager
def listening(network: Listened) -> Iterator[Heard]:
    """What a network is shown and says with a gradient, until the block ends."""
    network.listener = heard = []
    try:
        yield heard
    finally:
        network.listener = None
