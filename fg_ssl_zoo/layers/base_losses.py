"""MoCo v2 and SimSiam as parts of another method: one face for both, on pairs of images.

What they are stands in `methods/moco.py` and `methods/simsiam.py`; their heads (`layers/heads.py`),
queue and losses (`ops/`) are the same ones. Here is what a method around them needs besides: the
backbone is an argument of the call, so that its weights have one name there, and the call may be
repeated, on other images and with another queue, before anything moves on.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.layers.heads import moco_projector, simsiam_predictor, simsiam_projector
from fg_ssl_zoo.layers.momentum import teacher_of
from fg_ssl_zoo.layers.queue import Queue
from fg_ssl_zoo.ops.contrastive import info_nce_logits, own_key_accuracy, own_key_loss
from fg_ssl_zoo.ops.distributed import gather
from fg_ssl_zoo.ops.similarity import cross_prediction, spread, unit


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
        projection_size: Of queries and keys.
        temperature: Of InfoNCE.
    """

    def __init__(
        self, backbone: nn.Module, width: int, projection_size: int, temperature: float
    ) -> None:
        super().__init__()
        self.projector = moco_projector(width, projection_size)
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
        with torch.no_grad():
            keys = unit(self.teacher(second))
        logits = info_nce_logits(self.projector(h), keys, queue.negatives(), self.temperature)
        metrics = {"train/accuracy": own_key_accuracy(logits)}
        return Agreement(own_key_loss(logits), h, keys, metrics)


class PredictiveBase(nn.Module):
    """SimSiam: projector and predictor.

    Args:
        width: `d`, of the features.
        projection_size: Of `z`.
        predictor_size: Hidden width of the predictor.
    """

    def __init__(self, width: int, projection_size: int, predictor_size: int) -> None:
        super().__init__()
        self.projector = simsiam_projector(width, projection_size)
        self.predictor = simsiam_predictor(projection_size, predictor_size)

    def forward(
        self,
        backbone: nn.Module,
        first: Float[Tensor, "b 3 s s"],
        second: Float[Tensor, "b 3 s s"],
        queue: Queue | None,
    ) -> Agreement:
        """Minus the cosine of each image's prediction with the other's projection; no queue."""
        h = backbone(torch.cat([first, second]))
        z = self.projector(h)  # (2b, projection_size)
        return Agreement(
            cross_prediction(self.predictor(z), z), h, None, {"train/z_std": spread(z)}
        )


def take_in(queue: Queue | None, agreement: Agreement) -> None:
    """Push the keys of all processes, if there are any."""
    if queue is not None and agreement.keys is not None:
        queue.push(gather(agreement.keys))
