"""Thumbnails inside a page: the centre crops as JPEG data URIs."""

import base64
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import UInt8

from fg_ssl_zoo.config import printable
from fg_ssl_zoo.data.datasets import image_name
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.sample import Images

QUALITY = 82


@dataclass(frozen=True)
class Thumbnails:
    """Centre crops of a data set as thumbnails.

    Attributes:
        images: The data set.
        view: The centre crop.
    """

    images: Images
    view: CentreView

    def pixels(self, index: int, size: int) -> UInt8[np.ndarray, "s s 3"]:
        """The crop, `size` pixels a side."""
        view = replace(self.view, size=size)
        return view(self.images[index], np.random.default_rng(0))["image"]

    def uri(self, index: int, size: int) -> str:
        """The crop as a data URI."""
        return jpeg_uri(self.pixels(index, size))

    def name(self, index: int) -> str:
        """The file's path in its folder, with escaped control characters."""
        return printable(image_name(self.images, index))


def jpeg_uri(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """RGB pixels as `data:image/jpeg;base64,...`."""
    how = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), how)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
