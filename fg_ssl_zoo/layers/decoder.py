"""The up-convolution decoder from a feature map to part logits (PARTICLE, section 4)."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

WIDTHS = (256, 128, 64)
"""Channels of the three blocks in the released code."""


class UpDecoder(nn.Module):
    """Three blocks that double the side of a map, and a 1 x 1 convolution to the logits.

        CNN    [1 x 1 convolution, up, BatchNorm, ReLU]
        ViT    [up, (3 x 3 convolution, BatchNorm, ReLU) twice]

    Source: code of PARTICLE. There, the CNN's block upsamples before the convolution. Bilinear
    weights sum to one, so the order does not change the result, and this order costs a quarter.

    Args:
        channels: Number of channels of the map.
        num_outputs: Number of logits per pixel.
        deep: Whether to use the blocks of the ViT.
    """

    def __init__(self, channels: int, num_outputs: int, *, deep: bool = False) -> None:
        super().__init__()
        block = _deep_block if deep else _light_block
        steps = pairwise((channels, *WIDTHS))
        self.blocks = nn.Sequential(*[block(before, after) for before, after in steps])
        self.last = nn.Conv2d(WIDTHS[-1], num_outputs, 1)

    def forward(
        self, maps: Float[Tensor, "b d _ _"], size: tuple[int, int] | None = None
    ) -> Float[Tensor, "b c _ _"]:
        """Logits at eight times the map's side, or at `size`: the height and width of the labels.

        The released decoder of the CNN ends at half of the labels' side.
        """
        logits = self.last(self.blocks(maps)).float()
        return logits if size is None else enlarged(logits, size)


def enlarged(logits: Float[Tensor, "b c _ _"], size: tuple[int, int]) -> Float[Tensor, "b c _ _"]:
    """Logits resized to a height and width, bilinear."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _doubled() -> nn.Upsample:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


def _light_block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 1), _doubled(), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _deep_block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = [_doubled()]
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(True)]
    return nn.Sequential(*layers)
