"""List the images in a folder, and count other files."""

import errno
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np

from fg_ssl_zoo.config import home_path, nearest, printable

# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".jp2", ".ppm", ".pgm", ".pbm", ".avif",
})
# fmt: on
"""Files with these endings, in any case, are images."""

JUNK = frozenset({
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
    "Thumbs.db", "desktop.ini",
})  # fmt: skip
"""Folders and files that macOS, Synology, Windows and Linux put beside images."""

NOTES = frozenset({"parts.csv", "parts.json"})
"""Files beside images that describe parts, see `part_annotations`."""


class PathList(Sequence[str]):
    """Paths in one block of bytes, so that a million are pickled for a loader process at once."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._block, self._ends = bytearray(), array("q", [0])
        for path in paths:
            self.append(path)

    def append(self, path: str) -> None:
        """Add a path at the end."""
        self._block += os.fsencode(path)
        self._ends.append(len(self._block))

    def extend(self, paths: "PathList") -> None:
        """Add the paths of another list."""
        start = len(self._block)
        self._block += paths._block
        self._ends.frombytes((np.frombuffer(paths._ends, np.int64)[1:] + start).tobytes())

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "PathList":
        """The list whose `arrays` these are."""
        made = cls()
        made._block = bytearray(arrays["bytes"].tobytes())
        made._ends = array("q", arrays["ends"].astype(np.int64).tobytes())
        return made

    def arrays(self) -> dict[str, np.ndarray]:
        """All paths as arrays that a file can hold: `bytes` (uint8) and `ends` (int64)."""
        return {
            "bytes": np.frombuffer(bytes(self._block), np.uint8).copy(),
            "ends": np.array(self._ends, np.int64),
        }

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathList):
            return self._block == other._block and self._ends == other._ends
        return NotImplemented

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return os.fsdecode(bytes(self._block[self._ends[row] : self._ends[row + 1]]))

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def joined(self, separator: str) -> str:
        """All paths as one text, with an ASCII separator."""
        paths = (self._block[start:end] for start, end in pairwise(self._ends))
        return os.fsdecode(separator.encode("ascii").join(paths))


@dataclass
class Listing:
    """Images below a folder, and counts of other files.

    Attributes:
        paths: In natural order (`9.jpg` before `10.jpg`).
        others: Number of other files by suffix.
    """

    paths: PathList = field(default_factory=PathList)
    others: Counter[str] = field(default_factory=Counter)


def list_images(folder: str | Path, prefix: str = "") -> Listing:
    """All images below a folder; links are followed, but not in circles.

    Args:
        folder: Where they lie.
        prefix: Is put before their paths, which are relative to the folder.

    Raises:
        ValueError: A folder that may not be read.
    """
    listing = Listing()
    try:
        _walk(str(folder), prefix, frozenset(), listing)
    except OSError as error:
        raise unreadable(error.filename, error) from None
    return listing


def _walk(folder: str, prefix: str, above: frozenset[tuple[int, int]], into: Listing) -> None:
    """Add the images of a folder and of its subfolders, in natural order of all names.

    Only the names of a folder's files are held in memory.
    """
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    masks = "masks" if os.path.exists(os.path.join(folder, "parts.json")) else ""
    folders, keys = set[str](), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(".") or name in JUNK or (name in NOTES and not above):
                continue
            if name == masks:
                into.others["part masks"] += sum(len(files) for _, _, files in os.walk(entry.path))
            elif _is_folder(entry):
                folders.add(name)
                keys.append(natural(name))
            elif entry.is_symlink() and not os.path.exists(entry.path):
                into.others["broken links"] += 1
            elif (suffix := os.path.splitext(name)[1].lower()) in SUFFIXES and entry.is_file():
                keys.append(natural(name))
            else:
                into.others[suffix or "without a suffix"] += 1
    keys.sort()
    for key in keys:
        name = key.rpartition(_NAME)[2]
        if name in folders:
            _walk(os.path.join(folder, name), f"{prefix}{name}/", above | {here}, into)
        else:
            into.paths.append(prefix + name)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or leads to one; a link to itself is a broken link."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


_NAME = "\0\0"
"""Separates a sort key from the name at its end; sorts before the rest of any longer key."""


def natural(name: str) -> str:
    """Sort key that reads digits as numbers and ends with the name itself.

    One text, as lists of words would take five times the memory. A number is a zero byte, the count
    of its digits and the digits, so that it sorts before any letter and by its value.
    """
    words = re.split(r"([0-9]+)", name)
    for i, word in enumerate(words):
        digits = word.lstrip("0") or "0"
        words[i] = f"\0{chr(len(digits))}{digits}" if i % 2 else word.casefold()
    return f"{''.join(words)}{_NAME}{name}"


def existing_folder(path: str, key: str = "data.path: ") -> Path:
    """The folder a user named.

    Args:
        path: The folder.
        key: Beginning of the error: what named it.

    Raises:
        ValueError: It is missing, with the nearest name beside it, or it is a file.
    """
    folder = home_path(path)
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise ValueError(f"{key}{printable(path)} is a file; a folder of images is needed")
    raise absent(path, "folder", key)


def existing_file(path: str, key: str = "data.path: ") -> Path:
    """The file a user named; arguments and errors as `existing_folder`."""
    file = home_path(path)
    if os.path.exists(file):
        return file
    raise absent(path, "file", key)


def absent(path: str, kind: str, key: str = "data.path: ") -> ValueError:
    """The error of a `file` or `folder` that is not there, with the nearest name beside it."""
    wanted = home_path(path)
    parent, missing = wanted.parent, wanted
    while not os.path.isdir(parent) and parent != parent.parent:
        parent, missing = parent.parent, parent
    if kind == "file" and missing == wanted:
        names = [file.name for file in parent.glob(f"*{wanted.suffix}")]
    else:
        names = folders_in(parent)
    here = "" if wanted.is_absolute() else f" (seen from {Path.cwd()})"
    return ValueError(
        f"{key}there is no {kind} {printable(path)}{printable(here)}: "
        f"{printable(missing.name)} is not in {printable(parent)}"
        f"{printable(nearest(missing.name, sorted(names, key=natural)))}"
    )


def no_images(folder: Path, others: Counter[str]) -> ValueError:
    """The error of a folder without an image; says what is in it."""
    if not any(folder.iterdir()):
        return ValueError(f"data.path: {printable(folder)} is empty")
    found = f"found {counts(others)}" if others else "found only folders and hidden files"
    wanted = " ".join(sorted(SUFFIXES))
    return ValueError(f"data.path: no images in {printable(folder)} ({wanted}); {found}")


def unreadable(path: str | Path, error: OSError, hint: str = "") -> ValueError:
    """The error of a file or folder that the operating system does not let us read."""
    return ValueError(f"data.path: {printable(path)} cannot be read ({error.strerror}){hint}")


def counts(others: Counter[str]) -> str:
    """`20 .heic, 4 without a suffix, and 2 more`: the most frequent kinds are named."""
    kinds = [f"{count} {kind}" for kind, count in others.most_common(_KINDS)]
    left = others.total() - sum(count for _, count in others.most_common(_KINDS))
    return printable(", ".join([*kinds, *([f"and {left} more"] if left else [])]))


_KINDS = 5
"""Kinds of files that a message names."""


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder that may hold images.

    Raises:
        ValueError: It may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if _is_folder(entry)]
    except OSError as error:
        raise unreadable(folder, error) from None
    return [name for name in names if not name.startswith(".") and name not in JUNK]


def files_with(folder: Path, ending: str) -> list[Path]:
    """Files of an ending in a folder, in natural order; none as soon as there is an image.

    It is therefore fast in a folder of a million images.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_picture(entry.name):
                return []
            if entry.name.endswith(ending) and not entry.name.startswith("."):
                found.append(entry.name)
    return [folder / name for name in sorted(found, key=natural)]


def files_below(folder: Path, endings: tuple[str, ...]) -> list[Path] | None:
    """Files of these endings, in any case, in a folder and all folders below it.

    Those of a folder come before those of its folders, in natural order. Links are followed, but
    not in circles.

    Returns:
        `None` as soon as there is an image, so it is fast in a folder of a million images.

    Raises:
        ValueError: A folder that may not be read.
    """
    try:
        return _files_below(folder, endings, frozenset())
    except OSError as error:
        raise unreadable(error.filename, error) from None


def _files_below(
    folder: Path, endings: tuple[str, ...], above: frozenset[tuple[int, int]]
) -> list[Path] | None:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:
        return []
    names, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name in JUNK:
                continue
            if _is_folder(entry):
                folders.append(entry.name)
            elif is_picture(entry.name):
                return None
            elif entry.name.lower().endswith(endings):
                names.append(entry.name)
    found = [folder / name for name in sorted(names, key=natural)]
    for name in sorted(folders, key=natural):
        below = _files_below(folder / name, endings, above | {here})
        if below is None:
            return None
        found.extend(below)
    return found


def has_pictures(folder: Path, *, directly: bool = False) -> bool:
    """Whether a folder contains an image: at any depth, or `directly` in it."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in JUNK]
        if any(is_picture(name) for name in files):
            return True
        if directly:
            return False
    return False


def is_picture(name: str) -> bool:
    """Whether a file of this name is an image; hidden ones are not."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
