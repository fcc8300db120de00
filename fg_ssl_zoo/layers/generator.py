"""The second half of a super-resolution generator: from a feature map to a larger image.

The first half is the backbone. Source of the layers: Ledig et al., 2017 (SRGAN), figure 4.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.ops.image_quality import strip

FACTOR = 4
"""Ratio of the sides of the restored and the small image."""


class Generator(nn.Module):
    """Decodes the last map of an encoder that has read the small image.

    A map of the image's size (SRResNet) enters the paper's upsampling blocks directly. A smaller
    map is first enlarged to the image's size by the same blocks, and a 9 x 9 convolution of the
    image is added, which restores pixel details that the encoder has lost.

    Args:
        channels: Number of channels of the map.
        map_side: Side of the map in pixels.
        low_side: Side of the small image in pixels.
        width: Channels of every layer; 64 in the paper.
    """

    def __init__(self, channels: int, map_side: int, low_side: int, *, width: int = 64) -> None:
        super().__init__()
        self.reads_picture = map_side < low_side
        self.enter = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        if self.reads_picture:
            doublings = math.ceil(math.log2(low_side / map_side))
            self.enlarge = nn.Sequential(*[doubling(width) for _ in range(doublings)])
            self.picture = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        doublings = round(math.log2(FACTOR))
        self.up = nn.Sequential(*[doubling(width) for _ in range(doublings)])
        self.last = nn.Conv2d(width, 3, 9, padding=4)

    def forward(
        self, feature_map: Float[Tensor, "b d i j"], low: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b 3 _ _"]:
        """Pixels around 0..1, not clamped, of size 4 h x 4 w.

        Args:
            feature_map: Feature map of the small images.
            low: Small images as the encoder reads them.
        """
        x = self.enter(feature_map)
        if self.reads_picture:
            x = self.enlarge(x)
            if x.shape[2:] != low.shape[2:]:  # the stride does not divide the image
                x = F.interpolate(x, size=low.shape[2:], mode="bilinear")
            x = x + self.picture(low)
        return self.last(self.up(x))


class Restores:
    """Restoration by a backbone and a generator, for methods that have both."""

    backbone: Any
    generator: Generator

    def restore(self, low: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 _ _"]:
        """G(low): pixels around 0..1, with four times the side."""
        seen = self.backbone.normalize(low)
        (last,) = self.backbone.feature_maps(seen, [-1])
        return self.generator(last, seen)

    def picture(self, batch: Mapping[str, Any]) -> UInt8[Tensor, "p q 3"]:
        """Small, restored and true image, one row per image."""
        return strip(batch["low"], self.restore(batch["low"]), batch["high"])


def doubling(width: int) -> nn.Sequential:
    """(b, width, h, w) -> (b, width, 2h, 2w): convolution to four times the width, shuffled."""
    return nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())


def check_size(image_size: int, patch_size: int | None = None) -> None:
    """Refuse a side of the large image that is not a multiple of the small one.

    Args:
        image_size: Side of the large image, in pixels.
        patch_size: Patch size of a ViT; the small image is made of whole patches.

    Raises:
        ValueError: Names the nearest valid sizes.
    """
    multiple = FACTOR * (patch_size or 1)
    if image_size % multiple:
        below, above = image_size // multiple * multiple, -(-image_size // multiple) * multiple
        patches = f" of whole patches of {patch_size} pixels" if patch_size else ""
        raise ValueError(
            f"data.image_size: {image_size} is not {FACTOR} times a side{patches}; "
            f"use {f'{below} or {above}' if below else above}"
        )
