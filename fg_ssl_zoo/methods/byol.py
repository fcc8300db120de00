"""BYOL: from one view of an image, predict the teacher's projection of the other view.

Paper: Grill et al., 2020 (arXiv 2006.07733).

    views      two independent draws of one image
    student    p = predictor(projector(backbone(view)))
    teacher    t = the teacher's projection of the other view, without gradient
    loss       2 - 2 cos(p0, t1) + 2 - 2 cos(p1, t0) (eq. 2)
    teacher    <- m teacher + (1 - m) student, after each step (eq. 1), with
               m = 1 - (1 - m0) (cos(pi k / K) + 1) / 2 at step k of K

Student and teacher are the paper's online and target networks. There are no negatives; the
predictor and the slow teacher prevent a collapse. `train/z_std` is about 1 / sqrt(projection_size)
in normal training and 0 after a collapse.

Deviations: BatchNorms see both views of the batch together (paper: one view at a time). The teacher
starts as a copy of the student (paper: another random initialisation), and its running statistics
follow the student's. Hidden layers have no bias before their norm, which would cancel it. Colour
jitter is one affine map (see `data/views.py`).
"""

from typing import Any

import torch
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Count, Share
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.heads import mlp
from fg_ssl_zoo.layers.momentum import follow, teacher_of
from fg_ssl_zoo.method import Batch, Method, MethodOutput
from fg_ssl_zoo.ops.schedules import cosine
from fg_ssl_zoo.ops.similarity import mean_cosine, spread


class BYOL(Method):
    """BYOL around a backbone.

    Args:
        backbone: The network to train; gives the pooled features `h`.
        momentum: Momentum of the teacher at the first step, `m0`; it rises to 1. The official code
            uses 0.99 for 100 and 300 epochs of ImageNet and 0.996 for 1,000.
        hidden_size: Width of the hidden layer of projector and predictor; 4,096 in the paper.
        projection_size: Size of the projections `z` and the predictions `p`; 256 in the paper.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `byol`, whose two views differ in blur and solarisation.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
    """

    papers = (
        "Grill et al.: Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning. "
        "NeurIPS 2020, arXiv 2006.07733.",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        momentum: Share = 0.99,
        hidden_size: Count = 4096,
        projection_size: Count = 256,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        self.projector = mlp([backbone.num_features, hidden_size, projection_size])
        self.predictor = mlp([projection_size, hidden_size, projection_size])
        self.teacher = teacher_of(nn.Sequential(self.backbone, self.projector))
        self.momentum = momentum
        self.augmentations = augmentations_of(preset, augmentation, paper="byol")

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        return RandomViews(image_size, self.augmentations, (None, None))

    def forward(self, batch: Batch) -> MethodOutput:
        """The loss of `images` (b, 2, h, w, 3); each network takes both views in one pass."""
        images = self.backbone.normalize(batch["images"].transpose(0, 1).flatten(0, 1))
        z = self.projector(self.backbone(images))  # (2b, projection_size)
        p0, p1 = self.predictor(z).chunk(2)
        with torch.no_grad():
            t0, t1 = self.teacher(images).chunk(2)
        loss = 2 - 2 * mean_cosine(p0, t1) + 2 - 2 * mean_cosine(p1, t0)
        return MethodOutput(loss, {"train/z_std": spread(z)})

    def on_step_end(self, progress: float) -> None:
        """Update the teacher, with a momentum that rises to 1."""
        momentum = cosine(self.momentum, 1.0, progress)
        follow(self.teacher, nn.Sequential(self.backbone, self.projector), momentum)
