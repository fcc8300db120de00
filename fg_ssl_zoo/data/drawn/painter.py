"""Geometry to pixels: an image and its part mask, painted together at twice the size.

    outlines in the frame of a body part  --Frame-->  shares of the image  --Canvas-->  pixels

Points are (x, y), y downwards; colours are RGB in 0..255. Edges are smooth in the image
(antialiased, then halved) and hard in the mask.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int32, UInt8

OVERSAMPLING = 2
SUBPIXEL_BITS = 4
SUBPIXELS = 2**SUBPIXEL_BITS

Points = Float[np.ndarray, "... 2"]
Pixels = Int32[np.ndarray, "... 2"]
"""Points on a canvas in 1 / `SUBPIXELS` of a pixel, as OpenCV draws them."""

Colour = tuple[float, float, float]


class Frame(NamedTuple):
    """Coordinates of a part of the body, with their way to the image."""

    matrix: Float[np.ndarray, "2 2"]
    origin: Float[np.ndarray, "2"]

    def __call__(self, points: Points) -> Points:
        return points @ self.matrix.T + self.origin

    def turned(self, pivot: tuple[float, float], degrees: float, size: float = 1.0) -> "Frame":
        """Frame around a pivot, turned clockwise for a bird that looks to the right."""
        return Frame(self.matrix @ rotation(degrees) * size, self(np.array(pivot)))


class Atlas:
    """Outlines by name in one frame, moved to the canvas by a single product."""

    def __init__(self, outlines: Mapping[str, Points]) -> None:
        ends = np.cumsum([len(points) for points in outlines.values()]).tolist()
        starts = [0, *ends[:-1]]
        self._points = np.concatenate(list(outlines.values()))
        self._ranges = list(zip(outlines, starts, ends, strict=True))

    def on(self, canvas: "Canvas", frame: Frame) -> dict[str, Pixels]:
        """Every outline where the frame puts it on the canvas."""
        pixels = canvas.locate(frame(self._points))
        return {name: pixels[start:end] for name, start, end in self._ranges}


class Canvas:
    """Pixels and part numbers; what is painted later covers what was painted earlier.

    Widths and radii are shares of the image.

    Args:
        pixels: What is there already.
        size: Pixels along one side of the image; default: the canvas is the whole image.
        corner: Column and row of the image where a smaller canvas begins.
    """

    def __init__(
        self,
        pixels: UInt8[np.ndarray, "h w 3"],
        size: int | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> None:
        self.pixels = pixels
        self.mask = np.zeros(pixels.shape[:2], np.uint8)
        self.size = size or len(pixels)
        self.corner = corner
        self._origin = np.array(corner) * float(SUBPIXELS) + (SUBPIXELS / 2 - 0.5)

    def locate(self, points: Points) -> Pixels:
        """From shares of the image to pixels; their centres, not corners, are whole numbers."""
        moved = points * float(self.size * SUBPIXELS)
        moved -= self._origin
        return moved.astype(np.int32, order="C")

    def fill(self, outline: Pixels, colour: Colour, part: int | None = None) -> None:
        """Fill a polygon; `part=None` leaves the mask as it is."""
        corners = [outline]
        cv2.fillPoly(self.pixels, corners, colour, cv2.LINE_AA, SUBPIXEL_BITS)
        if part is not None:
            cv2.fillPoly(self.mask, corners, (part,), cv2.LINE_8, SUBPIXEL_BITS)

    def dab(self, outline: Pixels, colour: Colour, part: int) -> None:
        """Fill a polygon with hard edges: quicker, where the pixels are blurred afterwards."""
        corners = [outline]
        cv2.fillPoly(self.pixels, corners, colour, cv2.LINE_8, SUBPIXEL_BITS)
        cv2.fillPoly(self.mask, corners, (part,), cv2.LINE_8, SUBPIXEL_BITS)

    def stroke(
        self, lines: Sequence[Pixels], width: float, colour: Colour, part: int | None = None
    ) -> None:
        """Draw open lines, all of one width and one colour."""
        thickness = max(1, round(width * self.size))
        cv2.polylines(self.pixels, lines, False, colour, thickness, cv2.LINE_AA, SUBPIXEL_BITS)
        if part is not None:
            cv2.polylines(self.mask, lines, False, (part,), thickness, cv2.LINE_8, SUBPIXEL_BITS)

    def disc(
        self, centre: Sequence[int], radius: float, colour: Colour, part: int | None = None
    ) -> None:
        """Fill a circle."""
        size = round(radius * self.size * SUBPIXELS)
        cv2.circle(self.pixels, centre, size, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
        if part is not None:
            cv2.circle(self.mask, centre, size, (part,), -1, cv2.LINE_8, SUBPIXEL_BITS)

    def blur(self, sigma: float) -> None:
        """Soften the pixels, not the mask; `sigma` is a share of the image."""
        width = 2 * round(sigma * self.size) + 1
        for _ in range(2):  # two boxes are nearly a Gaussian, and cheaper
            cv2.blur(self.pixels, (width, width), self.pixels, borderType=cv2.BORDER_REPLICATE)

    def window(self, points: Points, colour: Colour) -> "Canvas":
        """An empty canvas of one colour, just large enough for the points."""
        left, top, width, height = cv2.boundingRect(self.locate(points))
        left, right = max(left // SUBPIXELS - 1, 0), (left + width) // SUBPIXELS + 2
        top, bottom = max(top // SUBPIXELS - 1, 0), (top + height) // SUBPIXELS + 2
        width, height = min(right, self.size) - left, min(bottom, self.size) - top
        pixels = np.empty((height, width, 3), np.uint8)
        cv2.rectangle(pixels, (0, 0), (width, height), colour, -1)
        return Canvas(pixels, self.size, (left, top))

    def paste(self, other: "Canvas", outline: Pixels) -> None:
        """Take over a window within an outline, which is given in the window's pixels."""
        stencil = np.zeros_like(other.mask)
        cv2.fillPoly(stencil, [outline], (255,), cv2.LINE_8, SUBPIXEL_BITS)
        left, top = other.corner
        place = np.s_[top : top + len(stencil), left : left + len(stencil[0])]
        cv2.copyTo(other.mask, stencil, self.mask[place])
        cv2.fillPoly(stencil, [outline], (255,), cv2.LINE_AA, SUBPIXEL_BITS)
        alpha = cv2.merge([stencil] * 3)
        over = cv2.multiply(other.pixels, alpha, scale=1 / 255)
        under = cv2.multiply(self.pixels[place], cv2.bitwise_not(alpha), scale=1 / 255)
        cv2.add(over, under, self.pixels[place])

    def halved(self) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """Image and mask at the size that was asked for."""
        size = self.size // OVERSAMPLING
        pixels = cv2.resize(self.pixels, (size, size), interpolation=cv2.INTER_AREA)
        return pixels, np.ascontiguousarray(self.mask[::OVERSAMPLING, ::OVERSAMPLING])


def rotation(degrees: float) -> Float[np.ndarray, "2 2"]:
    """Rotation matrix, clockwise as seen (y points down)."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def smooth(
    points: Float[np.ndarray, "n d"], *, closed: bool = True, steps: int = 5
) -> Float[np.ndarray, "m d"]:
    """A smooth curve through all points (a Catmull-Rom spline)."""
    return _spline_weights(len(points), closed, steps) @ points


@functools.cache
def _spline_weights(num_points: int, closed: bool, steps: int) -> np.ndarray:
    """Weights of the control points at `steps` positions in every segment."""
    t = np.arange(steps) / steps
    basis = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1
    )
    segments = num_points if closed else num_points - 1
    weights = np.zeros((segments * steps + (not closed), num_points))
    for segment in range(segments):
        rows = slice(segment * steps, (segment + 1) * steps)
        for offset in range(4):
            at = segment + offset - 1
            at = at % num_points if closed else min(max(at, 0), num_points - 1)
            weights[rows, at] += basis[:, offset]
    if not closed:
        weights[-1, -1] = 1
    return weights


def mixed(a: Colour, b: Colour, share: float) -> Colour:
    """Colour between `a` (share 0) and `b` (share 1)."""
    rest = 1 - share
    return rest * a[0] + share * b[0], rest * a[1] + share * b[1], rest * a[2] + share * b[2]
