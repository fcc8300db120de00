"""Annotated parts of images: names, masks, and the counts that IoU is computed from.

The masks of an image are (h, w) part numbers if parts exclude each other, with 0 for the
background; otherwise (p, h, w) zeros and ones, one map per part.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from fg_ssl_zoo.data.fixed_views import resize
from fg_ssl_zoo.data.sample import CorruptImage, Images, Sample, WrongMask, parts_known
from fg_ssl_zoo.evaluation.statistics import influence_values

BOX_MARGIN = 20
"""Margin in pixels around the box of the labels, as in PARTICLE's code."""


def part_names(images: Images) -> list[str]:
    """Names of the parts in the masks.

    Raises:
        ValueError: They have none.
    """
    names = parts_known(images)
    if not names:
        raise ValueError(
            f"{images.name} has no part masks; drawn, PASCUB, OID-Aircraft and folders with a "
            "parts.json and masks/ have part masks (docs/data.md)"
        )
    return names


def merged(names: Sequence[str], words: Iterable[str]) -> tuple[list[str], list[int]]:
    """Remove words from part names, and merge parts whose names are then equal.

    `left_door` and `right_door` without `left` and `right` are both `door`. A name that consists
    of such words only is kept.

    Returns:
        The new names in the order of their first part, and the new number of every old one, 0 for
        the background first.
    """
    dropped = set(words)
    short = ["_".join(w for w in name.split("_") if w not in dropped) or name for name in names]
    new = list(dict.fromkeys(short))
    return new, [0, *(new.index(name) + 1 for name in short)]


def mirrored(names: Sequence[str]) -> list[int]:
    """Number of every part in the mirror image: left becomes right; the background is first."""
    swap = {"left": "right", "right": "left"}
    twins = ["_".join(swap.get(word, word) for word in name.split("_")) for name in names]
    return [0, *(names.index(t) + 1 if t in names else i for i, t in enumerate(twins, start=1))]


def usable(images: Images, indices: Iterable[int]) -> list[int]:
    """The readable ones of these images, after a check of all their masks.

    Raises:
        ValueError: Masks are missing, have another size than their image, or contain numbers
            without a name; the message counts them.
    """
    num_parts, good = len(part_names(images)), []
    wrong, unknown = [], Counter[int]()
    for index in indices:
        try:
            sample = images[index]
        except WrongMask as error:
            wrong.append(str(error))
            continue
        except CorruptImage:
            continue
        mask = _mask_of(sample)
        if mask is None or mask.shape[-2:] != sample["image"].shape[:2]:
            shape = None if mask is None else mask.shape
            wrong.append(f"image {index} of {sample['image'].shape[:2]} has a mask {shape}")
        elif mask.ndim == 2:
            there = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
            unknown.update(there[there > num_parts].tolist())
        good.append(index)
    if wrong:
        raise ValueError(
            f"{images.name}: {len(wrong)} part masks do not fit their images: {wrong[0]}"
        )
    if unknown:
        found = ", ".join(f"{value} in {n} images" for value, n in sorted(unknown.items())[:5])
        raise ValueError(
            f"{images.name}: part masks contain numbers without a name: {found}; its parts are "
            f"1 to {num_parts} ({part_names(images)[0]}, ...), and 0 is none"
        )
    return good


def refuse_no_parts(images: Images, indices: Iterable[int]) -> None:
    """Refuse masks that contain background only.

    Args:
        images: The data set.
        indices: `usable` images; they are read until one shows a part.

    Raises:
        ValueError: No image shows a part.
    """
    for index in indices:
        mask = _mask_of(images[index])
        if mask is not None and mask.any():
            return
    raise ValueError(f"{images.name}: its part masks contain background only")


def _mask_of(sample: Sample) -> np.ndarray | None:
    return sample.get("part_maps", sample.get("part_mask"))


@dataclass(frozen=True)
class PartView:
    """A whole image for the network, and its masks.

    Attributes:
        size: Side of the square that the image is resized to, whatever its shape.
        table: New number of every part, the background first; see `merged`.
        exclusive: Whether the masks are part numbers; otherwise each part has its own map.
        box: Whether the image is first cropped to the box of its labels plus 20 pixels.
        cut_bottom: Number of rows that are first cut off at the bottom.
        interpolation: Filter of the image, as in the centre crop.
    """

    size: int
    table: tuple[int, ...]
    exclusive: bool = True
    box: bool = False
    cut_bottom: int = 0
    interpolation: str = "bicubic"

    def __call__(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """The image (s, s, 3) uint8, and its masks (uint8) at the image's own resolution.

        Raises:
            ValueError: The parts overlap although `exclusive` is set, or `cut_bottom` removes the
                whole image.
        """
        image, mask = sample["image"], _mask_of(sample)
        assert mask is not None  # `usable` has checked it
        if self.cut_bottom >= len(image):
            raise ValueError(
                f"part_segmentation.cut_bottom: {self.cut_bottom} rows cannot be cut off an "
                f"image of {len(image)} rows; use fewer"
            )
        truth = self._truth(mask)
        if self.cut_bottom:
            image, truth = image[: -self.cut_bottom], truth[..., : -self.cut_bottom, :]
        if self.box:
            rows, columns = labelled_box(truth, BOX_MARGIN)
            image, truth = image[rows, columns], truth[..., rows, columns]
        return resize(image, self.size, self.size, self.interpolation), truth

    def square(self, truth: UInt8[np.ndarray, "*p h w"]) -> UInt8[np.ndarray, "*p s s"]:
        """The masks resized to the network's input by nearest neighbour."""
        flat = truth.reshape(-1, *truth.shape[-2:])
        side = (self.size, self.size)
        small = [cv2.resize(plane, side, interpolation=cv2.INTER_NEAREST) for plane in flat]
        return np.stack(small).reshape(*truth.shape[:-2], *side)

    def _truth(self, mask: np.ndarray) -> UInt8[np.ndarray, "*p h w"]:
        table = np.array(self.table, dtype=np.uint8)
        if self.exclusive:
            if mask.ndim == 3:
                raise ValueError("part_segmentation.labels: these parts overlap; use independent")
            return table[mask]
        parts = range(1, max(self.table) + 1)
        if mask.ndim == 2:
            return np.stack([table[mask] == part for part in parts]).astype(np.uint8)
        return np.stack([mask[table[1:] == part].any(axis=0) for part in parts]).astype(np.uint8)


def labelled_box(truth: UInt8[np.ndarray, "*p h w"], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the box around all parts; the whole image if there is none."""
    rows, columns = np.nonzero(truth.reshape(-1, *truth.shape[-2:]).sum(axis=0))
    if not len(rows):
        return slice(None), slice(None)
    top, left = (max(0, int(found.min()) - margin) for found in (rows, columns))
    return slice(top, int(rows.max()) + 1 + margin), slice(left, int(columns.max()) + 1 + margin)


# --------------------------------------------------------------------------- scores


def planes(labels: Int64[Tensor, "h w"], num_values: int) -> Bool[Tensor, "c h w"]:
    """One boolean plane for each of the values 0, 1, ..."""
    return labels == torch.arange(num_values, device=labels.device)[:, None, None]


def overlaps(
    predicted: Bool[Tensor, "c h w"], truth: Bool[Tensor, "c h w"]
) -> Int64[Tensor, "3 c"]:
    """Pixel counts of one image: intersection, predicted, annotated."""
    return torch.stack([t.sum(dim=(1, 2)) for t in (predicted & truth, predicted, truth)])


def iou(counts: Float[Tensor, "3 c"]) -> Float[Tensor, " c"]:
    """Intersection over union of summed counts; NaN if nothing is predicted or annotated."""
    both, predicted, true = counts
    return both / (predicted + true - both)


def occurring(counts: Int64[Tensor, "n 3 c"], skip: int = 0) -> Bool[Tensor, " c"]:
    """Classes that occur in some mask, without the first `skip`."""
    there = counts[:, 2].sum(dim=0) > 0
    there[:skip] = False
    return there


def mean_iou_values(counts: Int64[Tensor, "n 3 c"], *, skip: int = 0) -> Float64[np.ndarray, " n"]:
    """One value per image, whose mean is the mean IoU of the data set (`influence_values`).

    Counts are summed over the data set before they are divided. The mean is over the classes that
    occur in the masks, so it is over the same parts for every model.

    Args:
        counts: `overlaps` of every image.
        skip: Number of classes left out at the beginning; 1 leaves out the background.
    """
    there = occurring(counts, skip)
    return influence_values(lambda total: iou(total[:, there]).mean(), counts)
