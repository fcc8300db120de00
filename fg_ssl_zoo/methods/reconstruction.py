"""Reconstruction: train a decoder to restore an image from the features of a fixed backbone.

The first stage of the staged form of `synthesized_pairs`, and a way to look at features by itself.
Our choice; the paper behind that method (arXiv 2407.14676) trains all parts on one loss.

    views      one draw of the image
    features   h = backbone(view), pooled; the backbone is fixed
    decode     g(h), `layers/pixel_decoder.py`
    loss       mean squared error of g(h) and the view, in normalised pixels

The backbone's BatchNorms use the statistics of the batch, as in training, so that the decoder gets
the same features as in the next stage. The running statistics are not updated.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.frozen import unremembered
from fg_ssl_zoo.layers.pixel_decoder import PixelDecoder, resized
from fg_ssl_zoo.method import Batch, DrawsPictures, Method, MethodOutput
from fg_ssl_zoo.ops.image_quality import psnr, side_by_side


class Reconstruction(Method, DrawsPictures):
    """A decoder on a fixed backbone.

    Args:
        backbone: Computes the pooled features `h`; not trained.
        decoder_size: Side of the decoded images in pixels; must equal that of the stage that
            inherits the decoder.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `moco_v2`.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        decoder_size: Literal[32, 64, 128] = 64,
        preset: str = "fine_grained",
        augmentation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        self.backbone.requires_grad_(False)
        self.decoder = PixelDecoder(backbone.num_features, decoder_size)
        self.augmentation, _ = augmentations_of(preset, augmentation, paper="moco_v2")

    def views(self, image_size: int) -> Views:
        """One view: `images` (1, s, s, 3)."""
        return RandomViews(image_size, (self.augmentation,), (None,))

    def forward(self, batch: Batch) -> MethodOutput:
        """The error of `images` (b, 1, h, w, 3)."""
        view = self.backbone.normalize(batch["images"][:, 0])
        decoded, true = self.decode(view), resized(view, self.decoder.side)
        loss = F.mse_loss(decoded, true)
        seen, wanted = (self.backbone.denormalize(x.detach()) for x in (decoded, true))
        return MethodOutput(loss, {"train/psnr": psnr(seen.clamp(0, 1), wanted)})

    def decode(self, view: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """g(h) of normalised images, in float32."""
        with torch.no_grad(), unremembered(self.backbone):
            h = self.backbone(view)
        return self.decoder(h).float()

    def picture(self, batch: Batch) -> UInt8[Tensor, "p q 3"]:
        """One row per image: view, g(h), and their difference.

        Evaluation mode uses the backbone's running statistics, so g(h) is poor for a backbone with
        random weights, which has none.
        """
        view = self.backbone.normalize(batch["images"][:, 0])
        found = self.decode(view), resized(view, self.decoder.side)
        decoded, true = (self.backbone.denormalize(x).clamp(0, 1) for x in found)
        return side_by_side(true, decoded, (true - decoded).abs())
