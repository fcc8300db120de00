"""How far an image may be made smaller while it is decoded, before random crops are taken.

libjpeg decodes a JPEG at 1/2, 1/4 or 1/8 of its sides in a fraction of the time. An image is
reduced only so far that the smallest crop that its views may draw still has the side of the view:
no crop is enlarged that was not before. What is drawn is the same; the crop's box is rounded to
pixels of the reduced image, and means of 2 x 2, 4 x 4 or 8 x 8 pixels are libjpeg's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FACTORS = (8, 4, 2)
"""Reductions that libjpeg has, largest first."""


@dataclass(frozen=True)
class CropRange:
    """Crops that a view may draw.

    Attributes:
        size: Side of the view in pixels.
        area: Smallest crop as a share of the image.
        low, high: Range of the crop's aspect ratio, width to height.
    """

    size: int
    area: float
    low: float
    high: float

    def smallest_side(self, width: int, height: int) -> float:
        """Shorter side in pixels of the smallest crop of an image.

        Either a crop that was drawn, or the largest central one where none fits.
        """
        if self.area >= 1:
            return min(width, height)
        narrow = min(self.low, 1 / self.high)  # shorter side by longer side
        drawn = math.sqrt(self.area * width * height * min(narrow, 1 / narrow))
        return min(drawn, min(width, height) * min(1.0, self.high, 1 / self.low))


@dataclass(frozen=True)
class Reduction:
    """The largest reduction that leaves all views of an image their pixels.

    Attributes:
        crops: Crops of all views.
    """

    crops: Sequence[CropRange]

    def __call__(self, width: int, height: int) -> int:
        """8, 4, 2, or 1 for none, for an image of this size in pixels."""
        room = min(crop.smallest_side(width, height) / crop.size for crop in self.crops)
        return next((factor for factor in FACTORS if factor <= room), 1)
