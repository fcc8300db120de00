"""The interfaces of the data path: a sample, views of a sample, and a source of samples."""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np


class Sample(TypedDict):
    """One image with its annotations.

    Keys:
        image: (h, w, 3) uint8, RGB.
        index: Its number in the source.
        label: Class number.
        part_mask: (h, w) uint8 part of every pixel; 0 is background.
        part_maps: (p, h, w) bool instead of it, where parts overlap: which pixels belong to each.
        regions: (r, r) uint8 region of every part of the whole image, where a method noted it.
        keypoints: (k, 3) float32; x, y in 0..1 of the image, and visible 0/1.
    """

    image: np.ndarray
    index: int
    label: NotRequired[int]
    part_mask: NotRequired[np.ndarray]
    part_maps: NotRequired[np.ndarray]
    regions: NotRequired[np.ndarray]
    keypoints: NotRequired[np.ndarray]


Views = Callable[[Sample, np.random.Generator], dict[str, Any]]
"""Function from a sample to the inputs of a method; keys are batch keys, arrays are stacked.

All random draws use the generator, which is seeded by (seed, epoch, index). They do not depend on
workers, processes or interruptions.
"""


@runtime_checkable
class Images(Protocol):
    """A source of images, map-style and picklable.

    Attributes:
        name: Name of the data set.
        classes: Class names in the order of the labels; empty when nothing is labelled.
        labels: (n,) int64 class numbers; `None` when nothing is labelled.
    """

    name: str
    classes: list[str]

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """The decoded image.

        Raises:
            CorruptImage: The file cannot be decoded; the message names it.
        """
        ...


# --------------------------------------------------------------------------- capabilities


@runtime_checkable
class HasParts(Protocol):
    """Images with part masks.

    Attributes:
        parts: Names of the mask values 1, 2, ...; empty where this set has no masks.
    """

    parts: list[str]


@runtime_checkable
class HasKeypoints(Protocol):
    """Images with keypoints.

    Attributes:
        keypoints: Names of the rows of a sample's `keypoints`; empty where this set has none.
    """

    keypoints: list[str]


@runtime_checkable
class HasIdentity(Protocol):
    """Images that identify themselves by more than the name of their data set."""

    @property
    def identity(self) -> str:
        """A text that differs for other images or another order, such as all file names."""
        ...


@runtime_checkable
class HasFiles(Protocol):
    """Images that are kept encoded: files, members of tar files, rows of a data set."""

    def name_of(self, index: int) -> str:
        """A name for messages and lists, such as the path below the folder."""
        ...

    def encoded(self, index: int) -> bytes:
        """The encoded image; empty for images that are not encoded, such as drawn ones.

        Raises:
            CorruptImage: It cannot be read.
        """
        ...

    def checked(self, index: int) -> bytes:
        """Bytes that change with the image: `encoded`, or others if reading it is too slow."""
        return self.encoded(index)

    def stat_of(self, index: int) -> tuple[int, int] | None:
        """Size in bytes and modification time in nanoseconds; `None` if unknown.

        Raises:
            OSError: The file is gone.
        """
        ...


@runtime_checkable
class ReadsMasks(Protocol):
    """Views that may read part masks.

    Attributes:
        reads_masks: Whether they do: an image with a wrong mask then counts as unreadable. All
            other views get such an image without its mask.
    """

    @property
    def reads_masks(self) -> bool: ...


@runtime_checkable
class Reduces(Protocol):
    """Views that do not need all pixels of a large image.

    Attributes:
        reduction: Width and height in pixels -> divisor by which an image may be reduced while it
            is decoded, as `data.reduction.Reduction`; `None` keeps the size.
    """

    @property
    def reduction(self) -> Callable[[int, int], int] | None: ...


@runtime_checkable
class ReadsForTraining(Protocol):
    """A source that reads images in another way for training."""

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """The image, reduced while it is decoded, and from a cache if there is one.

        Args:
            index: Number of the image.
            reduction: Width and height in pixels -> divisor of both (1, 2, 4 or 8); `None` keeps
                the size.
        """
        ...


def parts_known(images: Images) -> list[str]:
    """Names of the parts that the images have masks of; empty without masks."""
    return images.parts if isinstance(images, HasParts) else []


def keypoints_known(images: Images) -> list[str]:
    """Names of the keypoints that the images carry; empty without keypoints."""
    return images.keypoints if isinstance(images, HasKeypoints) else []


class _NoFiles(HasFiles):
    """The files of images that have none, such as drawn ones."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def name_of(self, index: int) -> str:
        return f"{self.images.name}[{index}]"

    def encoded(self, index: int) -> bytes:
        return b""

    def stat_of(self, index: int) -> None:
        return None


def files_of(images: Images) -> HasFiles:
    """The images as files, also if they have none; call once before a loop over the images."""
    return images if isinstance(images, HasFiles) else _NoFiles(images)


def image_name(images: Images, index: int) -> str:
    """The file's path in its folder, or the set's name and the number of the image."""
    return files_of(images).name_of(index)


def identity_of(images: Images) -> str:
    """Text that identifies the images: their `identity`, else the name of their data set."""
    return images.identity if isinstance(images, HasIdentity) else images.name


def read_for_training(
    images: Images, index: int, reduction: Callable[[int, int], int] | None
) -> Sample:
    """The image, reduced and from a cache where the source can do that."""
    if isinstance(images, ReadsForTraining):
        return images.for_training(index, reduction)
    return images[index]


def reduction_of(views: Views) -> Callable[[int, int], int] | None:
    """How far these views let an image be reduced while it is decoded."""
    return views.reduction if isinstance(views, Reduces) else None


# --------------------------------------------------------------------------- what is wrong with one


class CorruptImage(ValueError):
    """An image that cannot be decoded: empty, truncated, or no image at all."""


class WrongMask(CorruptImage):
    """An image whose part mask is missing, unreadable, or of another size than the image."""


def refuse_single_pictures(labels: np.ndarray, classes: Sequence[str], learner: str) -> None:
    """Refuse classes with a single training image.

    Args:
        labels: (n,) int64 class numbers of the training images.
        classes: Class names.
        learner: Name of the method or protocol, for the message.

    Raises:
        ValueError: There are such classes; the first five are named.
    """
    counts = np.bincount(labels, minlength=len(classes))
    single = [name for name, count in zip(classes, counts, strict=False) if count == 1]
    if single:
        raise ValueError(
            f"{learner} needs several images per class; {len(single)} of {len(classes)} have "
            f"one training image ({', '.join(single[:5])}); add images, or leave these classes out"
        )
