"""Files that are whole or not there or cannot be read any more; errors of disk and memory."""

import contextlib
import errno
import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within the quota",
    errno.EFBIG: "the disk or a limit (ulimit -f) takes no file of this size: raise it, or name "
    "another place",
    errno.EROFS: "the disk is read-only: mount it for writing, or name another place",
    errno.EACCES: "make it readable and writable for this user, or name another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What to do about an error of the operating system."""

_log = logging.getLogger(__name__)

NO_MEMORY = "can't allocate memory"
"""What torch says in a RuntimeError when the machine has no memory left."""

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside, flush to the disk, rename: whoever reads finds the old file or the new one.

    Args:
        path: In a folder that is there.
        content: Text is written as UTF-8.

    Raises:
        OSError: The older file stands as it was; the error has the path.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The name of a file to write, which takes the place of `path` when the block ends.

    It has the number of this process, so that two processes may write the same file. What killed
    processes left is removed.

    Args:
        path: In a folder that is there.

    Raises:
        OSError: The older file stands as it was; the error has the path.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with naming(path):
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    for old in path.parent.glob(f"{glob.escape(path.name)}.[0-9]*{PARTIAL}"):
        if not in_use(old.name.removeprefix(f"{path.name}.").removesuffix(PARTIAL)):
            with contextlib.suppress(OSError):
                old.unlink()


def in_use(process: str) -> bool:
    """Whether a file with this number of a process in its name may belong to a live one.

    Not where it has the number of this process: in a container, numbers come again.
    """
    import psutil

    if not process.isdigit():
        return True
    return int(process) != os.getpid() and psutil.pid_exists(int(process))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system inside name this path; those of writing name none.

    safetensors wraps them in an error of its own, which is one of the operating system again here.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = re.search(r"I/O error: .*\(os error (\d+)\)", str(error))
        if type(error).__module__.partition(".")[0] != "safetensors" or number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def disk_error(error: OSError) -> str:
    """What the disk refused and what to do, on one line."""
    if error.errno is None:  # not of the operating system: the message says all
        return str(error)
    what = error.strerror or type(error).__name__
    remedy = REMEDIES.get(error.errno, "check that the path is there and can be written")
    name = error.filename
    where = os.fsdecode(name) if isinstance(name, bytes) else name
    return f"{where}: {what}; {remedy}" if where else f"{what}; {remedy}"


def memory_error(error: BaseException) -> str | None:
    """What memory was refused, on one line; `None` of other errors.

    torch has an error of its own for a GPU, and a RuntimeError for the CPU.
    """
    of_gpu = type(error).__name__ == "OutOfMemoryError"
    if of_gpu or isinstance(error, MemoryError) or NO_MEMORY in str(error):
        said = str(error).partition("\n")[0] or type(error).__name__
        return f"not enough memory ({said})"
    return None


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
