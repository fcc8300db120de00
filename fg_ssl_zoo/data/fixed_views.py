"""Views without random draws, for features and maps.

CentreView   the centre crop, as in timm and transformers for an exported model
WholeView    the whole image, resized to a square, for maps
resize       the filter of both
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from fg_ssl_zoo.config import CROP_PCT
from fg_ssl_zoo.data.sample import Sample

CROP_MODES = ("center", "squash", "border")
"""timm's ways to bring an image to a square."""

STRIP = 8
"""Longest side over a crop's shorter one up to which the whole image is scaled first."""


@dataclass(frozen=True)
class CentreView:
    """The view of the evaluation, `image`: the pixels of timm's transform, up to rounding.

    That is `timm.data.create_transform` (timm 1.0.31) for an exported `config.json`, which equals
    transformers' `AutoImageProcessor`.

    Attributes:
        size: Side in pixels.
        crop_pct: The image is scaled to size / crop_pct before the crop; 1 on images that are
            crops already.
        interpolation: Pillow's name of the filter, in lower case.
        crop_mode: What is scaled to size / crop_pct: `center`, the shorter side; `squash`, both
            sides; `border`, the longer side.
        fill: RGB around an image that is smaller than the crop.
    """

    size: int
    crop_pct: float = CROP_PCT
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        filter_of(self.interpolation)
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode: '{self.crop_mode}' is none of {', '.join(CROP_MODES)}")

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """The view of one sample; nothing is drawn."""
        image, size = sample["image"], self.size
        tall, wide, top, left = self.place(*image.shape[:2])
        y, x, bottom, right = (
            max(top, 0),
            max(left, 0),
            min(top + size, tall),
            min(left + size, wide),
        )
        crop = resize(image, tall, wide, self.interpolation, (x, y, right - x, bottom - y))
        if crop.shape[:2] != (size, size):
            above, before = y - top, x - left
            below, behind = size - crop.shape[0] - above, size - crop.shape[1] - before
            border = cv2.BORDER_CONSTANT
            crop = cv2.copyMakeBorder(crop, above, below, before, behind, border, value=self.fill)
        return {"image": crop}

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Height and width that an image is scaled to; top and left of the crop in it.

        A negative top or left is the width of the border before a smaller image.
        """
        side = math.floor(self.size / self.crop_pct)
        if self.crop_mode == "squash":
            tall, wide = side, side
        elif self.crop_mode == "border":
            scale = max(height, width) / side
            tall, wide = max(1, round(height / scale)), max(1, round(width / scale))
        else:
            longer = int(side * max(height, width) / min(height, width))
            tall, wide = (longer, side) if width <= height else (side, longer)
        return tall, wide, _start(tall, self.size), _start(wide, self.size)


def _start(side: int, size: int) -> int:
    """Where a crop of `size` begins, as torchvision's CenterCrop rounds it."""
    return round((side - size) / 2) if side >= size else -((size - side) // 2)


@dataclass(frozen=True)
class WholeView:
    """The whole image stretched to a square, so that a map of it can be stretched back: `image`.

    Attributes:
        size: Side in pixels.
        interpolation: As of `CentreView`, so that maps and pooled features see equal pixels.
    """

    size: int
    interpolation: str = "bicubic"

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """The view of one sample; nothing is drawn."""
        return {"image": resize(sample["image"], self.size, self.size, self.interpolation)}


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    interpolation: str = "bicubic",
    crop: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """The image scaled to (height, width, 3) as Pillow does, within rounding.

    torch computes bilinear and bicubic: the same filter with the same 8-bit steps, three to twelve
    times as fast (docs/performance.md). Pillow computes the others.

    Args:
        image: (h, w, 3) uint8.
        height: To scale to.
        width: To scale to.
        interpolation: Pillow's name of the filter, in lower case.
        crop: x, y, width, height of the part that is wanted, in pixels of the result; all of it
            when not given.
    """
    x, y, w, h = crop or (0, 0, width, height)
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image[y : y + h, x : x + w])
    if max(height, width) > STRIP * min(h, w):  # the rest would be enlarged for nothing
        across, down = image.shape[1] / width, image.shape[0] / height
        box = (x * across, y * down, (x + w) * across, (y + h) * down)
        return _by_pillow(image, w, h, interpolation, box)
    if interpolation not in ("bilinear", "bicubic"):
        scaled = _by_pillow(image, width, height, interpolation)
        return np.ascontiguousarray(scaled[y : y + h, x : x + w])
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    scaled = F.interpolate(pixels, (height, width), mode=interpolation, antialias=True)
    return scaled[0, :, y : y + h, x : x + w].permute(1, 2, 0).contiguous().numpy()


def _by_pillow(
    image: np.ndarray,
    width: int,
    height: int,
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """The box (left, top, right, bottom) of an image as (height, width, 3)."""
    from PIL import Image

    return np.array(Image.fromarray(image).resize((width, height), filter_of(interpolation), box))


def filter_of(interpolation: str) -> Any:
    """Pillow's filter of that name.

    Raises:
        ValueError: There is none.
    """
    from PIL import Image

    names = [filter.name.lower() for filter in Image.Resampling]
    if interpolation not in names:
        raise ValueError(f"interpolation: '{interpolation}' is none of {', '.join(names)}")
    return Image.Resampling[interpolation.upper()]
