"""SimCLR: two views of an image are closer to each other than to the views of other images.

Paper: Chen, Kornblith, Norouzi & Hinton, 2020 (arXiv 2002.05709).

    views      two independent draws of one image
    features   h = backbone(view)
    project    z = projector(h)
    loss       NT-Xent over the views of all processes (eq. 1)

The pairs beside the original one are those of SSL-Cassava (Breiki, Ridzuan & Grandhe, 2021, arXiv
2107.13973): one of the two views is drawn from the image after a power law, with holes, with two
patches exchanged, ... (`data/augment.py`). `preset: paper` takes the views of its notebooks, which
crop in the first two pairs only.

Deviations: colour jitter is one affine map (see `data/views.py`). The edit of a pair is drawn again
in every epoch; the paper's code drew it once per image.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Count, Positive
from fg_ssl_zoo.data.pairs import PAIRS, SIDE, PairName
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import Augmentation, RandomViews, augmentations_of
from fg_ssl_zoo.layers.heads import mlp
from fg_ssl_zoo.method import Batch, Method, MethodOutput
from fg_ssl_zoo.ops.contrastive import nt_xent

# The views of SSL-Cassava's notebooks, at 512 pixels there.
_WHOLE = Augmentation(
    crop_scale=(1, 1), jitter=0.3, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2,
    grayscale=0.2, blur=0.0,
)  # fmt: skip
_CROPPED = replace(_WHOLE, crop_scale=(0.08, 1.0))
_ORIGINAL = replace(
    _CROPPED, flip=0.0, jitter=0.4, blur=0.5, blur_sigma=(0.1 * 224 / SIDE, 2 * 224 / SIDE)
)


class SimCLR(Method):
    """SimCLR around a backbone.

    Args:
        backbone: The network to train; gives the pooled features `h`.
        temperature: Temperature of NT-Xent. The paper uses 0.1 at a batch of 4,096; 0.2 suits small
            data sets and batches (solo-learn, ImageNet-100 recipe).
        hidden_size: Width of the projector's hidden layers; 2,048 in the official repository.
        projection_size: Size of the projections `z`; 128 in the paper.
        projector_layers: Number of linear layers of the projector; 2 in the paper, 3 in the
            official repository.
        projector_norm: Whether `z` passes a BatchNorm without scale and shift.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for the
            views of SSL-Cassava.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
        pair: Edit that makes one view different: a name of `fg_ssl_zoo.data.pairs.PAIRS`. With
            `original`, both views are drawn alike.
    """

    negatives = "all"
    papers = (
        "Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual "
        "Representations. ICML 2020, arXiv 2002.05709.",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: Positive = 0.2,
        hidden_size: Count = 2048,
        projection_size: Count = 128,
        projector_layers: Count = 2,
        projector_norm: bool = True,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
        pair: PairName = "original",
    ) -> None:
        super().__init__(backbone)
        hidden = [hidden_size] * (projector_layers - 1)
        self.projector = mlp(
            [backbone.num_features, *hidden, projection_size], last_norm=projector_norm
        )
        self.temperature = temperature
        self.pair = PAIRS[pair]
        paper = {"original": _ORIGINAL, "gamma": _CROPPED}.get(pair, _WHOLE)
        self.augmentations = augmentations_of(preset, augmentation, paper=(paper, paper))

    @classmethod
    def reported(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The cassava paper's figures, which exist for two of the seven pairs."""
        figure = {"original": "73 %", "gamma": "73.8 %"}.get(options.get("pair", "original"))
        where = "on 5 classes of cassava leaves, ResNet-18 at 512 px, frozen (arXiv 2107.13973)"
        return (f"{figure} accuracy {where}",) if figure else ()

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        pair = self.pair
        return RandomViews(image_size, self.augmentations, (pair.first, pair.second), pair.after)

    def forward(self, batch: Batch) -> MethodOutput:
        """NT-Xent of `images` (b, 2, h, w, 3); both views take one pass."""
        images = self.backbone.normalize(batch["images"].transpose(0, 1).flatten(0, 1))
        z0, z1 = self.projector(self.backbone(images)).chunk(2)  # (b, projection_size) each
        return MethodOutput(loss=nt_xent(z0, z1, self.temperature))
