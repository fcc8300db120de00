"""Edits of one image, and the seven SimCLR pairs of SSL-Cassava that they make.

    edit       (h, w, 3) uint8 and a generator in; the same out, at most cut at its border
    PAIRS      name in a recipe -> which view is edited, with what, and when

Source: Breiki, Ridzuan & Grandhe, 2021 (arXiv 2107.13973) and its released notebooks, in which an
edit was made once per image and stored. Here it is drawn anew in every epoch from the generator
of (seed, epoch, index). Lengths are theirs on images of 512 pixels, as shares of the short side.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import cv2
import numpy as np

from fg_ssl_zoo.ops.permutations import SHUFFLES, join_tiles, split_tiles

Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]

SIDE = 512
"""Side in pixels of the paper's images."""

VALUES = np.linspace(0, 1, 256)
"""What a byte of an image stands for."""

LOOK = 32
"""Fewest pixels of the shorter side on which the liveliest window is looked for."""


def gamma(
    image: np.ndarray, generator: np.random.Generator, low: float = 0.5, high: float = 2.5
) -> np.ndarray:
    """Power law with an exponent drawn uniformly; black and white stay where they are."""
    return power_law(image, generator.uniform(low, high))


def power_law(image: np.ndarray, exponent: float) -> np.ndarray:
    """`255 * (v / 255) ** exponent` of every value; the identity for exponent 1."""
    table = np.rint(VALUES**exponent * 255).astype(np.uint8)
    return cv2.LUT(image, table)


def coarse_dropout(
    image: np.ndarray,
    generator: np.random.Generator,
    holes: tuple[int, int] = (5, 20),
    side: tuple[int, int] = (10, 25),
) -> np.ndarray:
    """Black square holes at random places.

    Args:
        image: Not changed.
        generator: Draws number, sides and places.
        holes: Fewest and most of them.
        side: Smallest and largest, in pixels of 512.
    """
    edited = image.copy()
    lengths, ys, xs = generator.random((3, generator.integers(holes[0], holes[1] + 1)))
    sides = np.rint((side[0] + lengths * (side[1] - side[0])) * _pixel(image)).clip(1).astype(int)
    tops, lefts = (
        (shares * (space - sides + 1)).astype(int).tolist()
        for shares, space in zip((ys, xs), image.shape[:2], strict=True)
    )
    for top, left, pixels in zip(tops, lefts, sides.tolist(), strict=True):
        edited[top : top + pixels, left : left + pixels] = 0
    return edited


def cropped_region(
    image: np.ndarray, generator: np.random.Generator, side: tuple[int, int] = (200, 300)
) -> np.ndarray:
    """The liveliest window of the image in the middle of a white canvas of its size.

    Width and height of the window are drawn; its place is where the mean length of the gradient is
    largest. (The notebooks ask a saliency package for the place, and their canvas offset fits one
    size of window only.)
    """
    height, width = image.shape[:2]
    w, h = (min(_pixels(image, generator.uniform(*side)), limit) for limit in (width, height))
    x, y = liveliest_window(image, w, h)
    top, left = (height - h) // 2, (width - w) // 2
    bottom, right = height - h - top, width - w - left
    window = image[y : y + h, x : x + w]
    white = (255, 255, 255)
    return cv2.copyMakeBorder(window, top, bottom, left, right, cv2.BORDER_CONSTANT, value=white)


def liveliest_window(image: np.ndarray, width: int, height: int) -> tuple[int, int]:
    """Left and top of the window with the largest mean gradient; the first of equal ones.

    Looked for on an image whose shorter side has 32 to 64 pixels.
    """
    k = max(1, min(image.shape[:2]) // LOOK)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # first: a third of the bytes to reduce
    grey = cv2.resize(grey, None, fx=1 / k, fy=1 / k, interpolation=cv2.INTER_AREA)
    dx, dy = (cv2.Sobel(grey, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    sums = cv2.integral(cv2.magnitude(dx, dy))
    w, h = max(1, min(width // k, grey.shape[1])), max(1, min(height // k, grey.shape[0]))
    windows = sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]
    y, x = divmod(int(windows.argmax()), windows.shape[1])
    return min(x * k, image.shape[1] - width), min(y * k, image.shape[0] - height)


def patch_swap(image: np.ndarray, generator: np.random.Generator, side: int = 200) -> np.ndarray:
    """A square of the upper half and one that begins in the middle change places.

    The lower square begins between the middle and 50 pixels (of 512) below it.
    """
    height, width = image.shape[:2]
    length = min(_pixels(image, side), width, height // 2)
    upper = int(generator.integers(0, height // 2 - length + 1))
    lowest = min(height // 2 + _pixels(image, 50), height - length)
    lower = int(generator.integers(height // 2, lowest + 1))
    x, x2 = (int(generator.integers(0, width - length + 1)) for _ in range(2))
    edited = image.copy()
    edited[upper : upper + length, x : x + length] = image[lower : lower + length, x2 : x2 + length]
    edited[lower : lower + length, x2 : x2 + length] = image[upper : upper + length, x : x + length]
    return edited


def tile_shuffle(
    image: np.ndarray,
    generator: np.random.Generator,
    grid: int = 4,
    shuffle: str = "uniform",
    border: int = 0,
) -> np.ndarray:
    """The tiles of a grid in another order.

    Args:
        image: What the grid does not divide is cut off on both sides.
        generator: Draws the order.
        grid: Tiles along a side; 1 is the identity.
        shuffle: A name of `ops.permutations.SHUFFLES`.
        border: Cut off on each side first, in pixels of 512.
    """
    height, width = image.shape[:2]
    if min(height, width) < grid:
        raise ValueError(f"an image of {width} x {height} pixels has no {grid} x {grid} tiles")
    cut = _pixels(image, border) if border else 0
    tall, wide = ((side - 2 * cut) // grid * grid for side in (height, width))
    top, left = (height - tall) // 2, (width - wide) // 2
    tiles = split_tiles(image[top : top + tall, left : left + wide], grid)
    return join_tiles(tiles[SHUFFLES[shuffle](generator, grid)])


def _pixels(image: np.ndarray, length: float) -> int:
    """A length on images of 512 pixels, on this one."""
    return max(1, round(length * _pixel(image)))


def _pixel(image: np.ndarray) -> float:
    """A pixel of images of 512 pixels, in pixels of this one."""
    return min(image.shape[:2]) / SIDE


@dataclass(frozen=True)
class Pair:
    """How the two views of one image differ beyond their random crops and colours.

    Attributes:
        first, second: Edit of each view, if any.
        after: The edits are made on the finished views instead of the image.
    """

    first: Edit | None = None
    second: Edit | None = None
    after: bool = False


PairName = Literal[
    "original", "gamma", "coarse_dropout", "cropped_region", "patch_swap", "dcl_jigsaw",
    "random_jigsaw",
]  # fmt: skip

PAIRS: dict[PairName, Pair] = {
    "original": Pair(),
    "gamma": Pair(second=gamma),
    "coarse_dropout": Pair(second=coarse_dropout),
    "cropped_region": Pair(second=cropped_region),
    "patch_swap": Pair(second=patch_swap),
    "dcl_jigsaw": Pair(first=partial(tile_shuffle, grid=7, shuffle="dcl", border=10)),
    "random_jigsaw": Pair(first=partial(tile_shuffle, grid=4, shuffle="pmg"), after=True),
}
"""Name in a recipe -> pair; rows of the paper's notebooks."""
