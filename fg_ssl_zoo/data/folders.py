"""Images in local folders.

    ROOT/train/CLASS/x.jpg, ROOT/test/CLASS/x.jpg    labelled; val, valid, validation are tests too
    ROOT/CLASS/x.jpg                                 labelled, without a test split
    ROOT/x.jpg, or ROOT/2021/05/x.jpg and others     unlabelled

- Folder names are labels if there are two or more folders and all images are inside them.
  Subfolders of a class folder belong to it. Names that differ only in their Unicode form (NFC, NFD)
  are one class.
- A folder with the name of a split is a class if it contains images and other folders do too.
- Images beside folders, or all at least two levels deep, are unlabelled; the log says so.
- A folder that contains only one folder is opened first, since archives unpack to NAME/NAME.
- Hidden files, system files (`JUNK`) and, beside a `parts.json`, `masks` are skipped. The log
counts
  other files that are not images.
"""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data, nearest, printable
from fg_ssl_zoo.data.decode import decode
from fg_ssl_zoo.data.listing import (
    counts,
    existing_folder,
    folders_in,
    has_pictures,
    list_images,
    natural,
    no_images,
)
from fg_ssl_zoo.data.part_annotations import PartMasks, Points, read_part_masks, read_points
from fg_ssl_zoo.data.picture_cache import PictureCache
from fg_ssl_zoo.data.sample import CorruptImage, Sample

TRAIN_NAMES = ("train", "training")
"""Folders that are used for `data.train_split: train`, in order of preference."""

TEST_NAMES = ("test", "testing", "val", "valid", "validation")
"""Folders and splits that are used for `data.test_split: test`, in order of preference."""

NO_TEST = "none"
"""Value of `data.test_split` to train on all images, without holding out a part."""

_log = logging.getLogger(__name__)


class PathList:
    """Paths in one block of bytes, so that a million paths are sent to a loader process quickly."""

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
        name: Name of the data set.
        classes: Class names in the order of the labels.
        labels: Class number of every path.
        points: Keypoints, if there are any.
        masks: Part masks, if there are any.
        boxes: (n, 4) x, y, width, height of the object in pixels.

    Attributes:
        cache: Cache of decoded images for training, if given.
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
        self.cache: PictureCache | None = None
        self.keypoints = points.names if points else []
        self.parts = masks.names if masks else []

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        path = os.path.join(self.root, self.paths[index])
        return self._sample(index, decode(_read(path), path))

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """The image reduced and cached, see `ReadsForTraining`; not reduced if there are parts."""
        index = range(len(self))[index]
        path = os.path.join(self.root, self.paths[index])
        how = None if self.points is not None or self.masks is not None else reduction

        def decoded() -> np.ndarray:
            return decode(_read(path), path, how)

        return self._sample(index, self.cache.get(path, how, decoded) if self.cache else decoded())

    def _sample(self, index: int, image: np.ndarray) -> Sample:
        sample = Sample(image=image, index=index)
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
        """All paths, and the sizes of up to 256 files."""
        some = np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int)
        sizes = [_size(os.path.join(self.root, self.paths[int(i)])) for i in some]
        return "\n".join([*self.paths, *map(str, sizes)])


def _size(path: str) -> int | str:
    """Bytes of a file; `gone` of one that was deleted since the folder was listed."""
    try:
        return os.path.getsize(path)
    except OSError:
        return "gone"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise CorruptImage(f"{path}: cannot be read ({error.strerror})") from None


# --------------------------------------------------------------------------- splits


def load_folder(data: Data) -> tuple[FolderImages, FolderImages | None]:
    """Training and test images below `data.path`; `None` if there is no test folder.

    Raises:
        ValueError: No folder, no images, no such split, or test classes missing in training.
    """
    root = _without_wrappers(existing_folder(str(data.path)))
    splits = sorted(folders_in(root), key=natural)
    train_folder = _find_train(root, data.train_split, splits)
    train_paths, train_names = _split(root, train_folder)
    classes = sorted(set(train_names or ()), key=natural)
    train = _images(data, root, train_paths, train_names, classes)
    test_folder = _find_test(root, data.test_split, splits) if train_folder else None
    if train_folder:
        _tell_unused(root, [name for name in splits if name not in (train_folder, test_folder)])
    if test_folder is None:
        return train, None
    test_paths, test_names = _split(root, test_folder, classes)
    if test_names is None or train_names is None:
        return train, _images(data, root, test_paths, None, [])
    _compare_classes(root, train_folder, classes, test_folder, set(test_names))
    return train, _images(data, root, test_paths, test_names, classes)


def _compare_classes(
    root: Path, train_folder: str, classes: list[str], test_folder: str, tested: set[str]
) -> None:
    """Refuse test images of unknown classes; log classes without test images.

    Raises:
        ValueError: Test classes are missing in training; the nearest class is named.
    """
    unknown = sorted(tested - set(classes), key=natural)
    if unknown:
        raise ValueError(
            f"data.path: {len(unknown)} of the classes in {printable(root / test_folder)} are not "
            f"in {printable(root / train_folder)}: {printable(', '.join(unknown[:5]))}"
            f"{printable(nearest(unknown[0], classes))}"
        )
    if len(tested) < len(classes):
        missing = [name for name in classes if name not in tested]
        _log.warning(
            "%s has test images of %d of %d classes; none of %s",
            printable(root / test_folder), len(tested), len(classes),
            printable(", ".join(missing[:5])),
        )  # fmt: skip


def _tell_unused(root: Path, folders: list[str]) -> None:
    """Log folders with images that belong to no split and are not used."""
    masks = "masks" if (root / "parts.json").is_file() else ""
    unused = [name for name in folders if name != masks and has_pictures(root / name)]
    if unused:
        _log.warning(
            "%s: the images in %s belong to no split and are not used",
            printable(root), printable(", ".join(f"{name}/" for name in unused[:5])),
        )  # fmt: skip


def data_name(data: Data) -> str:
    """`data.name`, or the folder's name if a recipe for drawn images has a path."""
    return Path(str(data.path)).resolve().name if data.name == "drawn" else data.name


def _without_wrappers(root: Path) -> Path:
    """`root`, or the only folder in it, and so on."""
    while True:
        folders = [root / name for name in folders_in(root)]
        pictures = has_pictures(root, directly=True)
        if len(folders) != 1 or pictures or _is_split(folders[0].name) or folders[0].is_symlink():
            return root
        root = folders[0]


def _is_split(name: str) -> bool:
    return name.casefold() in (*TRAIN_NAMES, *TEST_NAMES)


def _find_train(root: Path, wanted: str, splits: list[str]) -> str:
    """Name of the training folder; empty if the images are in `root` itself."""
    if wanted == "train" and _are_classes(root, splits):
        return ""
    if found := _match(splits, TRAIN_NAMES if wanted == "train" else [wanted]):
        return found
    if wanted == "train" and not any(map(_is_split, splits)):
        return ""
    raise ValueError(f"data.train_split: {root} has no folder '{wanted}'{nearest(wanted, splits)}")


def _are_classes(root: Path, splits: list[str]) -> bool:
    """Whether a folder that is called like a split is a class, as in `bus car train truck`.

    True if it and at least one folder of another name directly contain images, and there is not
    both a training and a test folder.
    """
    named = [name for name in splits if _is_split(name)]
    trains = [name.casefold() in TRAIN_NAMES for name in named]
    others = [name for name in splits if name not in named]
    if len(set(trains)) != 1 or not others:
        return False
    if not all(has_pictures(root / name, directly=True) for name in named):
        return False
    if not any(has_pictures(root / name, directly=True) for name in others):
        return False
    _log.warning(
        "%s: %s/ is read as a class beside %s/; a split must contain class folders",
        printable(root), printable(named[0]), printable(others[0]),
    )  # fmt: skip
    return True


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
    """The first wanted name that exists, ignoring case."""
    there = {_composed(name).casefold(): name for name in splits}
    asked = [_composed(name).casefold() for name in wanted]
    return next((there[name] for name in asked if name in there), None)


def _composed(name: str) -> str:
    """NFC: macOS writes the letter `ü` as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def _split(
    root: Path, folder: str, classes: Sequence[str] = ()
) -> tuple[list[str], list[str] | None]:
    """Paths of a split relative to `root`, and their class names where folders are classes.

    Args:
        root: Root of the data set.
        folder: Folder of the split.
        classes: Class names of the training split; a single folder with such a name is a class too.
    """
    listing = list_images(root / folder)
    if not listing.paths:
        raise no_images(root / folder, listing.others)
    if listing.others:
        _log.warning(
            "%s: %d images; not read: %s",
            printable(root / folder), len(listing.paths), counts(listing.others),
        )  # fmt: skip
    names = _class_names(root / folder, listing.paths, classes)
    prefix = f"{folder}/" if folder else ""
    return [prefix + path for path in listing.paths], names


def _class_names(folder: Path, paths: list[str], classes: Sequence[str]) -> list[str] | None:
    depths = {path.count("/") for path in paths}
    tops = [_composed(path.partition("/")[0]) for path in paths]
    if 0 in depths and len(depths) > 1:
        loose = [path for path in paths if "/" not in path]
        _log.warning(
            "%s is read as unlabelled: %d images are beside its folders (%s, ...); "
            "move them away to use folder names as labels",
            printable(folder), len(loose), printable(loose[0]),
        )  # fmt: skip
    elif min(depths) >= 1 and classes and set(tops) <= set(classes):
        return tops
    elif min(depths) > 1:
        _log.warning("%s is read as unlabelled: folders in folders", printable(folder))
    elif min(depths) == 1 and len(set(tops)) > 1:
        return tops
    elif min(depths) == 1 and classes:
        _log.warning(
            "%s is read as unlabelled: its only folder, %s, is no class of the training images%s",
            printable(folder), printable(tops[0]), printable(nearest(tops[0], classes)),
        )  # fmt: skip
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
