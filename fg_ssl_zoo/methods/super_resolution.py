"""Super-resolution: restore an image from a copy of a quarter of its side, by squared error.

Papers: Breiki, Ridzuan & Grandhe, 2021 (arXiv 2107.13973), first stage of its SRGAN, after Ledig
et al., 2017 (arXiv 1609.04802).

    views      high: a random crop; low: the same crop, bicubic, a quarter of the side
    generator  G(low) = decoder(last feature map of the backbone(low), low), `layers/generator.py`
    loss       mean squared error of G(low) and high, pixels in 0..1

With the backbone `fgssl_srresnet`, G is the generator of the paper.

Deviations: any backbone may be the first half of G. It reads pixels normalised with the mean and
std of later use (official code: 0..1 in pretraining, normalised downstream). The learning rate
follows the loop's schedule (official code: one drop to a tenth at half-way).
"""

import torch.nn.functional as F

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import accept_size, train_up_to_last_map
from fg_ssl_zoo.config import Count
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import LowAndHigh
from fg_ssl_zoo.layers.generator import FACTOR, Generator, Restores, check_size
from fg_ssl_zoo.method import Batch, DrawsPictures, Method, MethodOutput
from fg_ssl_zoo.ops.image_quality import quality


class SuperResolution(Restores, Method, DrawsPictures):
    """Pixel regression around a backbone.

    Args:
        backbone: The network to train: the first half of the generator, which reads the small
            image.
        width: Number of channels of the generator's second half; 64 in the paper.
    """

    papers = (
        "Breiki, Ridzuan, Grandhe: Self-Supervised Learning for Fine-Grained Image Classification. "
        "arXiv 2107.13973, 2021.",
        "Ledig et al.: Photo-Realistic Single Image Super-Resolution Using a Generative "
        "Adversarial Network. CVPR 2017, arXiv 1609.04802.",
    )

    def __init__(self, backbone: Backbone, *, width: Count = 64) -> None:
        super().__init__(backbone)
        check_size(backbone.image_size, backbone.patch_size)
        low = backbone.image_size // FACTOR
        accept_size(backbone, low)
        self.generator = Generator(*train_up_to_last_map(backbone, low), low, width=width)

    def views(self, image_size: int) -> Views:
        """`high` (s, s, 3) and `low` (s / 4, s / 4, 3).

        Raises:
            ValueError: A size that four does not divide, or one that leaves no whole patches.
        """
        check_size(image_size, self.backbone.patch_size)
        return LowAndHigh(image_size, FACTOR)

    def forward(self, batch: Batch) -> MethodOutput:
        """Mean squared error over pixels."""
        high = batch["high"].movedim(-1, 1) / 255
        restored = self.restore(batch["low"])
        loss = F.mse_loss(restored.float(), high)
        return MethodOutput(loss, {"loss/pixel": loss.detach(), **quality(restored, high)})
