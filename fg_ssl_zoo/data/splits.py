"""Splits and classes by name, for all sources that keep them as text.

find_train, find_test   the split that a recipe asks for, among the names that exist
ClassColumn             the class name of every image, each name kept once
number_classes          class numbers of both splits, by the names of the training split
"""

import logging
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fg_ssl_zoo.config import Data, nearest, printable
from fg_ssl_zoo.data.listing import natural

TRAIN_NAMES = ("train", "training")
"""Splits that may stand for `data.train_split: train`, best first."""

TEST_NAMES = ("test", "testing", "val", "valid", "validation")
"""Splits that may stand for `data.test_split: test`, best first."""

NO_TEST = "none"
"""Value of `data.test_split`: train on all images, hold none out."""

_log = logging.getLogger(__name__)


# --------------------------------------------------------------------------- splits


def is_split(name: str) -> bool:
    """Whether a folder, or a part of a file's name, is called like a split."""
    return name.casefold() in (*TRAIN_NAMES, *TEST_NAMES)


def find_train(there: Sequence[str], wanted: str, where: str, kind: str = "split") -> str:
    """The training split among those that are there; empty where no name is a split's.

    Args:
        there: Names of the splits that exist.
        wanted: `data.train_split`.
        where: Folder or data set, for the error.
        kind: Word for a split, for the error: `split` or `folder`.

    Raises:
        ValueError: There is no such split.
    """
    if found := _match(there, TRAIN_NAMES if wanted == "train" else [wanted]):
        return found
    if wanted == "train" and not any(map(is_split, there)):
        return ""
    raise ValueError(
        f"data.train_split: {printable(where)} has no {kind} '{wanted}'{nearest(wanted, there)}"
    )


def find_test(there: Sequence[str], wanted: str, where: str, kind: str = "split") -> str | None:
    """The test split, as `find_train`; `None` without one, or where none is wanted.

    Raises:
        ValueError: There is no split of the name that `data.test_split` gives.
    """
    if wanted == NO_TEST:
        return None
    found = _match(there, TEST_NAMES if wanted == "test" else [wanted])
    if found is None and wanted != "test":
        raise ValueError(
            f"data.test_split: {printable(where)} has no {kind} '{wanted}'{nearest(wanted, there)}"
        )
    return found


def choose_splits(there: Collection[str], data: Data, where: str) -> tuple[str, str | None]:
    """Names of the training and the test split; others are named in the log.

    Args:
        there: Names of the splits that exist. The empty name stands for images without a split,
            which are the training images if there is no training split.
        data: Names the splits, by `train_split` and `test_split`.
        where: Folder or data set, for messages.

    Raises:
        ValueError: A split that the recipe names does not exist.
    """
    named = sorted(filter(None, there), key=natural)
    train = find_train(named, data.train_split, where)
    if train not in there:
        raise ValueError(
            f"data.train_split: {printable(where)} has no split '{data.train_split}'"
            f"{nearest(data.train_split, named)}"
        )
    test = find_test(named, data.test_split, where) if train else None
    unused = [name for name in there if name not in (train, test)]
    tell_unused(where, [name or "tar files without a split" for name in unused])
    return train, test


def tell_unused(where: str, splits: Sequence[str]) -> None:
    """Warn that the images of these splits are not used."""
    if splits:
        _log.warning(
            "%s: the images in %s are not used; data.train_split and data.test_split choose splits",
            printable(where), printable(", ".join(splits[:5])),
        )  # fmt: skip


def tell_unlabelled(where: str | Path, reason: str) -> None:
    """Warn that images are read without labels, and why."""
    _log.warning("%s is read as unlabelled: %s", printable(where), printable(reason))


def tell_columns(where: str, columns: str) -> None:
    """Warn that a table is read without labels, since no column has a usual name of labels."""
    _log.warning(
        "%s is read as unlabelled; its columns: %s; name the one with labels by "
        "data.columns={label: NAME}",
        printable(where), printable(columns),
    )  # fmt: skip


def _match(there: Iterable[str], wanted: Sequence[str]) -> str | None:
    """The first wanted name that exists, in this case or else in another one."""
    exact = {composed(name): name for name in there}
    folded = {name.casefold(): exact[name] for name in sorted(exact)}
    found = (exact.get(name) or folded.get(name.casefold()) for name in map(composed, wanted))
    return next(filter(None, found), None)


def composed(name: str) -> str:
    """NFC: macOS writes the letter `ü` as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


# --------------------------------------------------------------------------- classes


class ClassColumn:
    """The class name of every image of a split: eight bytes an image, and each name once."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._codes: dict[str, int] = {}
        self._rows = array("q")
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add the class name of the next image; empty if it has none."""
        code = self._codes.get(name)
        if code is None:  # both Unicode forms of a name are one class
            code = self._codes.setdefault(composed(name), len(self._codes))
            self._codes[name] = code
        self._rows.append(code)

    @property
    def names(self) -> set[str]:
        """Names of the classes, in NFC."""
        return {composed(name) for name in self._codes}

    @property
    def known(self) -> bool:
        """Whether every image has a class."""
        return bool(self._rows) and "" not in self._codes

    def numbers(self, classes: Sequence[str]) -> np.ndarray:
        """(n,) int64 numbers in a list of class names, which holds all of `names`."""
        number = {name: i for i, name in enumerate(classes)}
        table = np.zeros(max(self._codes.values(), default=0) + 1, dtype=np.int64)
        for name, code in self._codes.items():
            table[code] = number[composed(name)]
        return table[np.frombuffer(self._rows, dtype=np.int64)]


def number_classes(
    train: ClassColumn | None, test: ClassColumn | None, train_where: str, test_where: str
) -> tuple[list[str], np.ndarray | None, np.ndarray | None]:
    """Class names, and the class numbers of training and test images.

    A split is unlabelled if it has no column, or an empty name in it. A test split is unlabelled
    also if the training split is.

    Args:
        train: Class names of the training images; sorted naturally, they are the classes.
        test: Class names of the test images.
        train_where: Name of the training split, for messages.
        test_where: Name of the test split, for messages.

    Raises:
        ValueError: The training split lacks test classes; the message names the nearest class.
    """
    for column, where in ((train, train_where), (test, test_where)):
        if column is not None and not column.known and column.names > {""}:
            tell_unlabelled(where, "some labels are missing")
    if train is None or not train.known:
        return [], None, None
    classes = sorted(train.names, key=natural)
    if test is None or not test.known:
        return classes, train.numbers(classes), None
    unknown = sorted(test.names - train.names, key=natural)
    if unknown:
        raise ValueError(
            f"data.path: {len(unknown)} of the classes in {printable(test_where)} are not "
            f"in {printable(train_where)}: {printable(', '.join(unknown[:5]))}"
            f"{printable(nearest(unknown[0], classes))}"
        )
    if missing := [name for name in classes if name not in test.names]:
        _log.warning(
            "%s has test images of %d of %d classes; none of %s",
            printable(test_where), len(test.names), len(classes),
            printable(", ".join(missing[:5])),
        )  # fmt: skip
    return classes, train.numbers(classes), test.numbers(classes)


def class_numbers(
    values: Sequence[Any], names: Sequence[str] | None, known: Sequence[str] | None, where: str
) -> tuple[list[str], np.ndarray | None]:
    """Class names and the class number of every value.

    Args:
        values: Integers or strings.
        names: Class names of the integers, from a `ClassLabel` column.
        known: Class names of the training split; the values get its numbers, since two splits may
            list their classes in different orders.
        where: Data set, split and column, for errors.

    Returns:
        No names and no numbers if labels are hidden (-1 or missing), as in many test splits.

    Raises:
        ValueError: Neither integers nor strings, or a class that training lacks.
    """
    kinds = {type(value) for value in values}
    if type(None) in kinds or (kinds == {int} and min(values) < 0):
        tell_unlabelled(where, "some labels are missing")
        return [], None
    if names is not None and kinds == {int} and max(values) >= len(names):
        raise ValueError(
            f"data.columns.label: {where} holds class {max(values)}; there are {len(names)} names"
        )
    if names is not None and known is None:
        return list(names), np.asarray(values, dtype=np.int64)
    if kinds not in ({int}, {str}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(
            f"data.columns.label: {where} holds {found}; integers or strings are needed"
        )
    words = [str(value) if names is None else str(names[value]) for value in values]
    classes = list(known) if known else sorted(set(words), key=natural)
    number = {word: i for i, word in enumerate(classes)}
    unknown = sorted(set(words) - set(classes), key=natural)
    if unknown:
        raise ValueError(
            f"data.columns.label: {len(unknown)} classes of {where} are not in the training split: "
            f"{', '.join(unknown[:5])}{nearest(unknown[0], classes)}"
        )
    return classes, np.array([number[word] for word in words], dtype=np.int64)
