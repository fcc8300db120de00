"""SimCLR: two views of one picture are closer to each other than to any other picture.

Paper: Chen, Kornblith, Norouzi & Hinton, 2020 (arXiv 2002.05709).

    views      two independent draws of one picture
    features   h = backbone(view)
    project    z = projector(h)
    loss       NT-Xent over the views of all processes (eq. 1)

The gamma pair is SSL-Cassava's (Breiki, Ridzuan & Grandhe, 2021, arXiv 2107.13973): the second view
is drawn from the picture after a power law with exponent in [0.5, 2.5].

Deviations: colour jitter is one affine map (see `data/views.py`); the edit of a pair is drawn anew
in every epoch, where the paper's code made it once per picture.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.augment import EDITS
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.heads import mlp
from fg_ssl_zoo.method import Batch, Method, MethodOutput
from fg_ssl_zoo.ops.contrastive import nt_xent


class SimCLR(Method):
    """SimCLR around a backbone.

    Args:
        backbone: Gives the features `h`.
        temperature: 0.1 in the paper at a batch of 4,096; 0.2 suits small sets and batches
            (solo-learn, ImageNet-100 recipe).
        hidden_size: Of the projector; 2,048 in the official repository.
        projection_size: Of `z`; 128 in the paper.
        projector_layers: 2 in the paper, 3 in the official repository.
        projector_norm: BatchNorm without scale and shift on `z`.
        preset: Views of `fg_ssl_zoo.data.views.PRESETS`.
        augmentation: Strengths of `Augmentation` that replace those of the preset.
        pair: `original` draws both views from the picture, `gamma` the second from its power law.
    """

    papers = (
        "Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual "
        "Representations. ICML 2020, arXiv 2002.05709.",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: Annotated[float, Gt(0)] = 0.2,
        hidden_size: Annotated[int, Ge(1)] = 2048,
        projection_size: Annotated[int, Ge(1)] = 128,
        projector_layers: Annotated[int, Ge(1)] = 2,
        projector_norm: bool = True,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
        pair: Literal["original", "gamma"] = "original",
    ) -> None:
        super().__init__(backbone)
        hidden = [hidden_size] * (projector_layers - 1)
        self.projector = mlp(
            [backbone.num_features, *hidden, projection_size], last_norm=projector_norm
        )
        self.temperature = temperature
        self.augmentations = augmentations_of(preset, augmentation)
        self.pair = pair

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        return RandomViews(image_size, self.augmentations, (None, EDITS.get(self.pair)))

    def forward(self, batch: Batch) -> MethodOutput:
        """NT-Xent of `images` (b, 2, h, w, 3); both views take one pass."""
        images = self.backbone.normalize(batch["images"].transpose(0, 1).flatten(0, 1))
        z0, z1 = self.projector(self.backbone(images)).chunk(2)  # (b, projection_size) each
        return MethodOutput(loss=nt_xent(z0, z1, self.temperature))
