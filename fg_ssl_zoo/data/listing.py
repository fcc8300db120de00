"""List the images in a folder, and count other files."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

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
"""Files beside images that are read, see `part_notes`."""


@dataclass
class Listing:
    """Images below a folder, and counts of other files.

    Attributes:
        paths: Relative to the folder, in natural order (`9.jpg` before `10.jpg`).
        others: Number of other files by suffix.
    """

    paths: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def list_images(folder: str | Path) -> Listing:
    """All images below a folder; links are followed, but not in circles.

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
        if entry.name.startswith(".") or entry.name in JUNK:
            continue
        if entry.name == masks:
            into.others["part masks"] += sum(len(files) for _, _, files in os.walk(entry.path))
        elif entry.name in NOTES and not prefix:
            continue
        elif entry.is_dir():
            _walk(entry.path, f"{prefix}{entry.name}/", above | {here}, into)
        elif not os.path.exists(entry.path):
            into.others["broken links"] += 1
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in SUFFIXES and entry.is_file():
            into.paths.append(prefix + entry.name)
        else:
            into.others[suffix or "without a suffix"] += 1


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
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise ValueError(f"data.path: {printable(path)} is a file; a folder of images is needed")
    parent, missing = folder.parent, folder
    while not os.path.isdir(parent) and parent != parent.parent:
        parent, missing = parent.parent, parent
    beside = sorted(folders_in(parent), key=natural)
    here = "" if folder.is_absolute() else f" (seen from {Path.cwd()})"
    raise ValueError(
        f"data.path: there is no folder {printable(path)}{printable(here)}: "
        f"{printable(missing.name)} is not in {printable(parent)}"
        f"{printable(nearest(missing.name, beside))}"
    )


def no_images(folder: Path, others: Counter[str]) -> ValueError:
    """The error of a folder without an image; says what is in it."""
    if not any(folder.iterdir()):
        return ValueError(f"data.path: {printable(folder)} is empty")
    found = f"found {counts(others)}" if others else "found only folders and hidden files"
    wanted = " ".join(sorted(SUFFIXES))
    return ValueError(f"data.path: no images in {printable(folder)} ({wanted}); {found}")


def counts(others: Counter[str]) -> str:
    """`20 .heic, 40 without a suffix`."""
    return printable(", ".join(f"{count} {kind}" for kind, count in others.most_common()))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder that may hold images.

    Raises:
        ValueError: It may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except OSError as error:
        raise ValueError(
            f"data.path: {printable(folder)} cannot be read ({error.strerror})"
        ) from None
    return [name for name in names if not name.startswith(".") and name not in JUNK]


def has_pictures(folder: Path, *, directly: bool = False) -> bool:
    """Whether an image lies in a folder, or only those that lie in no folder of it."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in JUNK]
        if any(_is_picture(name) for name in files):
            return True
        if directly:
            return False
    return False


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
