"""Decoded images that are kept on disk and read through the page cache: `data.cache: true`.

    FOLDER/PREFIX/FINGERPRINT   header of 16 bytes, then rows of RGB
    FOLDER/bytes                how much all files have taken, under a lock

An image's fingerprint holds its path, size and time of change, and how it is reduced: a changed
file is another image. Files hold exactly what decoding gives, so a run is the same to the bit
with and without them. Each is written beside and renamed: a process that is killed leaves no half
image, and two that decode the same one write the same bytes. Space is counted before a file is
written, so a killed process can make the count too large and never too small. A full cache keeps
what it has, and other images are decoded each time. So does a process for which the folder cannot
be written (a full disk, a lock that another process holds): it tries only once.
"""

import contextlib
import hashlib
import logging
import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8

_MAGIC = b"fgssl-p1"
_HEADER = struct.Struct("<8sII")
"""Magic, height, width."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureCache:
    """Decoded images of files.

    Attributes:
        folder: Is made when it is first needed; may be deleted at any time between runs.
        most: Bytes that all files together may take.
    """

    folder: Path
    most: int

    def get(
        self, path: str, how: object, decoded: Callable[[], UInt8[np.ndarray, "h w 3"]]
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The image of a file, from the cache if it is there; else `decoded()`, which is kept.

        The array may be written to; the file stays as it is.

        Args:
            path: Path of the encoded image.
            how: How it is reduced; its `repr` is a part of the fingerprint.
            decoded: Decodes it; its errors leave this method.
        """
        try:
            found = os.stat(path)
        except OSError:
            return decoded()  # which says what is wrong
        about = f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\0{how!r}"
        name = hashlib.blake2b(about.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        file = self.folder / name[:2] / name[2:]
        kept = _read(file)
        if kept is not None:
            return kept
        image = decoded()
        if not self._state.get("closed"):
            try:
                self._keep(file, image)
            except OSError as error:
                self._close(f"{file.parent} cannot be written ({error}); images are not kept")
        return image

    def _keep(self, file: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Write the image if there is room for it; what cannot be written is not counted."""
        size = _HEADER.size + image.nbytes
        if not self._count(size):
            return
        try:
            _write(file, image)
        except OSError:
            with contextlib.suppress(OSError):
                self._count(-size)
            raise

    def _count(self, size: int) -> bool:
        """Add so many bytes to the count of all files; `False` if they are too many."""
        self.folder.mkdir(parents=True, exist_ok=True)
        count = self.folder / "bytes"
        try:
            with FileLock(f"{count}.lock", timeout=30):
                used = _number(count)
                if size > 0 and used + size > self.most:
                    self._close(
                        f"{self.folder} holds {used / 1e9:.1f} of data.cache_gb="
                        f"{self.most / 1e9:g}; further images are decoded each time"
                    )
                    return False
                partial = count.with_name("bytes.part")  # a full disk keeps the older count
                partial.write_text(f"{max(used + size, 0)}\n")
                partial.replace(count)
        except Timeout as error:
            raise OSError(f"another process has locked {count}") from error
        return True

    @cached_property
    def _state(self) -> dict[str, str]:
        return {}

    def _close(self, line: str) -> None:
        """Keep no further images in this process, and log why, once."""
        if "closed" not in self._state:
            self._state["closed"] = line
            _log.warning("data.cache: %s", line)


def _number(path: Path) -> int:
    """The number in a file, in bytes; 0 without the file, the sum of all sizes if it is damaged."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
    except ValueError:
        return sum(file.stat().st_size for file in path.parent.glob("??/*"))


def _read(file: Path) -> UInt8[np.ndarray, "h w 3"] | None:
    """The image; `None` if it is not there, or not whole."""
    try:
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):  # an empty file cannot be mapped
        return None
    if len(mapped) < _HEADER.size:
        return None
    magic, height, width = _HEADER.unpack_from(mapped)
    if magic != _MAGIC or len(mapped) != _HEADER.size + 3 * height * width:
        return None
    return np.frombuffer(mapped, np.uint8, offset=_HEADER.size).reshape(height, width, 3)


def _write(file: Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write beside and rename."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with partial.open("wb") as opened:
            opened.write(_HEADER.pack(_MAGIC, *image.shape[:2]))
            opened.write(np.ascontiguousarray(image).data)
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
