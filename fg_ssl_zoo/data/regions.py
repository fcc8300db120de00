"""Regions of an image, and views that carry them along.

    Segments      pixels of one colour hang together (Felzenszwalb & Huttenlocher, 2004)
    Grid          n x n squares
    given_parts   the part masks of the data set
    noted         what a method has found before the round, as PARTICLE's parts

Each is a callable sample -> (h, w) region numbers 0..255. Segments are slow to find, so they are
taken once a round as notes (`segment_notes`); a sample without its note is segmented on the spot.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import UInt8
from torch import Tensor

from fg_ssl_zoo.data.loader import image_loader, resolve_num_workers
from fg_ssl_zoo.data.sample import CorruptImage, Images, Sample
from fg_ssl_zoo.data.views import Augmentation, draw_view, render, render_mask
from fg_ssl_zoo.ops.region_contrast import MOST_REGIONS, sample_regions, vote_cells

NOTE_SIDE = 64
"""A note is the whole image in 64 x 64 region numbers, as PARTICLE stores its part maps."""

SEGMENT_SIDE = 256
"""Pixels of the longer side of the image that is segmented; larger ones are reduced first."""

TYPICAL_AREA = 500 * 375
"""Pixels of an ImageNet image, for which scale and smallest segment are stated."""

VOTES = 8
"""Mask pixels along a side of a cell, of which the commonest decides; 32 in the official code."""

SAMPLED = 32
"""About as many images, spread over the set, are looked at before training on given masks."""

RegionsOf = Callable[[Sample], np.ndarray]
"""One sample becomes its (h, w) uint8 region numbers."""

_log = logging.getLogger(__name__)


# --------------------------------------------------------------------------- sources


@dataclass(frozen=True)
class Segments:
    """Felzenszwalb's segments, scikit-image's implementation.

    The official code (google-deepmind/detcon) segments ImageNet at its own resolution with scale
    1,000 and segments of 1,000 pixels or more. Both are areas and follow that of the image here,
    so that large and small copies of one image have the same segments.

    Attributes:
        scale: And smallest segment, in pixels of a 500 x 375 image; larger gives fewer segments.
    """

    scale: float = 1000

    def __call__(self, sample: Sample) -> UInt8[np.ndarray, "h w"]:
        """From the note `regions` of the sample, or from its image."""
        if "regions" not in sample:
            sample = {**sample, "regions": self.note(sample["image"])}
        return noted(sample)

    def note(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "r r"]:
        """The segments of an image as (NOTE_SIDE, NOTE_SIDE); the 256th and later ones are one."""
        felzenszwalb = _felzenszwalb()
        shrink = SEGMENT_SIDE / max(image.shape[:2])
        if shrink < 1:
            width, height = (max(1, round(side * shrink)) for side in image.shape[1::-1])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        scale = self.scale * image.shape[0] * image.shape[1] / TYPICAL_AREA
        found = felzenszwalb(image, scale=scale, min_size=max(1, round(scale)))
        few = _resized(np.minimum(found, np.iinfo(np.int16).max).astype(np.int16), NOTE_SIDE)
        _, numbers = np.unique(few, return_inverse=True)
        return np.minimum(numbers, MOST_REGIONS - 1).reshape(few.shape).astype(np.uint8)


def needs_segments() -> None:
    """Refuse to go on without scikit-image.

    Raises:
        ValueError: It is not installed; the message says how.
    """
    _felzenszwalb()


def _felzenszwalb() -> Callable[..., np.ndarray]:
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError:
        raise ValueError(
            "options.masks: felzenszwalb needs scikit-image: pip install 'fg-ssl-zoo[masks]'; "
            "masks=grid needs no package"
        ) from None
    return felzenszwalb


@dataclass(frozen=True)
class Grid:
    """Squares, whatever the image shows.

    Attributes:
        side: Squares in a row; 16 at most.
    """

    side: int

    def __call__(self, sample: Sample) -> UInt8[np.ndarray, "h w"]:
        """Numbered row by row."""
        rows, columns = (np.arange(s) * self.side // s for s in sample["image"].shape[:2])
        return (rows[:, None] * self.side + columns).astype(np.uint8)


def given_parts(sample: Sample) -> UInt8[np.ndarray, "h w"]:
    """The part mask of the sample; background is a region, too.

    Raises:
        ValueError: There is none.
    """
    if "part_mask" not in sample:
        raise ValueError(
            "options.masks: given needs part masks, and the images have none; add parts.json and a "
            "folder masks/ beside them (docs/data.md), or use felzenszwalb or grid"
        )
    return sample["part_mask"]


def noted(sample: Sample) -> UInt8[np.ndarray, "h w"]:
    """The note `regions` at the image's size.

    Without one, as where `fgssl data show` looks at views before anything is trained, a grid.
    """
    if "regions" not in sample:
        return Grid(4)(sample)
    height, width = sample["image"].shape[:2]
    return _resized(np.asarray(sample["regions"]), width, height)


def _resized(regions: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """Nearest neighbour by centres; plain INTER_NEAREST takes corners, half a pixel aside."""
    size = (width, height or width)
    return cv2.resize(regions, size, interpolation=cv2.INTER_NEAREST_EXACT)


# --------------------------------------------------------------------------- notes


@dataclass(frozen=True)
class _Noted:
    """Views that are a note and nothing else: `regions`."""

    segments: Segments

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        return {"regions": self.segments.note(sample["image"])}


def segment_notes(
    images: Images, segments: Segments, accelerator: Accelerator
) -> UInt8[Tensor, "n r r"]:
    """Segments of all images, each process its share; zeros where one cannot be decoded.

    Raises:
        ValueError: Every image is one segment.
    """
    world, me = accelerator.num_processes, accelerator.process_index
    if accelerator.is_main_process:
        _log.info("masks     segmenting %d images", len(images))
    notes = torch.zeros(len(images), NOTE_SIDE, NOTE_SIDE, dtype=torch.uint8)
    loader = image_loader(
        images, _Noted(segments), range(me, len(images), world),
        batch_size=32, num_workers=resolve_num_workers("auto", world), title="masks",
    )  # fmt: skip
    for batch in loader:
        if batch:
            notes[batch["index"]] = batch["regions"]
    if world > 1:  # a row is zero on all processes but one
        notes = torch.as_tensor(accelerator.reduce(notes.to(accelerator.device), "sum")).cpu()
    last = notes.flatten(1).amax(dim=1)  # regions are numbered without gaps
    if not last.any():
        raise ValueError(
            f"options.masks: every image of {images.name} is a single region at scale "
            f"{segments.scale:g}; use a smaller scale, or masks=grid"
        )
    if accelerator.is_main_process:
        mean, single = last.float().mean() + 1, (last == 0).sum()
        _log.info("masks     %.1f regions an image, %d images with a single one", mean, single)
    return notes


def check_given(images: Images) -> None:
    """Look at some images before training on the masks that the data set brings.

    Raises:
        ValueError: They have no masks, or nothing but background.
    """
    for index in range(0, len(images), max(1, len(images) // SAMPLED)):
        try:
            sample = images[index]
        except CorruptImage:
            continue
        if several(given_parts(sample)):
            return
    raise ValueError(
        f"options.masks: the part masks of {images.name} show a single part in all images "
        "that were checked; use felzenszwalb or grid"
    )


def several(regions: np.ndarray) -> bool:
    """Whether there is more than one region."""
    return bool(regions.min() != regions.max())


# --------------------------------------------------------------------------- views


@dataclass(frozen=True)
class RandomRegionViews:
    """Two independent views of one image and of its regions, cut alike.

    Attributes:
        size: Side in pixels.
        cells: Side of the feature map that the regions are brought to.
        num_samples: Regions that are drawn to be compared.
        augmentations: One for each view.
        regions: Regions of a sample.
    """

    size: int
    cells: int
    num_samples: int
    augmentations: Sequence[Augmentation]
    regions: RegionsOf

    @property
    def reads_masks(self) -> bool:
        """Whether the regions are the part masks of the images."""
        return self.regions is given_parts

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """What a method that contrasts regions reads.

        Returns:
            `images` (2, s, s, 3) uint8; `masks` (2, c, c) and `ids` (2, n) int64; and `weight`,
            which is 0 for an image of a single region.
        """
        image, regions = sample["image"], self.regions(sample)
        height, width = image.shape[:2]
        assert regions.shape == (height, width)
        views = [draw_view(generator, height, width, self.size, how) for how in self.augmentations]
        side = VOTES * self.cells
        masks = [vote_cells(render_mask(regions, view, side), self.cells) for view in views]
        return {
            "images": np.stack([render(image, view, self.size) for view in views]),
            "masks": np.stack(masks).astype(np.int64),  # numbers, no image
            "ids": sample_regions(masks[0], masks[1], self.num_samples, generator),
            "weight": float(several(regions)),
        }
