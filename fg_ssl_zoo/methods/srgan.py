"""SRGAN: restore an image such that a discriminator cannot distinguish it from a real one.

Papers: Breiki, Ridzuan & Grandhe, 2021 (arXiv 2107.13973), second stage of its SRGAN, after Ledig
et al., 2017 (arXiv 1609.04802).

    views           high: a random crop; low: the same crop, bicubic, a quarter of the side
    generator       G(low) = decoder(last feature map of the backbone(low), low)
    discriminator   D, `backbones/networks/srgan.py`: a logit, high for an image that looks true
    perceptual      phi, ImageNet features of VGG-19 up to its last ReLU (`features[:36]`)

    L_G = MSE(G(low), high) + 0.006 MSE(phi(G(low)), phi(high)) + 0.001 BCE(D(G(low)), 1)
    L_D = BCE(D(high), 1) + BCE(D(G(low)), 0)

One loss L_G + L_D with disjoint gradients: D is frozen in L_G, and L_D reads a detached G(low).
Pixels are in 0..1 for all losses and for D. All terms are computed in float32 from the networks'
outputs, also under autocast.

Deviations:
- G and D are updated in the same step (official code: D first, then G against the new D);
- D's logits pass one sigmoid (official code: two, which bounds each term from below by 0.313 or
  0.693);
- phi is off unless its weights are given, and reads ImageNet-normalised pixels (official code:
  0..1);
- any backbone may be the first half of G, and reads normalised pixels, as in later use;
- the learning rate follows the loop's schedule (official code: one drop to a tenth at half-way).
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.maps import accept_size, train_up_to_last_map
from fg_ssl_zoo.backbones.networks.srgan import SRResNet
from fg_ssl_zoo.config import Count, Weight
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import LowAndHigh
from fg_ssl_zoo.layers.frozen import frozen
from fg_ssl_zoo.layers.generator import FACTOR, Generator, Restores, check_size
from fg_ssl_zoo.method import (
    Batch,
    DrawsPictures,
    FetchesWeights,
    HasCompanions,
    Method,
    MethodOutput,
)
from fg_ssl_zoo.ops.image_quality import quality

PERCEPTUAL = "vgg19"
"""Name of phi's network in timm."""

PERCEPTUAL_LAYERS = 36
"""Number of its layers in phi: up to the ReLU after the sixteenth convolution."""


class SRGAN(Restores, Method, DrawsPictures, FetchesWeights, HasCompanions):
    """An adversarial restorer around a backbone.

    Args:
        backbone: The network to train: the first half of the generator, which reads the small
            image.
        perceptual: Weights of the perceptual network phi: a pretrained tag of timm's vgg19
            (`tv_in1k`), a `.safetensors` file with timm's keys, `hf-hub:OWNER/NAME` or
            `local-dir:FOLDER`. When not given, the perceptual term is left out.
        perceptual_weight: Weight of the perceptual term; 0.006 in the papers.
        adversarial_weight: Weight of the adversarial term; 0.001 in the papers.
        width: Number of channels of the generator's second half; 64 in the papers.
        discriminator_width: Number of channels of the discriminator's first layer; 64 in the
            papers.
    """

    papers = (
        "Breiki, Ridzuan, Grandhe: Self-Supervised Learning for Fine-Grained Image Classification. "
        "arXiv 2107.13973, 2021.",
        "Ledig et al.: Photo-Realistic Single Image Super-Resolution Using a Generative "
        "Adversarial Network. CVPR 2017, arXiv 1609.04802.",
    )
    figures = (
        "83 % accuracy on 5 classes of cassava leaves, generator with dropout, fine-tuned "
        "(arXiv 2107.13973)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        perceptual: str | None = None,
        perceptual_weight: Weight = 0.006,
        adversarial_weight: Weight = 0.001,
        width: Count = 64,
        discriminator_width: Count = 64,
    ) -> None:
        super().__init__(backbone)
        check_size(backbone.image_size, backbone.patch_size)
        low = backbone.image_size // FACTOR
        accept_size(backbone, low)
        self.generator = Generator(*train_up_to_last_map(backbone, low), low, width=width)
        self.discriminator = timm.create_model(
            "fgssl_srgan_discriminator", num_classes=1, width=discriminator_width
        )
        self.discriminator_width = discriminator_width
        self.perceptual = Perceptual(perceptual) if perceptual else None
        self.perceptual_weight = perceptual_weight
        self.adversarial_weight = adversarial_weight

    @classmethod
    def options_of_saved(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options without a source of phi's weights, which are in the state."""
        return {**options, "perceptual": "scratch" if options.get("perceptual") else None}

    def views(self, image_size: int) -> Views:
        """`high` (s, s, 3) and `low` (s / 4, s / 4, 3).

        Raises:
            ValueError: A size that four does not divide, or one that leaves no whole patches.
        """
        check_size(image_size, self.backbone.patch_size)
        return LowAndHigh(image_size, FACTOR)

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """One group for each player; Adam has moments per parameter, so one Adam acts as two."""
        for player in ([self.backbone, self.generator], [self.discriminator]):
            yield {"params": [p for m in player for p in m.parameters() if p.requires_grad]}

    def forward(self, batch: Batch) -> MethodOutput:
        """L_G + L_D."""
        real = batch["high"].movedim(-1, 1) / 255
        fake = self.restore(batch["low"]).float()
        pixel = F.mse_loss(fake, real)
        with frozen(self.discriminator) as judge:
            adversarial = F.softplus(-judge(fake).float()).mean()
        generator_loss = pixel + self.adversarial_weight * adversarial
        metrics = {"loss/pixel": pixel.detach(), **quality(fake, real)}
        if self.perceptual is not None:
            difference = F.mse_loss(self.perceptual(fake), self.perceptual(real))
            generator_loss = generator_loss + self.perceptual_weight * difference
            metrics["loss/perceptual"] = difference.detach()
        discriminator_loss = self.discriminator_loss(real, fake.detach())
        metrics["loss/generator"] = generator_loss.detach()
        metrics["loss/discriminator"] = discriminator_loss.detach()
        return MethodOutput(generator_loss + discriminator_loss, metrics)

    def companions(self) -> Mapping[str, Backbone]:
        """The discriminator and the whole generator; the paper classifies with both."""
        model: Any = copy.deepcopy(self.discriminator)
        model.reset_classifier(0)
        cfg = model.pretrained_cfg
        discriminator = Backbone(
            model, cfg["architecture"], image_size=self.backbone.image_size, mean=cfg["mean"],
            std=cfg["std"], options={"width": self.discriminator_width},
        )  # fmt: skip
        generator = generator_of(self.backbone, self.generator.up)
        found = {"discriminator": discriminator, "generator": generator}
        return {name: network for name, network in found.items() if network}

    def discriminator_loss(
        self, real: Float[Tensor, "b 3 h w"], fake: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        """L_D; with logits x, BCE(x, 1) = softplus(-x) and BCE(x, 0) = softplus(x)."""
        logits_real, logits_fake = (self.discriminator(x).float() for x in (real, fake))
        return F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean()


class Perceptual(nn.Module):
    """phi: fixed features of pixels in 0..1; plain convolutions, the same in training mode.

    Args:
        init: Start weights, as for a backbone.

    Raises:
        ValueError: No such weights, or weights of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, init: str) -> None:
        super().__init__()
        try:
            network = create_backbone(PERCEPTUAL, init=init)
        except ValueError as error:
            raise ValueError(f"perceptual: {str(error).removeprefix('init: ')}") from error
        self.features = network.model.features[:PERCEPTUAL_LAYERS].requires_grad_(False)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(network, name)).view(3, 1, 1)
            self.register_buffer(name, value)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d i j"]:
        """Features of ImageNet-normalised pixels."""
        return self.features((pixels - self.mean) / self.std)


def generator_of(trunk: Backbone, up: nn.Sequential) -> Backbone | None:
    """SRGAN's whole generator up to its last convolution, as a backbone.

    Args:
        trunk: Any backbone; `None` is returned for one that is not SRResNet's trunk.
        up: The upsampling blocks trained after it; `None` is returned for another width.
    """
    first: Any = up[0]
    if not isinstance(trunk.model, SRResNet) or first[0].in_channels != trunk.model.num_features:
        return None
    options = {**trunk.options, "upsample": True}
    model = timm.create_model(trunk.name, num_classes=0, **options)
    weights = {**trunk.model.state_dict(), **{f"up.{k}": v for k, v in up.state_dict().items()}}
    model.load_state_dict(weights)
    return Backbone(
        model, trunk.name, init=trunk.init, image_size=trunk.image_size, mean=trunk.mean,
        std=trunk.std, options=options,
    )  # fmt: skip
