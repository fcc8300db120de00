"""Pictures in local folders.

    ROOT/train/CLASS/x.jpg, ROOT/test/CLASS/x.jpg    labelled; val, valid, validation are tests too
    ROOT/CLASS/x.jpg                                 labelled, without a test split
    ROOT/x.jpg, or ROOT/2021/05/x.jpg and others     unlabelled

Folder names are labels where every picture lies in one of two or more folders and none beside them;
subfolders of a class folder belong to it. Pictures loose beside folders, or all two and more levels
deep, are unlabelled, which the log says. A folder that holds nothing but one folder is opened first
(archives unpack to NAME/NAME). Hidden files, `__MACOSX` and, where there is a `parts.json`, `masks`
are skipped.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data, home_path, nearest
from fg_ssl_zoo.data.decode import decode
from fg_ssl_zoo.data.part_notes import PartMasks, Points, read_part_masks, read_points
from fg_ssl_zoo.data.sample import CorruptImage, Sample

# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".jp2", ".ppm", ".pgm", ".pbm", ".avif",
})
# fmt: on
"""Files with these endings, in any case, are pictures."""

TEST_NAMES = ("test", "testing", "val", "valid", "validation")
"""Folders and splits that may stand for `data.test_split: test`, best first."""

NO_TEST = "none"
"""As `data.test_split`: train on everything, hold nothing out."""

_log = logging.getLogger(__name__)


class PathList:
    """Paths in one block of bytes: a million of them travel to a loader process at once."""

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._block = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._block[self._ends[index] : self._ends[index + 1]])

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class FolderImages:
    """Image files of one split.

    Args:
        root: Folder that the paths start from.
        paths: Relative paths, with `/`.
        name: Of the data set.
        classes: Class names in the order of the labels.
        labels: Class number of every path.
        points: Keypoints, if there are any.
        masks: Part masks, if there are any.
        boxes: (n, 4) x, y, width, height of the object in pixels.

    Attributes:
        parts: Names of the part mask values 1, 2, ...
        keypoints: Names of the keypoints.
    """

    def __init__(
        self,
        root: str | Path,
        paths: Sequence[str],
        *,
        name: str,
        classes: Sequence[str] = (),
        labels: np.ndarray | None = None,
        points: Points | None = None,
        masks: PartMasks | None = None,
        boxes: np.ndarray | None = None,
    ) -> None:
        self.root, self.name = str(root), name
        self.paths = PathList(paths)
        self.classes = list(classes)
        self.labels = labels
        self.points, self.masks, self.boxes = points, masks, boxes
        self.keypoints = points.names if points else []
        self.parts = masks.names if masks else []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path = os.path.join(self.root, self.paths[index])
        sample = Sample(image=decode(_read(path), path), index=index)
        height, width = sample["image"].shape[:2]
        if self.labels is not None:
            sample["label"] = int(self.labels[index])
        if self.points is not None:
            sample["keypoints"] = self.points.of(index, height, width)
        if self.masks is not None:
            key = "part_maps" if self.masks.overlapping else "part_mask"
            sample[key] = self.masks.of(self.paths[index], height, width)
        return sample

    @property
    def identity(self) -> str:
        """What tells these files from others: all paths, and the sizes of up to 256 files."""
        some = np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int)
        sizes = [os.path.getsize(os.path.join(self.root, self.paths[int(i)])) for i in some]
        return "\n".join([*self.paths, *map(str, sizes)])


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise CorruptImage(f"{path}: cannot be read ({error.strerror})") from None


# --------------------------------------------------------------------------- what lies in a folder


@dataclass
class Listing:
    """Pictures below a folder, and what else was met.

    Attributes:
        paths: Relative to the folder, in natural order (`9.jpg` before `10.jpg`).
        others: Number of other files by suffix.
    """

    paths: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def list_images(folder: str | Path) -> Listing:
    """All pictures below a folder; links are followed, but not in circles.

    Raises:
        ValueError: A folder that may not be read.
    """
    listing = Listing()
    try:
        _walk(str(folder), "", frozenset(), listing)
    except OSError as error:
        raise ValueError(f"data.path: {error.filename} cannot be read ({error.strerror})") from None
    return listing


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]], into: Listing) -> None:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    masks = "masks" if os.path.exists(os.path.join(folder, "parts.json")) else ""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: natural(entry.name))
    for entry in found:
        if entry.name.startswith(".") or entry.name in ("__MACOSX", masks):
            continue
        if entry.is_dir():
            _walk(entry.path, f"{prefix}{entry.name}/", above | {here}, into)
            continue
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in SUFFIXES and entry.is_file():
            into.paths.append(prefix + entry.name)
        else:
            into.others["broken links" if not os.path.exists(entry.path) else suffix] += 1


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that reads digits as numbers."""
    words = re.split(r"([0-9]+)", name)
    return [int(word) if i % 2 else word.casefold() for i, word in enumerate(words)], name


def existing_folder(path: str) -> Path:
    """The folder a user named.

    Raises:
        ValueError: It is missing, with the nearest name beside it, or it is a file.
    """
    folder = home_path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"data.path: {path} is a file; a folder of pictures is needed")
    parent, missing = folder.parent, folder
    while not parent.is_dir() and parent != parent.parent:
        parent, missing = parent.parent, parent
    beside = sorted((entry.name for entry in parent.iterdir() if entry.is_dir()), key=natural)
    here = "" if folder.is_absolute() else f" (seen from {Path.cwd()})"
    raise ValueError(
        f"data.path: there is no folder {path}{here}: {missing.name} is not in {parent}"
        f"{nearest(missing.name, beside)}"
    )


def _complain_of_no_images(folder: Path, others: Counter[str]) -> ValueError:
    if not any(folder.iterdir()):
        return ValueError(f"data.path: {folder} is empty")
    kinds = [f"{count} {suffix or 'without a suffix'}" for suffix, count in others.most_common(4)]
    found = f"found {', '.join(kinds)}" if kinds else "found only folders and hidden files"
    wanted = " ".join(sorted(SUFFIXES))
    return ValueError(f"data.path: no pictures in {folder} ({wanted}); {found}")


# --------------------------------------------------------------------------- splits


def load_folder(data: Data) -> tuple[FolderImages, FolderImages | None]:
    """Training and test pictures below `data.path`; no test pictures where there is no such folder.

    Raises:
        ValueError: No folder, no pictures, no such split, or test classes that training lacks.
    """
    root = _without_wrappers(existing_folder(str(data.path)))
    splits = sorted((entry.name for entry in root.iterdir() if entry.is_dir()), key=natural)
    train_folder = _find_train(root, data.train_split, splits)
    train_paths, train_names = _split(root, train_folder)
    classes = sorted(set(train_names or ()), key=natural)
    train = _images(data, root, train_paths, train_names, classes)
    test_folder = _find_test(root, data.test_split, splits) if train_folder else None
    if test_folder is None:
        return train, None
    test_paths, test_names = _split(root, test_folder)
    if test_names is None or train_names is None:
        return train, _images(data, root, test_paths, None, [])
    unknown = sorted(set(test_names) - set(classes), key=natural)
    if unknown:
        raise ValueError(
            f"data.path: {len(unknown)} of the classes in {root / test_folder} are not in "
            f"{root / train_folder}: {', '.join(unknown[:5])}{nearest(unknown[0], classes)}"
        )
    return train, _images(data, root, test_paths, test_names, classes)


def data_name(data: Data) -> str:
    """`data.name`, or the folder's name where a recipe for drawn pictures was given a path."""
    return Path(str(data.path)).resolve().name if data.name == "drawn" else data.name


def _without_wrappers(root: Path) -> Path:
    """`root`, or the only folder in it, and so on."""
    while True:
        entries = [entry for entry in root.iterdir() if not entry.name.startswith(".")]
        folders = [entry for entry in entries if entry.is_dir() and entry.name != "__MACOSX"]
        pictures = any(entry.suffix.lower() in SUFFIXES for entry in entries)
        if len(folders) != 1 or pictures or _is_split(folders[0].name) or folders[0].is_symlink():
            return root
        root = folders[0]


def _is_split(name: str) -> bool:
    return name.casefold() in ("train", "training", *TEST_NAMES)


def _find_train(root: Path, wanted: str, splits: list[str]) -> str:
    """Name of the training folder; empty where the pictures lie in `root` itself."""
    found = _match(splits, [wanted, "training"] if wanted == "train" else [wanted])
    if found:
        return found
    tests = [name for name in splits if _is_split(name)]
    if wanted == "train" and not tests:
        return ""
    raise ValueError(f"data.train_split: {root} has no folder '{wanted}'{nearest(wanted, splits)}")


def _find_test(root: Path, wanted: str, splits: list[str]) -> str | None:
    if wanted == NO_TEST:
        return None
    found = _match(splits, TEST_NAMES if wanted == "test" else [wanted])
    if found is None and wanted != "test":
        raise ValueError(
            f"data.test_split: {root} has no folder '{wanted}'{nearest(wanted, splits)}"
        )
    return found


def _match(splits: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first wanted name that is there, in any case of letters."""
    there = {name.casefold(): name for name in splits}
    return next((there[name.casefold()] for name in wanted if name.casefold() in there), None)


def _split(root: Path, folder: str) -> tuple[list[str], list[str] | None]:
    """Paths of a split relative to `root`, and their class names where folders are classes."""
    listing = list_images(root / folder)
    if not listing.paths:
        raise _complain_of_no_images(root / folder, listing.others)
    names = _class_names(root / folder, listing.paths)
    prefix = f"{folder}/" if folder else ""
    return [prefix + path for path in listing.paths], names


def _class_names(folder: Path, paths: list[str]) -> list[str] | None:
    depths = {path.count("/") for path in paths}
    tops = [path.partition("/")[0] for path in paths]
    if 0 in depths and len(depths) > 1:
        loose = [path for path in paths if "/" not in path]
        _log.warning(
            "%s is read as unlabelled: %d pictures lie beside its folders (%s, ...); "
            "move them away to have folder names as labels",
            folder, len(loose), loose[0],
        )  # fmt: skip
    elif min(depths) > 1:
        _log.warning("%s is read as unlabelled: folders in folders", folder)
    elif min(depths) == 1 and len(set(tops)) > 1:
        return tops
    return None


def _images(
    data: Data, root: Path, paths: list[str], names: list[str] | None, classes: list[str]
) -> FolderImages:
    number = {name: i for i, name in enumerate(classes)}
    labels = None if names is None else np.array([number[n] for n in names], dtype=np.int64)
    return FolderImages(
        root,
        paths,
        name=data_name(data),
        classes=classes if names else (),
        labels=labels,
        points=read_points(root, paths),
        masks=read_part_masks(root, paths),
    )
