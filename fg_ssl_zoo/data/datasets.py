"""From `data:` of a recipe to pictures: which source, which split, how many.

    data.path                local folder (`folders`, `official` for CUB-200-2011 and NABirds,
                             `pascub` and `oid_aircraft` for birds and aeroplanes with part masks)
    data.hub_id, data.name   Hugging Face datasets (`hub_images`, `catalog`)
    name: drawn              the built-in birds (`drawn`)

A labelled source without labelled test pictures gives up a part of each class for them.
"""

import copy
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from huggingface_hub import cached_assets_path

from fg_ssl_zoo.config import Data, printable
from fg_ssl_zoo.data.cub_layout import load_official, official_folder
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.folders import NO_TEST, FolderImages, load_folder
from fg_ssl_zoo.data.hub_images import HubImages, load_hub
from fg_ssl_zoo.data.listing import existing_folder
from fg_ssl_zoo.data.oid_aircraft import load_oid, oid_folder
from fg_ssl_zoo.data.pascub import load_pascub, pascub_folder
from fg_ssl_zoo.data.picture_cache import PictureCache
from fg_ssl_zoo.data.sample import (
    CorruptImage,
    HasIdentity,
    Images,
    ReadsForTraining,
    Sample,
    keypoints_known,
    parts_known,
)

LAYOUTS = (
    (official_folder, load_official),
    (pascub_folder, load_pascub),
    (oid_folder, load_oid),
)
"""Layouts of folders: how each is recognised, and its reader; any other is `load_folder`'s."""

HELD_OUT = 0.2
"""Share of every class that becomes the test split where a labelled source has none."""

DRAWN_TRAIN, DRAWN_TEST_SHARE = 2000, 1 / 4

_log = logging.getLogger(__name__)


class Subset:
    """Some pictures of a source, numbered anew.

    Args:
        images: The source.
        indices: (n,) numbers in the source, in the order of the subset.
    """

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices
        self.name, self.classes = images.name, images.classes
        self.labels = None if images.labels is None else images.labels[indices]
        self.parts, self.keypoints = parts_known(images), keypoints_known(images)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return {**self.images[int(self.indices[index])], "index": index}

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """As the source does, see `ReadsForTraining`."""
        index = range(len(self))[index]
        number = int(self.indices[index])
        if not isinstance(self.images, ReadsForTraining):
            return {**self.images[number], "index": index}
        return {**self.images.for_training(number, reduction), "index": index}

    @property
    def identity(self) -> str:
        """The source's, and the numbers."""
        return f"{_identity(self.images)}\n{self.indices.tolist()}"


def load_splits(data: Data, seed: int = 0) -> tuple[Images, Images | None]:
    """Pictures to pretrain on, and labelled test pictures of the same classes.

    Args:
        data: `data:` of the recipe.
        seed: Of drawn pictures and of the choice of `num_images`.

    Returns:
        Training pictures; test pictures, or `None` where training has no labels to score them with.

    Raises:
        ValueError: What is wrong with the data, where, and what would be right.
    """
    train, test = _load(data, seed)
    if data.cache:
        _keep_pictures(train, data)
    if test is not None and (train.labels is None or test.labels is None):
        return train, None
    return train, test


def _keep_pictures(images: Images, data: Data) -> None:
    """Give a folder of pictures its cache.

    Raises:
        ValueError: The pictures are no files.
    """
    while isinstance(images, Subset):
        images = images.images
    if not isinstance(images, FolderImages):
        raise ValueError(
            f"data.cache: keeps pictures that are files in a folder; those of {images.name} are "
            "not, set data.cache=false or data.path=FOLDER"
        )
    folder = cached_assets_path("fg_ssl_zoo", namespace="pictures")
    images.cache = PictureCache(folder, int(data.cache_gb * 1e9))


def load_images(data: Data, split: Literal["train", "test"], *, seed: int = 0) -> Images:
    """One split, labelled or not; arguments and errors as `load_splits`."""
    train, test = _load(data, seed)
    if split == "train":
        return train
    if test is None:
        raise ValueError(f"data.test_split: {train.name} has no test pictures")
    return test


def all_splits(data: Data, *, seed: int = 0, hold_out: bool = True) -> dict[str, Images]:
    """`train` and, where there is one, `test`, labelled or not.

    Args:
        data: As for `load_splits`, which raises the same errors.
        seed: Likewise.
        hold_out: Give up a part of the training pictures where there are no labelled test pictures.
    """
    train, test = _load(data, seed, hold_out)
    return {"train": train} if test is None else {"train": train, "test": test}


def without_masks(images: Images) -> Images:
    """The same pictures for whoever needs no part masks, so that a wrong mask costs no picture."""
    if isinstance(images, Subset):
        return Subset(without_masks(images.images), images.indices)
    if isinstance(images, FolderImages) and images.masks is not None:
        bare = copy.copy(images)
        bare.masks, bare.parts = None, []
        return bare
    return images


def fingerprint(images: Images) -> str:
    """Twelve hex digits that change with the pictures, their order, or their labels."""
    digest = hashlib.blake2b(digest_size=6)
    labels = "" if images.labels is None else str(images.labels.tolist())
    for text in (str(len(images)), "\n".join(images.classes), labels, _identity(images)):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def file_state(images: Images) -> str:
    """Twelve hex digits that change when a file does: sizes and times of change of all of them.

    For caches, beside `fingerprint`: a copy of the pictures has another state. Of rows of a Hub
    data set, the fingerprint that `datasets` keeps.
    """
    digest, root = hashlib.blake2b(digest_size=6), image_root(images)
    digest.update(hub_state(images).encode())
    for index in range(0 if root is None else len(images)):
        try:
            found = os.stat(os.path.join(root or "", image_name(images, index)))
        except OSError:
            digest.update(b"gone")
        else:
            digest.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def hub_state(images: Images) -> str:
    """What `datasets` knows rows by; empty for a stream and for what is no Hub data set."""
    while isinstance(images, Subset):
        images = images.images
    return images.state if isinstance(images, HubImages) else ""


def image_name(images: Images, index: int) -> str:
    """The file's path in its folder, or the set's name and the number of the picture."""
    if isinstance(images, Subset):
        return image_name(images.images, int(images.indices[index]))
    if isinstance(images, FolderImages):
        return images.paths[index]
    return f"{images.name}[{index}]"


def why_unreadable(images: Images, index: int) -> str:
    """The picture's name and what is wrong with it."""
    try:
        images[index]
    except CorruptImage as error:
        return str(error)
    return f"{image_name(images, index)}: could not be read at first"


def image_root(images: Images) -> str | None:
    """The folder that `image_name` starts from; `None` where the pictures are no files."""
    if isinstance(images, Subset):
        return image_root(images.images)
    return images.root if isinstance(images, FolderImages) else None


def _identity(images: Images) -> str:
    return images.identity if isinstance(images, HasIdentity) else images.name


# --------------------------------------------------------------------------- sources


def _load(data: Data, seed: int, hold_out: bool = True) -> tuple[Images, Images | None]:
    """Both splits of the source, the training pictures down to `num_images`."""
    if data.path is None and data.hub_id is None and data.name == "drawn":
        return _draw(data, seed)
    train, test = _load_folder(data) if data.path is not None else load_hub(data)
    if train.labels is not None and data.test_split == NO_TEST:
        test = None
    elif hold_out and train.labels is not None and (test is None or test.labels is None):
        train, test = _hold_out(train)
    if data.num_images is not None and data.num_images < len(train):
        train = Subset(train, balanced(train.labels, len(train), data.num_images, seed))
        _tell_missing_classes(train, data.num_images)
    return train, test


def _tell_missing_classes(images: Images, num_images: int) -> None:
    """Say which classes `num_images` leaves without a picture."""
    if images.labels is None:
        return
    counts = np.bincount(images.labels, minlength=len(images.classes))
    gone = [name for name, count in zip(images.classes, counts, strict=True) if not count]
    if gone:
        _log.warning(
            "data.num_images=%d leaves %d of %d classes without a picture: %s",
            num_images, len(gone), len(counts), printable(", ".join(gone[:5])),
        )  # fmt: skip


def _draw(data: Data, seed: int) -> tuple[Images, Images]:
    """Train and test pictures are other birds of the same species: seeds 2 s and 2 s + 1."""
    num_train = data.num_images or DRAWN_TRAIN
    num_test = max(round(num_train * DRAWN_TEST_SHARE), data.num_classes)
    how = {"num_classes": data.num_classes, "image_size": data.image_size}
    return DrawnBirds(num_train, seed=2 * seed, **how), DrawnBirds(
        num_test, seed=2 * seed + 1, **how
    )


def _load_folder(data: Data) -> tuple[Images, Images | None]:
    folder = existing_folder(str(data.path))
    for recognised, load in LAYOUTS:
        if root := recognised(folder):
            return load(data, root)
    return load_folder(data)


# --------------------------------------------------------------------------- subsets


def _hold_out(images: Images) -> tuple[Images, Images | None]:
    """Split a labelled source; pictures keep their side when others are added or moved.

    Where every class has one picture, none can be spared, and there are no test pictures.
    """
    if isinstance(images, FolderImages):
        names: Sequence[str] = list(images.paths)
    else:
        names = [str(index) for index in range(len(images))]
    assert images.labels is not None
    test = held_out(names, images.labels)
    if not test.any():
        _log.warning("%s: no class has two pictures, so that none is held out", images.name)
        return images, None
    _log.warning(
        "%s has no labelled test split: %d of %d pictures (%.0f %% of each class, by a hash of the "
        "file name) are held out; data.test_split=%s trains on all",
        images.name, test.sum(), len(test), 100 * HELD_OUT, NO_TEST,
    )  # fmt: skip
    return Subset(images, np.flatnonzero(~test)), Subset(images, np.flatnonzero(test))


def held_out(names: Sequence[str], labels: np.ndarray, share: float = HELD_OUT) -> np.ndarray:
    """(n,) bool: the `share` of each class whose names have the smallest hashes.

    A class of two or more pictures gives at least one and keeps at least one. Adding a picture
    moves at most one other picture of its class to the other side.
    """
    hashes = [hashlib.blake2b(_bytes(name), digest_size=8).digest() for name in names]
    order = np.array(sorted(range(len(names)), key=hashes.__getitem__), dtype=np.int64)
    sizes = np.bincount(labels)
    quota = np.minimum(np.maximum(np.rint(share * sizes), 1), sizes - 1)
    chosen = np.zeros(len(names), dtype=bool)
    chosen[order] = _turns(labels[order]) < quota[labels[order]]
    return chosen


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def balanced(labels: np.ndarray | None, length: int, count: int, seed: int) -> np.ndarray:
    """`count` sorted indices, as evenly over the classes as their sizes allow."""
    shuffled = np.random.default_rng([seed, length]).permutation(length)
    if labels is None:
        return np.sort(shuffled[:count])
    by_turn = shuffled[np.argsort(_turns(labels[shuffled]), kind="stable")]
    return np.sort(by_turn[:count])


def _turns(labels: np.ndarray) -> np.ndarray:
    """How many earlier entries carry the same label."""
    order = np.argsort(labels, kind="stable")
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turns = np.zeros(len(labels), dtype=np.int64)
    turns[order] = np.arange(len(labels)) - np.repeat(first, sizes)
    return turns
