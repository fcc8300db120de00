"""MoCo v2: match two views of an image against a queue of keys of earlier batches.

Papers: He, Fan, Wu, Xie & Girshick, 2020 (arXiv 1911.05722), with the head and the views of Chen,
Fan, Girshick & He, 2020 (arXiv 2003.04297).

    views      two independent draws of one image
    query      q = projector(backbone(first view))
    key        k = teacher(second view), without gradient
    loss       InfoNCE of q, its own k, and the keys in the queue (eq. 1)
    queue      after the loss, the keys of all processes replace the oldest ones
    teacher    <- m teacher + (1 - m) student, after each step (eq. 2)

Student and teacher are the papers' query encoder and key encoder.

Deviations in BatchNorm: in one batch, a query and its key share batch statistics, and the keys in
the queue have others, so that a network could recognise its own key by them. The official code
shuffles the images of the keys among GPUs to prevent this. Here the statistics are synchronised
over all processes instead. The influence of one image on the statistics of a whole batch is small
but not zero, as in the official code on one GPU. The head has no norm, and a ViT has no BatchNorm.
Running statistics of the teacher follow the student's.

Other deviations: the batch need not divide the queue. The teacher's momentum rises
(`momentum_end`), since a constant 0.999 is slow if an epoch has 50 steps. Each view may be query
and key (`symmetric`). Biases and norms have no weight decay (official code: all parameters have
it). Colour jitter is one affine map (see `data/views.py`).
"""

from typing import Any

import torch
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Count, Positive, Share
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.heads import moco_projector
from fg_ssl_zoo.layers.momentum import follow, teacher_of
from fg_ssl_zoo.layers.queue import Queue
from fg_ssl_zoo.method import Batch, Method, MethodOutput
from fg_ssl_zoo.ops.contrastive import info_nce_logits, own_key_accuracy, own_key_loss
from fg_ssl_zoo.ops.distributed import gather
from fg_ssl_zoo.ops.schedules import cosine
from fg_ssl_zoo.ops.similarity import unit


class MoCo(Method):
    """MoCo v2 around a backbone.

    Args:
        backbone: The network to train; gives the pooled features `h`.
        temperature: Temperature of InfoNCE; 0.2 in v2, 0.07 in v1.
        queue_size: Number of keys that are kept as negatives, at least a batch; 65,536 in the
            papers on ImageNet. Where a recipe does not set it: half of the training images, at most
            4,096 and at least a batch (our choice), because a longer queue holds older keys of the
            query's own image.
        momentum: Momentum of the teacher at the first step; 0.999 in the papers, 0.99 in
            solo-learn's ImageNet-100 recipe, which suits short runs.
        momentum_end: Momentum of the teacher at the last step, reached along a cosine; 0.999 in the
            papers.
        hidden_size: Width of the projector's hidden layer; the backbone's number of features `d`
            when not given, as in the official code.
        projection_size: Size of queries and keys; 128 in the papers.
        symmetric: Whether each view is query and key in turn, at twice the cost; the queue takes
            the keys of the second views. Not in the papers.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `moco_v2`.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
    """

    papers = (
        "He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation "
        "Learning. CVPR 2020, arXiv 1911.05722.",
        "Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning. "
        "arXiv 2003.04297, 2020.",
    )
    figures = (
        "67.5 % linear on ImageNet, ResNet-50, 200 epochs (facebookresearch/moco)",
        "68.3 % linear on CUB, ResNet-50 from supervised ImageNet weights (table of LCR, "
        "CVPR 2023); 59.92 % in a rerun (GANPerf/LCR, issue 2)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: Positive = 0.2,
        queue_size: Count = 4096,
        momentum: Share = 0.99,
        momentum_end: Share = 0.999,
        hidden_size: Count | None = None,
        projection_size: Count = 128,
        symmetric: bool = False,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        self.projector = moco_projector(backbone.num_features, projection_size, hidden_size)
        self.teacher = teacher_of(nn.Sequential(self.backbone, self.projector))
        self.queue = Queue(queue_size, projection_size)
        self.temperature = temperature
        self.momentum, self.momentum_end = momentum, momentum_end
        self.symmetric = symmetric
        self.augmentations = augmentations_of(preset, augmentation, paper="moco_v2")

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        return RandomViews(image_size, self.augmentations, (None, None))

    def forward(self, batch: Batch) -> MethodOutput:
        """InfoNCE of `images` (b, 2, h, w, 3); updates the queue."""
        first, second = self.backbone.normalize(batch["images"].transpose(0, 1))
        seen, partner = first, second
        if self.symmetric:
            seen, partner = torch.cat([first, second]), torch.cat([second, first])
        queries = self.projector(self.backbone(seen))
        with torch.no_grad():
            keys = unit(self.teacher(partner))
        logits = info_nce_logits(queries, keys, self.queue.negatives(), self.temperature)
        self.queue.push(gather(keys[: len(first)]))
        return MethodOutput(own_key_loss(logits), {"train/accuracy": own_key_accuracy(logits)})

    def on_step_end(self, progress: float) -> None:
        """Update the teacher."""
        momentum = cosine(self.momentum, self.momentum_end, progress)
        follow(self.teacher, nn.Sequential(self.backbone, self.projector), momentum)
