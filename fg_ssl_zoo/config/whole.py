"""Files that are whole or not there, and files that cannot be read any more."""

import contextlib
import errno
import logging
import os
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EROFS: "the disk is read-only: mount it for writing, or name another place",
    errno.EACCES: "make it readable and writable for this user, or name another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What to do about an error of the operating system."""

_log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, flush to the disk, rename: whoever reads finds the old file or the new one.

    Args:
        path: In a folder that is there.
        content: Text is written as UTF-8.

    Raises:
        OSError: The older file stands as it was.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def disk_error(error: OSError) -> str:
    """What the disk refused and what to do, on one line."""
    if error.errno is None:  # not of the operating system: the message says all
        return str(error)
    what = error.strerror or type(error).__name__
    remedy = REMEDIES.get(error.errno, "check that the path is there and can be written")
    name = error.filename
    where = os.fsdecode(name) if isinstance(name, bytes) else name
    return f"{where}: {what}; {remedy}" if where else f"{what}; {remedy}"


def set_aside(path: Path, why: str) -> Path:
    """Rename a file that cannot be read to `NAME.unreadable`, and say so.

    Args:
        path: The file.
        why: What is wrong with it, for the message.

    Returns:
        Its new name; one that is taken gets a number.
    """
    aside, number = path.with_name(f"{path.name}.unreadable"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.unreadable{number}")
    path.rename(aside)
    _log.warning("%s cannot be read (%s); it is kept as %s", path, why, aside.name)
    return aside
