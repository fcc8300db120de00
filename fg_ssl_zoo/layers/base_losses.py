"""MoCo v2 and SimSiam as base losses of another method, with a common interface.

`methods/moco.py` and `methods/simsiam.py` describe them; heads (`layers/heads.py`), queue and
losses (`ops/`) are shared with these methods. The backbone is an argument of the call, so its
weights are registered once. A call changes no state, so it can be repeated on other images and
with another queue.
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
    """The result of a base loss on pairs of images.

    Attributes:
        loss: () mean over the images.
        h: Features with gradient: of the first views for MoCo, of first and second views for
            SimSiam.
        keys: MoCo's keys of this batch, which are not in the queue yet.
        metrics: Values for the log.
    """

    loss: Tensor
    h: Tensor
    keys: Tensor | None
    metrics: dict[str, Tensor]


class ContrastiveBase(nn.Module):
    """MoCo v2: projector, and a teacher of backbone and projector.

    Args:
        backbone: Backbone with features of size `width`.
        width: `d`.
        projection_size: Size of queries and keys.
        temperature: Temperature of InfoNCE.
    """

    def __init__(
        self, backbone: nn.Module, width: int, projection_size: int, temperature: float
    ) -> None:
        super().__init__()
        self.projector = moco_projector(width, projection_size)
        self.teacher = teacher_of(self.student(backbone))
        self.temperature = temperature

    def student(self, backbone: nn.Module) -> nn.Sequential:
        """The modules that the teacher averages."""
        return nn.Sequential(backbone, self.projector)

    def forward(
        self,
        backbone: nn.Module,
        first: Float[Tensor, "b 3 s s"],
        second: Float[Tensor, "b 3 s s"],
        queue: Queue | None,
    ) -> Agreement:
        """InfoNCE with the first images as queries and the second images as keys."""
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
        projection_size: Size of `z`.
        predictor_size: Width of the predictor's hidden layer.
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
        """Negative cosine of each prediction with the projection of the other image; no queue."""
        h = backbone(torch.cat([first, second]))
        z = self.projector(h)  # (2b, projection_size)
        return Agreement(
            cross_prediction(self.predictor(z), z), h, None, {"train/z_std": spread(z)}
        )


def take_in(queue: Queue | None, agreement: Agreement) -> None:
    """Push the keys of all processes into the queue, if there are any."""
    if queue is not None and agreement.keys is not None:
        queue.push(gather(agreement.keys))
