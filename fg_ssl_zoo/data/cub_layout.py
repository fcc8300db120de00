"""The official folders of CUB-200-2011 and NABirds, which share one layout.

    images.txt              ID PATH (below images/)
    train_test_split.txt    ID 1 for training, 0 for test
    image_class_labels.txt  ID CLASS          classes.txt       CLASS NAME
    bounding_boxes.txt      ID X Y W H
    parts/part_locs.txt     ID PART X Y VISIBLE     parts/parts.txt   PART NAME

IDs are numbers in CUB and hexadecimal words in NABirds. NABirds names 1011 classes of a hierarchy,
555 of which have images; labels count those only. Paper of CUB: Wah et al., CNS-TR-2011-001.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.folders import FolderImages, data_name
from fg_ssl_zoo.data.part_annotations import Points

FOLDERS = ("", "CUB_200_2011", "nabirds")
_NEEDED = ("images.txt", "train_test_split.txt", "image_class_labels.txt")


def official_folder(folder: Path) -> Path | None:
    """The folder that holds the lists: this one, or the one that the archive unpacks to in it."""
    candidates = [folder / name for name in FOLDERS]
    return next((f for f in candidates if all((f / n).is_file() for n in _NEEDED)), None)


def load_official(data: Data, root: Path) -> tuple[FolderImages, FolderImages]:
    """Official training and test images with boxes and keypoints.

    Raises:
        ValueError: A list that cannot be read, or an image that is listed but not there.
    """
    paths = dict(_lines(root / "images.txt", 2))
    ids = list(paths)
    training = _column(root / "train_test_split.txt", ids) == 1
    classes, labels = _classes(root, ids)
    points, boxes = _points(root, ids), _boxes(root, ids)
    _check_there(root, list(paths.values()))

    def split(rows: np.ndarray) -> FolderImages:
        return FolderImages(
            root,
            [f"images/{paths[ids[i]]}" for i in rows],
            name=data_name(data),
            classes=classes,
            labels=labels[rows],
            points=points and Points(points.names, points.rows[rows], pixels=True),
            boxes=None if boxes is None else boxes[rows],
        )

    return split(np.flatnonzero(training)), split(np.flatnonzero(~training))


def _classes(root: Path, ids: list[str]) -> tuple[list[str], np.ndarray]:
    """Names of the classes that have images, and the class number of every image."""
    used, labels = np.unique(_column(root / "image_class_labels.txt", ids), return_inverse=True)
    file = root / "classes.txt"
    names = dict(_lines(file, 2)) if file.is_file() else {}
    return [names.get(str(number), str(number)) for number in used], labels.astype(np.int64)


def _points(root: Path, ids: list[str]) -> Points | None:
    locations, names_file = root / "parts" / "part_locs.txt", root / "parts" / "parts.txt"
    if not locations.is_file() or not names_file.is_file():
        return None
    names = dict(_lines(names_file, 2))
    column = {part: i for i, part in enumerate(names)}
    row = {image: i for i, image in enumerate(ids)}
    points = np.zeros((len(ids), len(names), 3), np.float32)
    for image, part, x, y, visible in _lines(locations, 5):
        if visible == "1" and image in row and part in column:
            points[row[image], column[part]] = *_numbers(locations, image, (x, y)), 1
    return Points([name.replace(" ", "_") for name in names.values()], points, pixels=True)


def _boxes(root: Path, ids: list[str]) -> np.ndarray | None:
    file = root / "bounding_boxes.txt"
    if not file.is_file():
        return None
    boxes = {image: box for image, *box in _lines(file, 5)}
    _refuse_missing(file, ids, boxes)
    return np.array([_numbers(file, image, boxes[image]) for image in ids], dtype=np.float32)


def _column(file: Path, ids: list[str]) -> np.ndarray:
    """The integer that a list gives for every image."""
    values = dict(_lines(file, 2))
    _refuse_missing(file, ids, values)
    return np.array([_numbers(file, image, [values[image]], int)[0] for image in ids])


def _refuse_missing(file: Path, ids: list[str], values: Collection[str]) -> None:
    missing = [image for image in ids if image not in values]
    if missing:
        raise ValueError(
            f"{file}: {len(missing)} images of images.txt are missing, as {missing[0]}"
        )


def _numbers(
    file: Path, image: str, words: Sequence[str], kind: Callable[[str], float] = float
) -> list[float]:
    """The numbers that a list gives for an image."""
    try:
        return [kind(word) for word in words]
    except ValueError:
        raise ValueError(
            f"{file}: image {image} has '{' '.join(words)}' instead of "
            f"{'a whole number' if kind is int else 'numbers'}"
        ) from None


def _lines(file: Path, num_words: int) -> Iterator[list[str]]:
    """Words of every line; the last word may hold spaces."""
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            words = line.strip().split(maxsplit=num_words - 1)
            if len(words) == num_words:
                yield words
            elif words:
                raise ValueError(
                    f"{file}, line {number}: {num_words} words are needed: {line.strip()}"
                )


def _check_there(root: Path, paths: list[str]) -> None:
    missing = [path for path in paths if not (root / "images" / path).is_file()]
    if missing:
        raise ValueError(
            f"data.path: {len(missing)} of {len(paths)} images of {root / 'images.txt'} are not "
            f"in {root / 'images'}, as {missing[0]}"
        )
