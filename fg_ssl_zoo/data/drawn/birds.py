"""Drawn birds: a fine-grained data set that needs no download.

    index -> pose, plumage, surroundings, light    drawn from (seed, index), blind to the class
    label -> species                               a row of small attributes
    both  -> image, part mask, keypoints

So the same index drawn as two classes gives one scene with two birds that differ in a beak or a
wing bar, and everything large (colour, size, posture, background) says nothing about the class.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from fg_ssl_zoo.data.drawn.anatomy import KEYPOINTS, PART, PARTS, Pose
from fg_ssl_zoo.data.drawn.plumage import Bird, Plumage
from fg_ssl_zoo.data.drawn.scenery import Seat, light, paint_background, paint_front, paint_seat
from fg_ssl_zoo.data.drawn.species import MAX_CLASSES, Species, species, species_name
from fg_ssl_zoo.data.sample import Sample

MIN_IMAGE_SIZE = 32
KEYPOINT_PARTS = np.array([PART[part] for part in KEYPOINTS.values()])
NEIGHBOURS = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)])
KEPT_BYTES = 64 * 2**20
"""Bytes of drawings that a process keeps: 4,060 images of 64 px, or 334 of 224 px."""


class Drawing(NamedTuple):
    """What is drawn of one bird.

    Fields:
        image: (s, s, 3) uint8.
        mask: (s, s) uint8 part of every pixel.
        keypoints: (k, 3) float32, as in a `Sample`.
    """

    image: np.ndarray
    mask: np.ndarray
    keypoints: np.ndarray


class Drawings:
    """Drawings of this process, the first ones up to a number of bytes.

    Drawing takes 2 ms at 64 px and a copy 0.01 ms, and every epoch and measurement asks for the
    same birds. The first ones stay: an epoch reads all of them, so that replacing the oldest ones
    would find hardly any of them again.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[int, int, int, Species], Drawing] = {}

    def of(self, image_size: int, seed: int, index: int, kind: Species) -> Drawing:
        """A drawing that the caller may change."""
        key = (image_size, seed, index, kind)
        if (kept := self._kept.get(key)) is None:
            kept = drawing(*key)
            size = sum(array.nbytes for array in kept)
            if self.bytes + size > self.max_bytes:
                return kept
            if self._kept.setdefault(key, kept) is kept:  # no other thread was first
                self.bytes += size
        return Drawing(*(array.copy() for array in kept))


DRAWINGS = Drawings(KEPT_BYTES)


class DrawnBirds:
    """Images of birds whose species differ only in small parts.

    Every image follows from (seed, index) alone: it is the same in any process, in any order, and
    for any `num_images`. Train and test images take different seeds.

    Args:
        num_images: Length of the data set.
        num_classes: 2 to `MAX_CLASSES`; fewer classes are the first ones of more.
        image_size: Height and width in pixels, at least 32.
        seed: Another seed draws other individuals of the same species.

    Attributes:
        labels: (num_images,) int64; image i shows class `i % num_classes`.
        parts: Names of the part mask values 1, 2, ...; 0 is background.
        keypoints: Names of the keypoints.
    """

    name = "drawn"

    def __init__(
        self,
        num_images: int = 2000,
        *,
        num_classes: int = 20,
        image_size: int = 96,
        seed: int = 0,
    ) -> None:
        if not 2 <= num_classes <= MAX_CLASSES:
            raise ValueError(f"num_classes must be in 2..{MAX_CLASSES}, not {num_classes}")
        if image_size < MIN_IMAGE_SIZE:
            raise ValueError(f"image_size must be at least {MIN_IMAGE_SIZE}, not {image_size}")
        if num_images < 0:
            raise ValueError(f"num_images must be at least 0, not {num_images}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, not {seed}")
        self.image_size, self.seed = image_size, seed
        self.classes = [species_name(label) for label in range(num_classes)]
        self.labels = np.arange(num_images, dtype=np.int64) % num_classes
        self.parts = list(PARTS)
        self.keypoints = list(KEYPOINTS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be below {len(self)}, not {index}")
        index = int(index) % len(self)
        return self.draw(index, int(self.labels[index]))

    @property
    def identity(self) -> str:
        """What decides the images besides their number."""
        return f"drawn {self.image_size} {self.seed}"

    def draw(self, index: int, label: int) -> Sample:
        """Image `index` as it would look if its bird were of class `label`."""
        if not 0 <= label < len(self.classes):
            raise ValueError(f"label must be in 0..{len(self.classes) - 1}, not {label}")
        drawn = DRAWINGS.of(self.image_size, self.seed, index, species(label))
        return Sample(
            image=drawn.image,
            index=index,
            label=label,
            part_mask=drawn.mask,
            keypoints=drawn.keypoints,
        )


def drawing(image_size: int, seed: int, index: int, kind: Species) -> Drawing:
    """Draw bird `index` of a seed as one of this species."""
    rng = np.random.default_rng([seed, index])
    canvas = paint_background(image_size, rng)
    bird = Bird(kind, Pose.sample(rng), Plumage.sample(rng))
    seat = Seat.sample(rng)
    ground = bird.skeleton.feet.mean(axis=0)
    paint_seat(canvas, seat, ground)
    bird.paint(canvas)
    paint_front(canvas, seat, ground)
    pixels, mask = canvas.halved()
    keypoints = with_visibility(bird.skeleton.keypoints(), mask)
    return Drawing(light(pixels, mask, rng), mask, keypoints)


def with_visibility(
    points: Float[np.ndarray, "k 2"], mask: UInt8[np.ndarray, "h w"]
) -> Float32[np.ndarray, "k 3"]:
    """Append 1 where a keypoint's part is to be seen within one pixel of it, otherwise 0."""
    columns, rows = np.floor(points * len(mask)).astype(int).T
    inside = (columns >= 0) & (rows >= 0) & (columns < len(mask)) & (rows < len(mask))
    near = np.clip(NEIGHBOURS[:, :, None] + (columns, rows), 0, len(mask) - 1)
    seen = (mask[near[:, 1], near[:, 0]] == KEYPOINT_PARTS).any(axis=0)
    return np.column_stack([points, seen & inside]).astype(np.float32)


def part_overlay(
    image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], opacity: float = 0.6
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its parts in colours, to be looked at."""
    hues = (np.arange(len(PARTS) + 1) * 67 % 180).astype(np.uint8)
    hsv = np.stack([hues, np.full_like(hues, 200), np.full_like(hues, 255)], axis=1)
    colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    blend = image * (1 - opacity) + colours[mask] * opacity
    return np.where(mask[..., None] > 0, blend, image).astype(np.uint8)
