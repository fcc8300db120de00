"""A loss term that keeps a network close to its start: the distance of their features.

    loss + weight * mean over images of 1 - cos(h, h_start)

Feature distillation from the start (after Li & Hoiem, 2016, arXiv 1606.09282, who distil outputs;
features as in Romero et al., 2015). The images are those that the method passes through its
backbone; the start is fixed and in evaluation mode.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Heard = list[tuple[Tensor, Tensor]]
"""Normalised images and their features with gradient, one pair per forward pass."""


@runtime_checkable
class Listened(Protocol):
    """A network that appends its forward passes to `listener`."""

    listener: Heard | None


class Anchor:
    """The loss term for the start of a stage.

    Args:
        start: Backbone that is copied; the copy is neither trained nor stored in checkpoints.
        weight: Weight of the loss term.
    """

    def __init__(self, start: nn.Module, weight: float) -> None:
        self.start = copy.deepcopy(start).eval().requires_grad_(False)
        self.weight = weight

    def loss(self, heard: Heard) -> Tensor:
        """The weighted loss term of the forward passes of one step.

        Raises:
            ValueError: The method has not used the pooled features of the backbone.
        """
        if not heard:
            raise ValueError(
                "start_distillation: this method reads no pooled features of the backbone; use 0"
            )
        device = heard[0][0].device
        if next(self.start.parameters()).device != device:  # faster than `to`, in each step
            self.start.to(device)
        errors = []
        for images, features in heard:
            with torch.no_grad():
                kept = self.start(images)
            errors.append(1 - F.cosine_similarity(features.float(), kept.float(), dim=-1))
        return self.weight * torch.cat(errors).mean()


@contextmanager
def listening(network: Listened) -> Iterator[Heard]:
    """Record the images and features of all forward passes with gradient inside the context."""
    network.listener = heard = []
    try:
        yield heard
    finally:
        network.listener = None
