"""Images listed in a CSV file: paths, and labels and splits where there are such columns.

    path,label,split
    photos/1.jpg,jay,train
    /other/disk/2.jpg,crow,test

Paths are absolute or start from the folder of the file. `data.columns` names other columns. The
separator is the comma, the semicolon or the tab. `parts.csv` and part masks beside the file are
read as those of a folder.
"""

import csv
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data, home_path, nearest, printable
from fg_ssl_zoo.data.folders import FolderImages, images_of
from fg_ssl_zoo.data.listing import PathList
from fg_ssl_zoo.data.part_annotations import separator
from fg_ssl_zoo.data.splits import ClassColumn, choose_splits, number_classes

SUFFIXES = (".csv", ".tsv")
"""Endings of files that are read here, in any case."""

COLUMNS = {
    "image": ("path", "file", "filename", "file_name", "fname", "image"),
    "label": ("label", "labels", "class"),
    "split": ("split", "is_valid"),
}
"""Names that are tried, in this order, for columns that `data.columns` does not name."""

_VALID = {"true": "valid", "1": "valid", "false": "train", "0": "train"}
"""Values of a column `is_valid`."""


@dataclass
class _Rows:
    """Rows of one split."""

    paths: PathList = field(default_factory=PathList)
    names: ClassColumn = field(default_factory=ClassColumn)
    hashes: "array[int]" = field(default_factory=lambda: array("q"))


def load_csv(data: Data) -> tuple[FolderImages, FolderImages | None]:
    """Training and test images of the CSV file `data.path`.

    All rows are training images where there is no split column. A split with an empty label is
    unlabelled.

    Raises:
        ValueError: No such column or split, an empty or repeated path, images that are not there,
            or test classes that training lacks.
    """
    file = home_path(str(data.path))
    splits, labelled = _read(file, data.columns)
    train_name, test_name = choose_splits(splits, data, str(file))
    train, test = splits[train_name], splits[test_name] if test_name else None
    for rows in filter(None, (train, test)):
        _refuse_repeated(file, rows)
    columns = (train.names if labelled else None, test.names if labelled and test else None)
    where = [f"{file}[{name}]" if name else str(file) for name in (train_name, test_name)]
    classes, labels, test_labels = number_classes(*columns, *where)
    images = images_of(data, file.parent, train.paths, classes, labels)
    if test is None:
        return images, None
    return images, images_of(data, file.parent, test.paths, classes, test_labels)


def _read(file: Path, wanted: Mapping[str, str]) -> tuple[dict[str, _Rows], bool]:
    """Rows by split, which is empty without a split column; and whether there is a label column."""
    splits: dict[str, _Rows] = {}
    missing = _Missing(file)
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.reader(lines, delimiter=separator(lines))
            header = next(reader, [])
            image, label, split = _find_columns(file, header, wanted)
            for row in filter(None, reader):
                where = f"{printable(file)}, line {reader.line_num}"
                if len(row) != len(header) or not row[image]:
                    raise ValueError(
                        f"{where}: {len(row)} values, {len(header)} are needed, and a path in "
                        f"column {printable(header[image])}"
                    )
                name = "" if split is None else _split_of(row[split], header[split], where)
                rows = splits.setdefault(name, _Rows())
                missing.check(row[image], reader.line_num)
                rows.paths.append(row[image])
                rows.hashes.append(hash(row[image]))
                if label is not None:
                    rows.names.append(row[label])
    except csv.Error as error:
        raise ValueError(f"{printable(file)} is no CSV file ({error})") from None
    except OSError as error:
        raise ValueError(
            f"data.path: {printable(file)} cannot be read ({error.strerror})"
        ) from None
    if not splits:
        raise ValueError(f"data.path: {printable(file)} lists no images")
    missing.refuse()
    return splits, label is not None


@dataclass
class _Missing:
    """Images of a list that are not there; the first is named."""

    file: Path
    asked: int = 0
    count: int = 0
    first: str = ""

    def check(self, path: str, line: int) -> None:
        """Count an image."""
        self.asked += 1
        if not os.path.isfile(os.path.join(self.file.parent, path)):
            self.count += 1
            self.first = self.first or f"{printable(path)} of line {line}"

    def refuse(self) -> None:
        """Raise where any is missing."""
        if self.count:
            raise ValueError(
                f"data.path: {self.count} of {self.asked} images of {printable(self.file)} are "
                f"not there, as {self.first}; paths start from {printable(self.file.parent)}"
            )


def _find_columns(
    file: Path, header: Sequence[str], wanted: Mapping[str, str]
) -> tuple[int, int | None, int | None]:
    """Numbers of the columns with paths, labels and splits."""
    if unknown := sorted(wanted.keys() - COLUMNS.keys()):
        raise ValueError(
            f"data.columns: unknown key '{unknown[0]}'; known are {', '.join(COLUMNS)}"
        )
    for key, column in wanted.items():
        if column not in header:
            raise ValueError(
                f"data.columns.{key}: {printable(file)} has no column '{printable(column)}'"
                f"{printable(nearest(column, header))}"
            )
    image, label, split = (
        next((name for name in _names(key, wanted) if name in header), None) for key in COLUMNS
    )
    if image is None:
        raise ValueError(
            f"data.path: {printable(file)} has no column path, but "
            f"{printable(', '.join(header))[:80]}; name the one with paths by "
            "data.columns={image: NAME}"
        )
    return (
        header.index(image),
        None if label is None else header.index(label),
        None if split is None else header.index(split),
    )


def _names(key: str, wanted: Mapping[str, str]) -> Iterator[str]:
    yield from [wanted[key]] if key in wanted else COLUMNS[key]


def _split_of(value: str, column: str, where: str) -> str:
    """The name of a split.

    Raises:
        ValueError: It is empty, or `is_valid` is neither true nor false.
    """
    name = _VALID.get(value.strip().casefold(), "") if column == "is_valid" else value.strip()
    if not name:
        words = "True or False" if column == "is_valid" else "the name of a split"
        raise ValueError(f"{where}: {column} is '{printable(value)}'; {words} is needed")
    return name


def _refuse_repeated(file: Path, rows: _Rows) -> None:
    """A path that is listed twice would count twice in scores.

    Raises:
        ValueError: Names one.
    """
    hashes = np.frombuffer(rows.hashes, dtype=np.int64)
    order = np.argsort(hashes, kind="stable")
    for place in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        first, second = (rows.paths[int(row)] for row in order[place : place + 2])
        if first == second:
            raise ValueError(
                f"data.path: {printable(file)} lists {printable(first)} twice; list it once (for a "
                "larger share of some images, see weights of data.path in docs/data.md)"
            )
