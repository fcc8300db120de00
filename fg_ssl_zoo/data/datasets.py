"""Load the images of a recipe's `data:`: source, splits, number of images.

    data.path                local folder (`folders`, `cub_layout` for CUB-200-2011 and NABirds,
                             `pascub` and `oid_aircraft` for birds and aeroplanes with part masks),
                             CSV file (`csv_images`), tar files (`shards`), folder of Parquet files
                             or of `save_to_disk` (`hub_images`)
    data.hub_id, data.name   Hugging Face datasets (`hub_images`, `catalog`)
    name: drawn              the built-in birds (`drawn`)

If a labelled source has no labelled test images, a part of each class is held out for them.
"""

import copy
import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from huggingface_hub import cached_assets_path

from fg_ssl_zoo.config import Data, Source, home_path, printable, source_name
from fg_ssl_zoo.data.combine import Mixture, Subset
from fg_ssl_zoo.data.csv_images import SUFFIXES as CSV
from fg_ssl_zoo.data.csv_images import load_csv
from fg_ssl_zoo.data.cub_layout import load_official, official_folder
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.folders import FolderImages, load_folder
from fg_ssl_zoo.data.hub_images import HubImages, is_data_set, load_hub
from fg_ssl_zoo.data.listing import existing_folder
from fg_ssl_zoo.data.oid_aircraft import load_oid, oid_folder
from fg_ssl_zoo.data.pascub import load_pascub, pascub_folder
from fg_ssl_zoo.data.picture_cache import PictureCache
from fg_ssl_zoo.data.sample import (
    CorruptImage,
    Images,
    files_of,
    identity_of,
    image_name,
)
from fg_ssl_zoo.data.shards import ShardImages, load_shards, shard_files
from fg_ssl_zoo.data.splits import NO_TEST

LAYOUTS = (
    (official_folder, load_official),
    (pascub_folder, load_pascub),
    (oid_folder, load_oid),
)
"""Layouts of folders: (detector, reader) pairs; other folders are read by `load_folder`."""

HELD_OUT = 0.2
"""Share of every class that is held out as the test split if a labelled source has none."""

DRAWN_TRAIN, DRAWN_TEST_SHARE = 2000, 1 / 4

_log = logging.getLogger(__name__)


def load_splits(data: Data, seed: int = 0) -> tuple[Images, Images | None]:
    """Training images, and labelled test images of the same classes.

    Args:
        data: `data:` of the recipe.
        seed: Seed of drawn images and of the choice of `num_images`.

    Returns:
        Training images; test images, or `None` if one of the splits has no labels.

    Raises:
        ValueError: Says what is wrong with the data, where, and what to do.
    """
    train, test = _load(data, seed)
    if data.cache:
        _keep_pictures(train, data)
    if test is not None and (train.labels is None or test.labels is None):
        return train, None
    return train, test


def _keep_pictures(images: Images, data: Data) -> None:
    """Attach the cache of decoded images to a folder.

    Raises:
        ValueError: The images are not files.
    """
    if isinstance(images, Mixture):
        for source in images.sources:
            _keep_pictures(source, data)
        return None
    if isinstance(images, Subset):
        return _keep_pictures(images.images, data)
    if not isinstance(images, FolderImages):
        raise ValueError(
            f"data.cache: only images in a local folder can be cached, and those of {images.name} "
            "are not; set data.cache=false or data.path=FOLDER"
        )
    folder = cached_assets_path("fg_ssl_zoo", namespace="pictures")
    images.cache = PictureCache(folder, int(data.cache_gb * 1e9))
    return None


def load_images(data: Data, split: Literal["train", "test"], *, seed: int = 0) -> Images:
    """One split, labelled or not; arguments and errors as `load_splits`."""
    train, test = _load(data, seed)
    if split == "train":
        return train
    if test is None:
        raise ValueError(f"data.test_split: {train.name} has no test images")
    return test


def all_splits(data: Data, *, seed: int = 0, hold_out: bool = True) -> dict[str, Images]:
    """`train` and, where there is one, `test`, labelled or not.

    Args:
        data: As for `load_splits`, which raises the same errors.
        seed: As for `load_splits`.
        hold_out: Whether to hold out a part of the training images if there are no labelled test
            images.
    """
    train, test = _load(data, seed, hold_out)
    return {"train": train} if test is None else {"train": train, "test": test}


def without_masks(images: Images) -> Images:
    """The same images without part masks, so that an invalid mask does not matter."""
    if isinstance(images, Subset):
        return Subset(without_masks(images.images), images.indices)
    if isinstance(images, Mixture):
        bare = [without_masks(source) for source in images.sources]
        return Mixture(bare, images.weights, images.name, images.classes)
    if isinstance(images, FolderImages) and images.masks is not None:
        bare = copy.copy(images)
        bare.masks, bare.parts = None, []
        return bare
    return images


def fingerprint(images: Images) -> str:
    """Twelve hex digits that change with the images, their order, or their labels."""
    digest = hashlib.blake2b(digest_size=6)
    labels = "" if images.labels is None else str(images.labels.tolist())
    for text in (str(len(images)), "\n".join(images.classes), labels, identity_of(images)):
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def file_state(images: Images) -> str:
    """Twelve hex digits of the sizes and modification times of all files.

    Used for caches together with `fingerprint`; a copy of the images has another state. For a Hub
    data set, the fingerprint of `datasets`.
    """
    digest = hashlib.blake2b(hub_state(images).encode(), digest_size=6)
    files = files_of(images)
    for index in range(len(images)):
        try:
            found = files.stat_of(index)
        except OSError:
            digest.update(b"gone")
        else:
            digest.update(b"" if found is None else f"{found[0]} {found[1]}\n".encode())
    return digest.hexdigest()


def hub_state(images: Images) -> str:
    """The fingerprint of `datasets`; empty for a stream and for other sources."""
    if isinstance(images, Subset):
        return hub_state(images.images)
    if isinstance(images, Mixture):
        return "".join(map(hub_state, images.sources))
    return images.state if isinstance(images, HubImages) else ""


def why_unreadable(images: Images, index: int) -> str:
    """The image's name and what is wrong with it."""
    try:
        images[index]
    except CorruptImage as error:
        return str(error)
    return f"{image_name(images, index)}: could not be read at first"


def image_root(images: Images) -> str | None:
    """The folder of the paths of `image_name`; `None` if the images are not files."""
    if isinstance(images, Subset):
        return image_root(images.images)
    return images.root if isinstance(images, FolderImages) else None


# --------------------------------------------------------------------------- sources


def _load(data: Data, seed: int, hold_out: bool = True) -> tuple[Images, Images | None]:
    """Both splits of the source, with at most `num_images` training images."""
    if data.path is None and data.hub_id is None and data.name == "drawn":
        return _draw(data, seed)
    train, test = _mix(data, hold_out) if data.sources else _one_source(data, hold_out)
    if data.num_images is not None and data.num_images < len(train):
        train = Subset(train, balanced(train.labels, len(train), data.num_images, seed))
        _tell_missing_classes(train, data.num_images)
    return train, test


def _one_source(data: Data, hold_out: bool) -> tuple[Images, Images | None]:
    """Both splits of a path or a Hub data set."""
    train, test = _load_path(data) if data.path is not None else load_hub(data)
    if train.labels is not None and data.test_split == NO_TEST:
        return train, None
    return _with_test_images(data, train, test) if hold_out else (train, test)


def _with_test_images(
    data: Data, train: Images, test: Images | None
) -> tuple[Images, Images | None]:
    """The splits; a part of labelled training images is held out if no test image has a label."""
    wanted = train.labels is not None and data.test_split != NO_TEST
    return _hold_out(train) if wanted and (test is None or test.labels is None) else (train, test)


def _mix(data: Data, hold_out: bool) -> tuple[Images, Images | None]:
    """Both splits of several paths; the test split has the images of all that have one.

    Nothing is held out if a source has no labels, since the mixture has none then.
    """
    names = _source_names(data)
    sources = [_alone(data, *one) for one in zip(data.sources, names, strict=True)]
    loaded = [_one_source(source, hold_out=False) for source in sources]
    unlabelled = [images.name for images, _ in loaded if images.labels is None]
    if 0 < len(unlabelled) < len(loaded):
        _log.warning(
            "%s is read without labels and without labelled test images, since these sources have "
            "no labels: %s",
            data.name, ", ".join(unlabelled),
        )  # fmt: skip
    if hold_out and not unlabelled:
        loaded = [
            _with_test_images(source, *splits)
            for source, splits in zip(sources, loaded, strict=True)
        ]
    weights = [source.weight for source in data.sources]
    train = Mixture([images for images, _ in loaded], weights, data.name)
    tests = [images for _, images in loaded if images is not None]
    return train, Mixture(tests, [1.0] * len(tests), data.name, train.classes) if tests else None


def _alone(data: Data, source: Source, name: str) -> Data:
    """The settings of one source of a mixture: its own, then those of all."""
    return replace(
        data,
        path=source.path,
        name=name,
        columns=data.columns if source.columns is None else source.columns,
        train_split=source.train_split or data.train_split,
        test_split=source.test_split or data.test_split,
    )


def _source_names(data: Data) -> list[str]:
    """A name for each source of a mixture; a number is added to a name that is taken."""
    names: list[str] = []
    for source in data.sources:
        unique = name = source_name(source.path, None)
        number = len(names) + 1
        while unique in names:
            unique, number = f"{name}_{number}", number + 1
        names.append(unique)
    return names


def _tell_missing_classes(images: Images, num_images: int) -> None:
    """Log the classes that have no image because of `num_images`."""
    if images.labels is None:
        return
    counts = np.bincount(images.labels, minlength=len(images.classes))
    gone = [name for name, count in zip(images.classes, counts, strict=True) if not count]
    if gone:
        _log.warning(
            "data.num_images=%d leaves %d of %d classes without an image: %s",
            num_images, len(gone), len(counts), printable(", ".join(gone[:5])),
        )  # fmt: skip


def _draw(data: Data, seed: int) -> tuple[Images, Images]:
    """Training and test images are different birds of the same species: seeds 2 s and 2 s + 1."""
    num_train = data.num_images or DRAWN_TRAIN
    num_test = max(round(num_train * DRAWN_TEST_SHARE), data.num_classes)
    how = {"num_classes": data.num_classes, "image_size": data.image_size}
    return DrawnBirds(num_train, seed=2 * seed, **how), DrawnBirds(
        num_test, seed=2 * seed + 1, **how
    )


def _load_path(data: Data) -> tuple[Images, Images | None]:
    """A file by its ending, a folder by its layout."""
    path = home_path(str(data.path))
    if path.suffix.lower() in CSV and not os.path.isdir(path):
        return load_csv(data)
    root, shards = shard_files(path)
    if shards:
        return load_shards(data, root, shards)
    if (streamed := is_data_set(path)) is not None:
        return load_hub(replace(data, path=None, hub_id=str(path), streaming=streamed))
    folder = existing_folder(str(data.path))
    for recognised, load in LAYOUTS:
        if root := recognised(folder):
            return load(data, root)
    return load_folder(data)


# --------------------------------------------------------------------------- subsets


def _hold_out(images: Images) -> tuple[Images, Images | None]:
    """Split a labelled source; adding or moving other images does not change an image's split.

    If every class has one image only, nothing is held out and there are no test images.
    """
    names, kind = _held_out_names(images)
    assert images.labels is not None
    test = held_out(names, images.labels)
    if not test.any():
        _log.warning(
            "%s: no class has two images of different names, so that none is held out", images.name
        )
        return images, None
    _log.warning(
        "%s has no labelled test split: %d of %d images (%.0f %% of each class, by a hash of the "
        "%s) are held out; data.test_split=%s trains on all",
        images.name, test.sum(), len(test), 100 * HELD_OUT, kind, NO_TEST,
    )  # fmt: skip
    return Subset(images, np.flatnonzero(~test)), Subset(images, np.flatnonzero(test))


def _held_out_names(images: Images) -> tuple[Iterable[str], str]:
    """Names of the images by which some are held out, and what they are, for the log.

    Images of one key of a tar file, `1.jpg` and `1.png`, have one name: they show one object. Rows
    of a data set have no names, only numbers.
    """
    if isinstance(images, FolderImages):
        return images.paths, "path"
    if isinstance(images, ShardImages):
        return map(images.object_of, range(len(images))), "name in the tar file"
    return map(str, range(len(images))), "row number"


def held_out(names: Iterable[str], labels: np.ndarray, share: float = HELD_OUT) -> np.ndarray:
    """(n,) bool: the images of the `share` of each class' names that have the smallest hashes.

    Images of one class and name stay together. A class of two or more names gives at least one and
    keeps at least one. Adding a name moves at most one other name of its class to the other side.
    """
    hashes = np.fromiter(map(_hash, names), np.uint64, len(labels))
    order = np.lexsort((hashes, labels))
    first = np.ones(len(labels), dtype=bool)  # image of its class and name
    first[1:] = (np.diff(labels[order]) != 0) | (np.diff(hashes[order]) != 0)
    classes = labels[order][first]
    sizes = np.bincount(classes)
    quota = np.minimum(np.maximum(np.rint(share * sizes), 1), sizes - 1)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order] = (_turns(classes) < quota[classes])[np.cumsum(first) - 1]
    return chosen


def _hash(name: str) -> int:
    text = name.encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def balanced(labels: np.ndarray | None, length: int, count: int, seed: int) -> np.ndarray:
    """`count` sorted indices, as evenly over the classes as their sizes allow."""
    shuffled = np.random.default_rng([seed, length]).permutation(length)
    if labels is None:
        return np.sort(shuffled[:count])
    by_turn = shuffled[np.argsort(_turns(labels[shuffled]), kind="stable")]
    return np.sort(by_turn[:count])


def _turns(labels: np.ndarray) -> np.ndarray:
    """Number of earlier entries with the same label."""
    order = np.argsort(labels, kind="stable")
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turns = np.zeros(len(labels), dtype=np.int64)
    turns[order] = np.arange(len(labels)) - np.repeat(first, sizes)
    return turns
