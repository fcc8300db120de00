"""Heads and loss of two methods that others build on: MoCo v2 and SimSiam on pairs of images.

Papers: He et al., 2020 (arXiv 1911.05722) with the head of Chen et al., 2020 (arXiv 2003.04297);
Chen & He, 2021 (arXiv 2011.10566). `methods/moco.py` and `methods/simsiam.py` explain them.

The backbone is an argument of the call, so that its weights have one name in a method.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.layers.heads import mlp
from fg_ssl_zoo.layers.momentum import teacher_of
from fg_ssl_zoo.layers.queue import Queue
from fg_ssl_zoo.ops.contrastive import info_nce_logits, own_key_accuracy, own_key_loss
from fg_ssl_zoo.ops.distributed import gather
from fg_ssl_zoo.ops.similarity import mean_cosine, spread, unit


class Agreement(NamedTuple):
    """What a base loss says of pairs of images.

    Attributes:
        loss: () mean over the images.
        h: Features of the images that carry the gradient, those of first views first; SimSiam's are
            those of both views.
        keys: Of MoCo, which the queue has not taken in yet.
        metrics: Signs of health, for the log.
    """

    loss: Tensor
    h: Tensor
    keys: Tensor | None
    metrics: dict[str, Tensor]


class ContrastiveBase(nn.Module):
    """MoCo v2: projector, and a teacher of backbone and projector.

    Args:
        backbone: Of features of `width` numbers.
        width: `d`.
        projection_size: Of queries and keys; 128 in the paper.
        temperature: 0.2 in v2.
    """

    def __init__(
        self, backbone: nn.Module, width: int, projection_size: int, temperature: float
    ) -> None:
        super().__init__()
        self.projector = mlp([width, width, projection_size], norm=False, bias=True)
        self.teacher = teacher_of(self.student(backbone))
        self.temperature = temperature

    def student(self, backbone: nn.Module) -> nn.Sequential:
        """What the teacher follows."""
        return nn.Sequential(backbone, self.projector)

    def forward(
        self,
        backbone: nn.Module,
        first: Float[Tensor, "b 3 s s"],
        second: Float[Tensor, "b 3 s s"],
        queue: Queue | None,
    ) -> Agreement:
        """InfoNCE of the first images as queries and the second ones as keys."""
        assert queue is not None
        h = backbone(first)
        queries = self.projector(h)
        with torch.no_grad():
            keys = unit(self.teacher(second))
        negatives = queue.items.clone()  # the gradient needs them as they were
        logits = info_nce_logits(queries, keys, negatives, self.temperature)
        metrics = {"train/accuracy": own_key_accuracy(logits)}
        return Agreement(own_key_loss(logits), h, keys, metrics)


class PredictiveBase(nn.Module):
    """SimSiam: projector and predictor.

    Args:
        width: `d`, of the features.
        projection_size: Of `z` and of the projector's hidden layers; 2,048 in the paper.
        predictor_size: Hidden width of the predictor; 512 in the paper.
    """

    def __init__(self, width: int, projection_size: int, predictor_size: int) -> None:
        super().__init__()
        self.projector = mlp([width, *[projection_size] * 3], last_norm=True)
        self.predictor = mlp([projection_size, predictor_size, projection_size], bias=True)

    def forward(
        self,
        backbone: nn.Module,
        first: Float[Tensor, "b 3 s s"],
        second: Float[Tensor, "b 3 s s"],
        queue: Queue | None,
    ) -> Agreement:
        """Minus the cosine of each image's prediction with the other's projection."""
        h = backbone(torch.cat([first, second]))
        z = self.projector(h)  # (2b, projection_size)
        p0, p1 = self.predictor(z).chunk(2)
        z0, z1 = z.detach().chunk(2)
        loss = -(mean_cosine(p0, z1) + mean_cosine(p1, z0)) / 2
        return Agreement(loss, h, None, {"train/z_std": spread(z)})


def take_in(queue: Queue | None, agreement: Agreement) -> None:
    """Push the keys of all processes, if there are any."""
    if queue is not None and agreement.keys is not None:
        queue.push(gather(agreement.keys))
