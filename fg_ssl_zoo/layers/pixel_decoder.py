"""The decoder from a feature vector to an image."""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

START_WIDTH, START_SIDE = 512, 4
"""Channels and side of the map after the first layer."""

WIDTHS = (512, 256, 128, 64, 32)
"""Channels of the blocks; the last n of them give an image of side 4 x 2^n pixels."""


class PixelDecoder(nn.Module):
    """Feature vector -> linear -> 512 x 4 x 4 -> blocks that double the side -> image.

        block    nearest-neighbour upsampling by 2, 3 x 3 convolution, BatchNorm, ReLU

    There are no skip connections: the vector is the only input. Our choice; the paper that inspired
    it (arXiv 2407.14676) has published neither layers nor code.

    Args:
        width: Width of the feature vector.
        side: Side of the image in pixels: 8, 16, 32, 64 or 128.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        doublings = (side // START_SIDE).bit_length() - 1
        assert 1 <= doublings <= len(WIDTHS)
        assert side == START_SIDE << doublings
        self.side = side
        self.first = nn.Linear(width, START_WIDTH * START_SIDE**2)
        steps = pairwise((START_WIDTH, *WIDTHS[-doublings:]))
        self.blocks = nn.Sequential(*[_block(before, after) for before, after in steps])
        self.last = nn.Conv2d(WIDTHS[-1], 3, 3, padding=1)

    def forward(self, h: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 s s"]:
        """Normalised pixels as the backbone reads them, not clamped."""
        x = self.first(h).unflatten(1, (START_WIDTH, START_SIDE, START_SIDE))
        return self.last(self.blocks(x))


def resized(images: Float[Tensor, "b 3 _ _"], side: int) -> Float[Tensor, "b 3 s s"]:
    """Images resized to another side, bilinear with antialiasing."""
    return F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
