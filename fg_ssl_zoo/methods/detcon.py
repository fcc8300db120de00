"""DetCon-B: match the regions of an image between its two views, against all other regions.

Paper: Henaff, Koppula, Alayrac, van den Oord, Vinyals & Carreira, 2021 (arXiv 2103.10957).

    annotate   regions of each image: Felzenszwalb's segments, before training
    views      two random views; the regions are cropped with the image
    pool       h_m = mean of the last feature map under region m
    student    p_m = predictor(projector(h_m))
    teacher    t_m = projector(h_m) of a moving average of the student's weights
    loss       `ops/region_contrast.py`, eq. 3: p_m of one view against t_m of the other; all other
               regions of all images of all processes are negatives

Deviations: the regions to compare are drawn once, among those that both views show (official code:
for each network and view, so that a region may have no positive). An image with a single region has
weight 0. Segments are computed on an image of at most 256 pixels, with a scale that follows its
area, and stored at 64 x 64. The views keep colour by default; `preset: paper` uses BYOL's, as the
paper does. The teacher starts as a copy of the student, and its running statistics follow the
student's. BatchNorms see both views of the batch together (official code: one view at a time).
"""

from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge, Le
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import train_up_to_last_map
from fg_ssl_zoo.config import Count, Positive, Share
from fg_ssl_zoo.data.regions import (
    Grid,
    RandomRegionViews,
    RegionsOf,
    Segments,
    check_given,
    given_parts,
    needs_segments,
    segment_notes,
)
from fg_ssl_zoo.data.sample import Images, Views
from fg_ssl_zoo.data.views import augmentations_of
from fg_ssl_zoo.layers.heads import mlp
from fg_ssl_zoo.layers.momentum import follow, teacher_of
from fg_ssl_zoo.method import Batch, Method, MethodOutput, Notes
from fg_ssl_zoo.ops.region_contrast import num_compared, pool_regions, region_contrast
from fg_ssl_zoo.ops.schedules import cosine
from fg_ssl_zoo.ops.similarity import spread


class DetCon(Method):
    """DetCon-B around a backbone.

    Args:
        backbone: The network to train; gives the last feature map.
        masks: Source of the regions: `felzenszwalb` segments, a `grid` of squares, or the part
            masks `given` by the data set.
        scale: Scale of the segmentation: a larger value gives fewer and larger segments; 1,000 in
            the paper.
        grid_size: Number of squares along a side of the grid.
        num_samples: Number of regions compared per image, drawn with replacement; 16 in the paper.
        temperature: Temperature of the contrastive loss; 0.1 in the paper.
        local_negatives: Whether the other regions of the same image are negatives, as in the paper.
        hidden_size: Width of the hidden layer of projector and predictor; 4,096 in the paper.
        projection_size: Size of the projections `z` and the predictions `p`; 256 in the paper.
        momentum: Momentum of the teacher at the first step; it rises to 1 along a cosine. 0.996 in
            the paper.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `byol`.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.

    Raises:
        ValueError: Segments are wanted and scikit-image is not installed, or the images are too
            small for the backbone.
    """

    papers = (
        "Henaff, Koppula, Alayrac, van den Oord, Vinyals, Carreira: Efficient Visual Pretraining "
        "with Contrastive Detection. ICCV 2021, arXiv 2103.10957.",
    )
    figures = (
        "35.4 % on CUB, 35.5 % on Aircraft, 29.7 % on Cars, linear, ResNet-50 pretrained on "
        "ImageNet (by PARTICLE's authors, arXiv 2309.13822)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        masks: Literal["felzenszwalb", "grid", "given"] = "felzenszwalb",
        scale: Positive = 1000,
        grid_size: Annotated[int, Ge(2), Le(16)] = 4,
        num_samples: Count = 16,
        temperature: Positive = 0.1,
        local_negatives: bool = True,
        hidden_size: Count = 4096,
        projection_size: Count = 256,
        momentum: Share = 0.996,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        if masks == "felzenszwalb":
            needs_segments()
        sources: dict[str, RegionsOf] = {
            "felzenszwalb": Segments(scale),
            "grid": Grid(grid_size),
            "given": given_parts,
        }
        self.regions = sources[masks]
        self.augmentations = augmentations_of(preset, augmentation, paper="byol")
        self.num_samples, self.temperature = num_samples, temperature
        self.local_negatives, self.momentum = local_negatives, momentum
        self.negatives = "none" if local_negatives else "all"
        width, _ = train_up_to_last_map(backbone, backbone.image_size)
        self.projector = mlp([width, hidden_size, projection_size])
        self.predictor = mlp([projection_size, hidden_size, projection_size])
        self.teacher = teacher_of(self._followed())

    def annotate(self, images: Images, accelerator: Accelerator) -> Notes:
        """`regions` (n, 64, 64) of the segments; nothing for grids and given masks.

        Raises:
            ValueError: The data set has no masks, or a single region in every image.
        """
        if isinstance(self.regions, Segments):
            return {"regions": segment_notes(images, self.regions, accelerator)}
        if self.regions is given_parts:
            check_given(images)
        return {}

    def views(self, image_size: int) -> Views:
        """`images` (2, s, s, 3), `masks` (2, c, c) on the feature map, `ids` (2, n), `weight`."""
        _, cells = train_up_to_last_map(self.backbone, image_size)
        return RandomRegionViews(
            image_size, cells, self.num_samples, self.augmentations, self.regions
        )

    def forward(self, batch: Batch) -> MethodOutput:
        """Region contrast of `images` (b, 2, h, w, 3); both views take one pass of each network."""
        images, masks, ids = (
            batch[key].transpose(0, 1).flatten(0, 1) for key in ("images", "masks", "ids")
        )  # first views, then second views
        images = self.backbone.normalize(images)
        z = _project(self._followed(), images, masks, ids)
        p = self.predictor(z)
        with torch.no_grad():
            t = _project(self.teacher, images, masks, ids)
        p, t = (x.unflatten(0, (2, -1, self.num_samples)) for x in (p, t))
        ids = ids.unflatten(0, (2, -1))
        loss = region_contrast(
            p, t, ids, self.temperature,
            weights=batch["weight"], local_negatives=self.local_negatives,
        )  # fmt: skip
        regions = num_compared(ids, batch["weight"])
        return MethodOutput(loss, {"train/z_std": spread(z), "train/regions": regions})

    def on_step_end(self, progress: float) -> None:
        """Update the teacher, with a momentum that rises to 1."""
        follow(self.teacher, self._followed(), cosine(self.momentum, 1.0, progress))

    def _followed(self) -> nn.Sequential:
        """The modules that the teacher averages; built at each call, as they are registered."""
        return nn.Sequential(self.backbone, self.projector)


def _project(
    network: nn.Sequential,
    images: Float[Tensor, "n 3 h w"],
    masks: Int64[Tensor, "n c c"],
    ids: Int64[Tensor, "n s"],
) -> Float[Tensor, "_ d"]:
    """Projections of the drawn regions, (n s, d)."""
    backbone, projector = network
    assert isinstance(backbone, Backbone)
    (last,) = backbone.feature_maps(images, [-1])
    return projector(pool_regions(last, masks, ids).flatten(0, 1))
