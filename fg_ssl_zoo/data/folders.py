"""Images in local folders.

    ROOT/train/CLASS/x.jpg, ROOT/test/CLASS/x.jpg    labelled; or training, testing, val, valid, ...
    ROOT/CLASS/x.jpg                                 labelled, without a test split
    ROOT/x.jpg, or ROOT/2021/05/x.jpg and others     unlabelled

- Folder names are labels if there are two or more folders and all images are inside them.
  Subfolders of a class folder belong to it. Names that differ only in their Unicode form (NFC, NFD)
  are one class.
- A folder with the name of a split is a class if it contains images and other folders do too.
- Images beside folders, or all at least two levels deep, are unlabelled; the log says so.
- A folder that contains only one folder is opened first, since archives unpack to NAME/NAME.
- Hidden files, system files (`JUNK`) and, beside a `parts.json`, `masks` are skipped. The log
  counts other files that are not images.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data, nearest, printable
from fg_ssl_zoo.data.decode import decode, read_file
from fg_ssl_zoo.data.listing import (
    PathList,
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
from fg_ssl_zoo.data.sample import HasFiles, Sample
from fg_ssl_zoo.data.splits import (
    TRAIN_NAMES,
    ClassColumn,
    find_test,
    find_train,
    is_split,
    number_classes,
    tell_unlabelled,
    tell_unused,
)

_log = logging.getLogger(__name__)


class FolderImages(HasFiles):
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
        paths: Iterable[str],
        *,
        name: str,
        classes: Sequence[str] = (),
        labels: np.ndarray | None = None,
        points: Points | None = None,
        masks: PartMasks | None = None,
        boxes: np.ndarray | None = None,
    ) -> None:
        self.root, self.name = str(root), name
        self.paths = paths if isinstance(paths, PathList) else PathList(paths)
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
        """The image reduced and cached, see `ReadsForTraining`; not reduced if there are parts."""
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

    def name_of(self, index: int) -> str:
        """The path below the folder."""
        return self.paths[index]

    def encoded(self, index: int) -> bytes:
        """The content of the file, see `HasFiles`."""
        return read_file(os.path.join(self.root, self.paths[index]))

    def stat_of(self, index: int) -> tuple[int, int]:
        """Bytes, and time of the last change in nanoseconds."""
        found = os.stat(os.path.join(self.root, self.paths[index]))
        return found.st_size, found.st_mtime_ns

    @property
    def identity(self) -> str:
        """All paths, and the sizes of up to 256 files."""
        some = np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int)
        sizes = [_size(os.path.join(self.root, self.paths[int(i)])) for i in some]
        return "\n".join([self.paths.joined("\n"), *map(str, sizes)])


def _size(path: str) -> int | str:
    """Bytes of a file; `gone` of one that was deleted since the folder was listed."""
    try:
        return os.path.getsize(path)
    except OSError:
        return "gone"


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
    test_folder = find_test(splits, data.test_split, str(root), "folder") if train_folder else None
    if train_folder:
        _tell_unused(root, [name for name in splits if name not in (train_folder, test_folder)])
    test_paths, test_names = None, None
    if test_folder is not None:
        known = train_names.names if train_names else ()
        test_paths, test_names = _split(root, test_folder, known)
    where = [str(root / folder) for folder in (train_folder, test_folder or "")]
    classes, labels, test_labels = number_classes(train_names, test_names, *where)
    train = images_of(data, root, train_paths, classes, labels)
    if test_paths is None:
        return train, None
    return train, images_of(data, root, test_paths, classes, test_labels)


def _tell_unused(root: Path, folders: list[str]) -> None:
    """Log folders with images that belong to no split and are not used."""
    masks = "masks" if (root / "parts.json").is_file() else ""
    there = (name for name in folders if name != masks and has_pictures(root / name))
    tell_unused(str(root), [f"{name}/" for name in there])


def data_name(data: Data) -> str:
    """`data.name`, or the folder's name if a recipe for drawn images has a path."""
    return Path(str(data.path)).resolve().name if data.name == "drawn" else data.name


def _without_wrappers(root: Path) -> Path:
    """`root`, or the only folder in it, and so on."""
    while True:
        folders = [root / name for name in folders_in(root)]
        pictures = has_pictures(root, directly=True)
        if len(folders) != 1 or pictures or is_split(folders[0].name) or folders[0].is_symlink():
            return root
        root = folders[0]


def _find_train(root: Path, wanted: str, splits: list[str]) -> str:
    """Name of the training folder; empty if the images are in `root` itself."""
    if wanted == "train" and _are_classes(root, splits):
        return ""
    return find_train(splits, wanted, str(root), "folder")


def _are_classes(root: Path, splits: list[str]) -> bool:
    """Whether a folder that is called like a split is a class, as in `bus car train truck`.

    True if it and at least one folder of another name directly contain images, and there is not
    both a training and a test folder.
    """
    named = [name for name in splits if is_split(name)]
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


def _split(
    root: Path, folder: str, classes: Collection[str] = ()
) -> tuple[PathList, ClassColumn | None]:
    """Paths of a split relative to `root`, and their class names where folders are classes.

    Args:
        root: Root of the data set.
        folder: Folder of the split.
        classes: Class names of the training split; a single folder with such a name is a class too.
    """
    prefix = f"{folder}/" if folder else ""
    listing = list_images(root / folder, prefix)
    if not listing.paths:
        raise no_images(root / folder, listing.others)
    if listing.others:
        _log.warning(
            "%s: %d images; not read: %s",
            printable(root / folder), len(listing.paths), counts(listing.others),
        )  # fmt: skip
    return listing.paths, _class_names(root / folder, listing.paths, len(prefix), classes)


def _class_names(
    folder: Path, paths: PathList, start: int, classes: Collection[str]
) -> ClassColumn | None:
    """The first folder of every path behind `start`, where these folders are classes."""
    depths = {path.count("/", start) for path in paths}
    tops = ClassColumn(path[start:].partition("/")[0] for path in paths if "/" in path[start:])
    first = next(iter(tops.names), "")
    if 0 in depths and len(depths) > 1:
        loose = [path[start:] for path in paths if "/" not in path[start:]]
        tell_unlabelled(
            folder,
            f"{len(loose)} images are beside its folders ({loose[0]}, ...); "
            "move them away to use folder names as labels",
        )
    elif min(depths) >= 1 and classes and tops.names <= set(classes):
        return tops
    elif min(depths) > 1:
        tell_unlabelled(folder, "folders in folders")
    elif min(depths) == 1 and len(tops.names) > 1:
        return tops
    elif min(depths) == 1 and classes:
        tell_unlabelled(
            folder,
            f"its only folder, {first}, is no class of the training images"
            f"{nearest(first, classes)}",
        )
    return None


def images_of(
    data: Data, root: Path, paths: PathList, classes: list[str], labels: np.ndarray | None
) -> FolderImages:
    """Images of one split with the keypoints and part masks that lie in `root`."""
    return FolderImages(
        root,
        paths,
        name=data_name(data),
        classes=classes if labels is not None else (),
        labels=labels,
        points=read_points(root, paths),
        masks=read_part_masks(root, paths),
    )
