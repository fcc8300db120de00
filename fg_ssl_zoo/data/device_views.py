"""Colour, blur and solarisation of views on the device: the loader ships crops and their numbers.

    defer     views -> the same views, unfinished: crops, and an array `..._finish` beside them
    finish    a batch on the device -> the batch that the method reads

The random choices, their order and the arithmetic are those of `views.render` and OpenCV; no pixel
differs by more than 1 of 255.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from fg_ssl_zoo.data.sample import Sample, Views
from fg_ssl_zoo.data.views import MultiCrop, RandomViews, View, affine_of, blur_side, cut

FINISH = "_finish"
"""Ends the key of the numbers with which the device finishes the views of the same name."""

BEFORE_KERNEL = 13
"""Numbers before the kernel of the blur: a 3x4 matrix, and 1 for solarisation."""


@dataclass(frozen=True)
class UnfinishedViews(RandomViews):
    """`images` (v, s, s, 3) uint8 in the colours of the image, and `images_finish` (v, k)."""

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """Crops of one sample and the numbers that finish them."""
        crops = np.empty((len(self.augmentations), self.size, self.size, 3), np.uint8)
        numbers = np.zeros((len(crops), BEFORE_KERNEL + self._kernel_side()), np.float32)
        for number, (image, view) in enumerate(self.drawn(sample, generator)):
            crops[number] = cut(image, view, self.size)
            numbers[number, : BEFORE_KERNEL - 1] = affine_of(crops[number], view).ravel()
            numbers[number, BEFORE_KERNEL - 1] = view.solarize
            _write_kernel(numbers[number, BEFORE_KERNEL:], view)
        return {"images": crops, f"images{FINISH}": numbers}

    def _kernel_side(self) -> int:
        """Side of the largest kernel that may be drawn; 1 where nothing is blurred."""
        sigmas = [how.blur_sigma[1] * self.size / 224 for how in self.augmentations if how.blur]
        return max(map(blur_side, sigmas), default=1)


def _write_kernel(into: np.ndarray, view: View) -> None:
    """The Gaussian of a view, or a single 1, in the middle of zeros."""
    kernel = np.ones(1)
    if view.sigma > 0:
        kernel = _fixed_point(cv2.getGaussianKernel(blur_side(view.sigma), view.sigma)[:, 0])
    start = (len(into) - len(kernel)) // 2
    into[start : start + len(kernel)] = kernel


def _fixed_point(kernel: np.ndarray) -> np.ndarray:
    """The 256ths with which OpenCV blurs uint8 images: errors go to the next number inwards."""
    found, error = np.empty_like(kernel), 0.0
    half = len(kernel) // 2
    for place in range(half):
        exact = 256 * kernel[place] + error
        found[place] = found[-1 - place] = np.round(exact)
        error = exact - found[place]
    found[half] = 256 - 2 * found[:half].sum()
    return found / 256


def defer(views: Views) -> Views | None:
    """The same views, finished on the device; `None` for views that only the loader can make.

    These are views that are edited when they are finished, and all that are no plain random crops.
    """
    if isinstance(views, RandomViews):
        return (
            None if views.after else UnfinishedViews(views.size, views.augmentations, views.edits)
        )
    if isinstance(views, MultiCrop):
        parts = [views.whole, *([] if views.local is None else [views.local])]
        later = [defer(part) for part in parts]
        return None if None in later else MultiCrop(*later)  # pyright: ignore[reportArgumentType]
    return None


def finish(batch: dict[str, Any]) -> dict[str, Any]:
    """Finish the deferred views of a batch; other batches are returned as they are."""
    later = [key for key in batch if key.endswith(FINISH)]
    for key in later:
        numbers, name = batch.pop(key), key.removesuffix(FINISH)
        batch[name] = finished(batch[name], numbers)
    return batch


@torch.no_grad()
def finished(
    crops: UInt8[Tensor, "b v s s2 3"], numbers: Float[Tensor, "b v k"]
) -> UInt8[Tensor, "b v s s2 3"]:
    """Colour, then blur, then solarise; rounded after each, as OpenCV does.

    Args:
        crops: Cut, resized and mirrored.
        numbers: A 3x4 matrix row by row, 1 for solarisation, and the kernel of the blur.
    """
    rows = numbers.flatten(0, 1)  # (n, k)
    x = crops.flatten(0, 1)  # (n, s, s, 3)
    matrix = rows[:, : BEFORE_KERNEL - 1].unflatten(1, (3, 4))
    flat = torch.baddbmm(matrix[:, None, :, 3], x.flatten(1, 2).float(), matrix[:, :, :3].mT)
    x = flat.round_().clamp_(0, 255).view(x.shape)
    if rows.shape[1] > BEFORE_KERNEL + 1:
        x = _blurred(x, rows[:, BEFORE_KERNEL:])
    x = torch.where(rows[:, BEFORE_KERNEL - 1, None, None, None].bool() & (x >= 128), 255 - x, x)
    return x.to(torch.uint8).view(crops.shape)


def _blurred(
    x: Float[Tensor, "n h w 3"], kernels: Float[Tensor, "n k"]
) -> Float[Tensor, "n h w 3"]:
    """Each image with its own kernel along both axes, mirrored at the edges without repeating."""
    count, height, width, _ = x.shape
    radius = kernels.shape[1] // 2
    weights = kernels.repeat_interleave(3, dim=0)[:, None, None]  # (3n, 1, 1, k)
    planes = x.permute(0, 3, 1, 2).reshape(1, 3 * count, height, width)
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(planes, weights, groups=3 * count)
    planes = F.conv2d(planes, weights.mT, groups=3 * count)
    return planes.view(count, 3, height, width).permute(0, 2, 3, 1).add(0.5).floor().clamp(0, 255)
