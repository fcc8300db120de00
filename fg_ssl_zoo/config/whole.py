"""Files that are written completely or not at all; unreadable files; errors of disk and memory."""

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
"""Number of an operating system error -> what to do."""

_log = logging.getLogger(__name__)

NO_MEMORY = "can't allocate memory"
"""What torch says in a RuntimeError when the machine has no memory left."""

PARTIAL = ".partial"
"""Suffix of a file that is being written."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a temporary file, flush it to disk and rename it; no reader sees a partial file.

    Args:
        path: File in an existing folder.
        content: Bytes, or text that is written as UTF-8.

    Raises:
        OSError: Writing failed and the older file is unchanged; the error has the path.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file name; at the end of the context, the file replaces `path`.

    The name contains the process id, so two processes may write the same file. Files of killed
    processes are removed.

    Args:
        path: File in an existing folder.

    Raises:
        OSError: Writing failed and the older file is unchanged; the error has the path.
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
    """Whether a file with this process id in its name may belong to a running process.

    False for the id of this process, since ids repeat in containers.
    """
    import psutil

    if not process.isdigit():
        return True
    return int(process) != os.getpid() and psutil.pid_exists(int(process))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this path to operating system errors inside the context, since write errors have none.

    safetensors wraps such errors in its own type; they are converted back.
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
    """A disk error and what to do, on one line."""
    if error.errno is None:  # not an operating system error: the message is complete
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
    """Rename an unreadable file to `NAME.unreadable`, and log a warning.

    Args:
        path: The file.
        why: What is wrong with it, for the warning.

    Returns:
        Its new name, with a number if the name exists.
    """
    aside, number = path.with_name(f"{path.name}.unreadable"), 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.unreadable{number}")
    path.rename(aside)
    _log.warning("%s cannot be read (%s); it is kept as %s", path, why, aside.name)
    return aside
