"""Images listed in a CSV file: paths, and labels and splits if it has such columns.

    path,label,split
    photos/1.jpg,jay,train
    /other/disk/2.jpg,crow,test

Paths are absolute or relative to the folder of the file. `data.columns` names other columns. The
separator is a comma, a semicolon or a tab. Spaces around names of columns, paths, labels and
splits are removed. Images are sorted by path. `parts.csv` and part masks beside the file are read
as for a folder.
"""

import csv
import os
import re
from array import array
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import normpath
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from fg_ssl_zoo.config import Data, nearest, printable
from fg_ssl_zoo.data.folders import FolderImages, images_of
from fg_ssl_zoo.data.listing import PathList, existing_file, natural, unreadable
from fg_ssl_zoo.data.part_annotations import separator
from fg_ssl_zoo.data.splits import ClassColumn, choose_splits, number_classes, tell_columns

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

_LINE_BREAK = re.compile(r"[\r\n]")
_QUOTED = re.compile(r"[\r\n,;\t]")
"""What only a value between quotation marks holds."""


@dataclass
class _Rows:
    """Rows of one split.

    Attributes:
        paths: Paths as written in the file.
        names: Class names; empty without a label column.
        lines: Number of the first line of each row.
        hashes: Hash of each absolute path, to find repeated ones.
    """

    paths: PathList = field(default_factory=PathList)
    names: ClassColumn = field(default_factory=ClassColumn)
    lines: "array[int]" = field(default_factory=lambda: array("q"))
    hashes: "array[int]" = field(default_factory=lambda: array("q"))

    def order(self) -> list[int]:
        """Row numbers in natural order of the paths."""
        return sorted(range(len(self.paths)), key=lambda row: natural(normpath(self.paths[row])))


class _Columns(NamedTuple):
    """Numbers of the columns."""

    image: int
    label: int | None
    split: int | None


def load_csv(data: Data) -> tuple[FolderImages, FolderImages | None]:
    """Training and test images of the CSV file `data.path`, in natural order of their paths.

    Without a split column, all rows are training images. A split with an empty label is unlabelled.

    Raises:
        ValueError: No such file, column or split; an empty or repeated path; missing images; or
            test classes that the training split lacks.
    """
    file = existing_file(str(data.path))
    splits, labelled = _read(file, data.columns)
    train_name, test_name = choose_splits(splits, data, str(file))
    train, test = splits[train_name], splits[test_name] if test_name else None
    _refuse_repeated(file, [train] if test is None else [train, test])
    columns = (train.names if labelled else None, test.names if labelled and test else None)
    where = [f"{file}[{name}]" if name else str(file) for name in (train_name, test_name)]
    classes, labels, test_labels = number_classes(*columns, *where)
    images = _images(data, file, train, classes, labels)
    if test is None:
        return images, None
    return images, _images(data, file, test, classes, test_labels)


def _images(
    data: Data, file: Path, rows: _Rows, classes: list[str], labels: np.ndarray | None
) -> FolderImages:
    """Images of a split; sorted, so that a shuffled file gives the same run."""
    order = rows.order()
    paths = PathList(rows.paths[row] for row in order)
    return images_of(data, file.parent, paths, classes, None if labels is None else labels[order])


def _read(file: Path, wanted: Mapping[str, str]) -> tuple[dict[str, _Rows], bool]:
    """Rows by split, which is empty without a split column; and whether there is a label column."""
    splits: dict[str, _Rows] = {}
    missing, folder = _Missing(file), os.path.abspath(file.parent)
    try:
        _refuse_utf16(file)
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            records = _records(file, lines)
            header = [name.strip() for name in next(records, (1, []))[1]]
            columns = _find_columns(file, header, wanted)
            for line, row in records:
                path, label, split = _values(
                    row, header, columns, f"{printable(file)}, line {line}"
                )
                missing.check(path, line)
                rows = splits.setdefault(split, _Rows())
                rows.paths.append(path)
                rows.lines.append(line)
                rows.hashes.append(hash(normpath(os.path.join(folder, path))))
                if columns.label is not None:
                    rows.names.append(label)
    except OSError as error:
        raise unreadable(file, error) from None
    if not splits:
        raise ValueError(f"data.path: {printable(file)} lists no images")
    missing.refuse()
    return splits, columns.label is not None


def _refuse_utf16(file: Path) -> None:
    with file.open("rb") as opened:
        if opened.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise ValueError(f"data.path: {printable(file)} is UTF-16; save it as UTF-8")


def _records(file: Path, lines: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the number of its first line.

    Raises:
        ValueError: Not valid CSV, such as a quotation mark that is not closed.
    """
    line, marks, delimiter = 1, 0, separator(lines)

    def counted() -> Iterator[str]:
        nonlocal marks
        for text in lines:
            marks += text.count('"')
            yield text

    reader = csv.reader(counted(), delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            if reader.line_num > line and marks % 2:
                raise ValueError(f"{printable(file)}, line {line}: a quotation mark is not closed")
            if row:
                yield line, row
            line, marks = reader.line_num + 1, 0
    except csv.Error as error:
        raise ValueError(f"{printable(file)}, line {line}: not valid CSV ({error})") from None


def _values(
    row: Sequence[str], header: Sequence[str], columns: _Columns, where: str
) -> tuple[str, str, str]:
    """Path, label and split of a row; empty if there is no such column.

    Raises:
        ValueError: Another number of values, no path, or a line break in one of the three.
    """
    if len(row) != len(header) or not row[columns.image].strip():
        hint = "; is a quotation mark not closed?" if any(map(_QUOTED.search, row)) else ""
        raise ValueError(
            f"{where}: {len(row)} values, {len(header)} are needed, and a path in "
            f"column {printable(header[columns.image])}{hint}"
        )
    for column in columns:
        if column is not None and _LINE_BREAK.search(row[column]):
            raise ValueError(
                f"{where}: {printable(header[column])} holds a line break; is a quotation mark not "
                "closed?"
            )
    path, label, split = ("" if column is None else row[column].strip() for column in columns)
    if columns.split is not None:
        split = _split_of(split, header[columns.split], where)
    return path, label, split


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
        """Raise `ValueError` if an image is missing."""
        if self.count:
            raise ValueError(
                f"data.path: {self.count} of {self.asked} images of {printable(self.file)} are "
                f"not there, as {self.first}; paths start from {printable(self.file.parent)}"
            )


def _find_columns(file: Path, header: Sequence[str], wanted: Mapping[str, str]) -> _Columns:
    """The columns with paths, labels and splits; the log names all if none has labels."""
    if unknown := sorted(wanted.keys() - COLUMNS.keys()):
        raise ValueError(
            f"data.columns: unknown key '{unknown[0]}'; known are {', '.join(COLUMNS)}"
        )
    image, label, split = (_find_column(file, header, key, wanted) for key in COLUMNS)
    if image is None:
        raise ValueError(
            f"data.path: {printable(file)} has no column path, but "
            f"{printable(', '.join(header))[:80]}; name the one with paths by "
            "data.columns={image: NAME}"
        )
    named = list(filter(None, header))
    if label is None and len(named) > (1 if split is None else 2):
        tell_columns(str(file), ", ".join(named))
    return _Columns(image, label, split)


def _find_column(
    file: Path, header: Sequence[str], key: str, wanted: Mapping[str, str]
) -> int | None:
    """The column that is wanted; else of a name that is tried, as written, then in any case.

    Raises:
        ValueError: The wanted column is not there, or there are several of one name.
    """
    names = [wanted[key].strip()] if key in wanted else COLUMNS[key]
    for spelling in (str,) if key in wanted else (str, str.casefold):
        for name in names:
            found = [i for i, column in enumerate(header) if spelling(column) == name]
            if len(found) > 1:
                raise ValueError(
                    f"data.path: {printable(file)} has {len(found)} columns '{printable(name)}'; "
                    "one is needed"
                )
            if found:
                return found[0]
    if key in wanted:
        raise ValueError(
            f"data.columns.{key}: {printable(file)} has no column '{printable(wanted[key])}'"
            f"{printable(nearest(wanted[key], header))}"
        )
    return None


def _split_of(value: str, column: str, where: str) -> str:
    """The name of a split.

    Raises:
        ValueError: It is empty, or `is_valid` is neither true nor false.
    """
    is_valid = column.casefold() == "is_valid"
    name = _VALID.get(value.casefold(), "") if is_valid else value
    if not name:
        words = "True or False" if is_valid else "the name of a split"
        raise ValueError(f"{where}: {column} is '{printable(value)}'; {words} is needed")
    return name


def _refuse_repeated(file: Path, splits: Sequence[_Rows]) -> None:
    """Refuse a path that is listed twice: it would count twice, or be trained on and tested.

    Paths are compared without `.` and `..`; links are not followed.

    Raises:
        ValueError: Names one.
    """
    folder = os.path.abspath(file.parent)
    hashes = np.concatenate([np.frombuffer(rows.hashes, np.int64) for rows in splits])
    ends = np.cumsum([len(rows.paths) for rows in splits])
    order = np.argsort(hashes, kind="stable")

    def listed(place: int) -> tuple[int, str, int]:
        number = int(np.searchsorted(ends, place, side="right"))
        row = place - int(ends[number]) + len(splits[number].paths)
        return splits[number].lines[row], splits[number].paths[row], number

    for place in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        places = order[place : place + 2]
        (one, first, split), (two, path, other) = sorted(listed(int(row)) for row in places)
        if normpath(os.path.join(folder, first)) == normpath(os.path.join(folder, path)):
            share = "for a larger share of some images, see weights of data.path in docs/data.md"
            why = share if split == other else "it would be trained on and tested"
            raise ValueError(
                f"data.path: {printable(file)} lists {printable(path)} twice, in lines {one} and "
                f"{two}; list it once ({why})"
            )
