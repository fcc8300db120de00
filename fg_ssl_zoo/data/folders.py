"""Pictures in local folders.

    ROOT/train/CLASS/x.jpg, ROOT/test/CLASS/x.jpg    labelled; val, valid, validation are tests too
    ROOT/CLASS/x.jpg                                 labelled, without a test split
    ROOT/x.jpg, or ROOT/2021/05/x.jpg and others     unlabelled

Folder names are labels where every picture lies in one of two or more folders and none beside them;
subfolders of a class folder belong to it. Names that differ only in their Unicode form (NFC, NFD)
are one class. A folder with the name of a split is a class where it holds pictures beside other
folders that do. Pictures loose beside folders, or all two and more levels deep, are unlabelled,
which the log says. A folder that holds nothing but one folder is opened first (archives unpack to
NAME/NAME). Hidden files, what systems put beside pictures (`JUNK`) and, where there is a
`parts.json`, `masks` are skipped; other files that are no pictures are counted in the log.
"""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data, nearest, printable
from fg_ssl_zoo.data.decode import decode, read_file
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
from fg_ssl_zoo.data.sample import Sample

TRAIN_NAMES = ("train", "training")
"""Folders that may stand for `data.train_split: train`, best first."""

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
        cache: Keeps decoded pictures for training, if given.
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
        return self._sample(index, decode(read_file(path), path))

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """The picture reduced and cached, see `ReadsForTraining`; whole where parts are noted."""
        index = range(len(self))[index]
        path = os.path.join(self.root, self.paths[index])
        how = None if self.points is not None or self.masks is not None else reduction

        def decoded() -> np.ndarray:
            return decode(read_file(path), path, how)

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
        """What tells these files from others: all paths, and the sizes of up to 256 files."""
        some = np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int)
        sizes = [_size(os.path.join(self.root, self.paths[int(i)])) for i in some]
        return "\n".join([*self.paths, *map(str, sizes)])


def _size(path: str) -> int | str:
    """Bytes of a file; `gone` of one that was deleted since the folder was listed."""
    try:
        return os.path.getsize(path)
    except OSError:
        return "gone"


# --------------------------------------------------------------------------- splits


def load_folder(data: Data) -> tuple[FolderImages, FolderImages | None]:
    """Training and test pictures below `data.path`; no test pictures where there is no such folder.

    Raises:
        ValueError: No folder, no pictures, no such split, or test classes that training lacks.
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
    """Test pictures of an unknown class are an error; classes without test pictures are told.

    Raises:
        ValueError: Test classes that training lacks; the nearest class is named.
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
            "%s has test pictures of %d of %d classes; none of %s",
            printable(root / test_folder), len(tested), len(classes),
            printable(", ".join(missing[:5])),
        )  # fmt: skip


def _tell_unused(root: Path, folders: list[str]) -> None:
    """Pictures in folders beside the splits are not used, which the log says."""
    masks = "masks" if (root / "parts.json").is_file() else ""
    unused = [name for name in folders if name != masks and has_pictures(root / name)]
    if unused:
        _log.warning(
            "%s: the pictures in %s belong to no split and are not used",
            printable(root), printable(", ".join(f"{name}/" for name in unused[:5])),
        )  # fmt: skip


def data_name(data: Data) -> str:
    """`data.name`, or the folder's name where a recipe for drawn pictures was given a path."""
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
    """Name of the training folder; empty where the pictures lie in `root` itself."""
    if wanted == "train" and _are_classes(root, splits):
        return ""
    if found := _match(splits, TRAIN_NAMES if wanted == "train" else [wanted]):
        return found
    if wanted == "train" and not any(map(_is_split, splits)):
        return ""
    raise ValueError(f"data.train_split: {root} has no folder '{wanted}'{nearest(wanted, splits)}")


def _are_classes(root: Path, splits: list[str]) -> bool:
    """Whether a folder that is called like a split is a class, as in `bus car train truck`.

    It holds pictures and no folders of them, as at least one folder of another name does, and there
    is not both a training and a test folder.
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
        "%s: %s/ is read as a class beside %s/; pictures of a split lie in folders of classes",
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
    """The first wanted name that is there, in any case of letters."""
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
        root: Of the data set.
        folder: Of the split.
        classes: Of the training split: a single folder with such a name is a class too.
    """
    listing = list_images(root / folder)
    if not listing.paths:
        raise no_images(root / folder, listing.others)
    if listing.others:
        _log.warning(
            "%s: %d pictures; left out are %s",
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
            "%s is read as unlabelled: %d pictures lie beside its folders (%s, ...); "
            "move them away to have folder names as labels",
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
            "%s is read as unlabelled: its only folder, %s, is no class of the training pictures%s",
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
