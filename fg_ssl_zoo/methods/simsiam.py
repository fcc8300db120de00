"""SimSiam: from one view of an image, predict the network's own projection of the other view.

Paper: Chen & He, 2021 (arXiv 2011.10566).

    views      two independent draws of one image
    project    z = projector(backbone(view))
    predict    p = predictor(z)
    loss       -(cos(p0, stop(z1)) + cos(p1, stop(z0))) / 2 (eq. 4)

There are neither negatives nor a teacher; the predictor and the stopped gradient prevent a
collapse. `train/z_std` is 1 / sqrt(d) of `z` in normal training and 0 after a collapse (section
4.1). The learning rate of the predictor stays at its peak (`--fix-pred-lr` of the official code).

Deviations: BatchNorms see both views of the batch together (official code: one view at a time).
Biases and norms have no weight decay (official code: all parameters have it). Colour jitter is one
affine map (see `data/views.py`).
"""

from collections.abc import Iterator
from typing import Any

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Count
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.heads import simsiam_predictor, simsiam_projector
from fg_ssl_zoo.method import Batch, Method, MethodOutput
from fg_ssl_zoo.ops.similarity import cross_prediction, spread


class SimSiam(Method):
    """SimSiam around a backbone.

    Args:
        backbone: The network to train; gives the pooled features `h`.
        projection_size: Size of the projections `z` and width of the projector's two hidden layers;
            2,048 in the paper.
        predictor_size: Width of the predictor's hidden layer; 512 in the paper, a quarter of `z`.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `moco_v2`, as in the official code.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
    """

    papers = (
        "Chen, He: Exploring Simple Siamese Representation Learning. CVPR 2021, arXiv 2011.10566.",
    )
    figures = (
        "68.1 % linear on ImageNet, ResNet-50, 100 epochs at a batch of 512 "
        "(facebookresearch/simsiam)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        projection_size: Count = 2048,
        predictor_size: Count = 512,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        self.projector = simsiam_projector(backbone.num_features, projection_size)
        self.predictor = simsiam_predictor(projection_size, predictor_size)
        self.augmentations = augmentations_of(preset, augmentation, paper="moco_v2")

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        return RandomViews(image_size, self.augmentations, (None, None))

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """Parameters with the scheduled learning rate, and the predictor with a constant one."""
        predictor = list(self.predictor.parameters())
        apart = {id(p) for p in predictor}
        yield {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in apart]}
        yield {"params": predictor, "constant_lr": True}

    def forward(self, batch: Batch) -> MethodOutput:
        """The loss of `images` (b, 2, h, w, 3); both views take one pass."""
        images = self.backbone.normalize(batch["images"].transpose(0, 1).flatten(0, 1))
        z = self.projector(self.backbone(images))  # (2b, projection_size)
        p = self.predictor(z)
        return MethodOutput(cross_prediction(p, z), {"train/z_std": spread(z)})
