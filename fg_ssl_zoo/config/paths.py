"""Paths from users: the home folder, names with any bytes, checks of outputs."""

import io
import os
import re
import sys
import tempfile
from pathlib import Path

from fg_ssl_zoo.config.plain import RecipeError


def home_path(path: str | Path) -> Path:
    """A path with `~` and `~NAME` at its start replaced by the home folder.

    Raises:
        RecipeError: The user does not exist, or has no home folder.
    """
    expanded = os.path.expanduser(path)
    if str(expanded).startswith("~"):
        name = printable(Path(expanded).parts[0])
        raise RecipeError(
            f"{printable(path)}: there is no home folder {name}; a folder of that name is ./{name}"
        )
    return Path(expanded)


def printable(text: str | Path) -> str:
    r"""Text on one line for a terminal or a UTF-8 file.

    Characters that cannot be shown are escaped: `\xe9` is a byte that is not UTF-8.
    """
    try:
        shown = os.fsencode(str(text)).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which is in no file name
        shown = encodable(str(text))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def reason_of(error: Exception) -> str:
    """The message of an error of another library on one line; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def escaped(name: str) -> str:
    r"""A name with any bytes as one line of UTF-8; the inverse is `unescaped`.

    A backslash is doubled; a control character and a byte that is not UTF-8 become `\xe9`.
    """
    text = os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def unescaped(line: str) -> str:
    """The inverse of `escaped`."""
    return os.fsdecode(
        re.sub(
            rb"\\(\\|x[0-9a-f]{2})",
            lambda found: found[1] if found[1] == b"\\" else bytes.fromhex(found[1][1:].decode()),
            line.encode(),
        )
    )


def encodable(text: str) -> str:
    r"""Text of several lines for a UTF-8 file or terminal; a byte of a name becomes `\udce9`.

    In JSON this is the escape of the same byte, so reading the JSON restores the name.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def wrong_name(name: str) -> str | None:
    """What is wrong with the name of a file or folder; `None` if it is valid."""
    long = len(name.encode("utf-8", "surrogateescape")) > 200
    if long or name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        return "the name of one file: no / or \\, at most 200 bytes, and neither . nor .."
    return None


def check_folder(folder: str | Path, where: str) -> None:
    """Refuse a folder that cannot be created or written, before any work; nothing is created.

    Args:
        folder: Folder that need not exist.
        where: Key or flag that names it, for the error.

    Raises:
        RecipeError: A file is in the way, or the nearest folder above cannot be written.
    """
    path = Path(os.path.abspath(folder))
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    try:
        if not path.is_dir():
            raise NotADirectoryError(0, "is not a folder")
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RecipeError(
            f"{where}: {printable(folder)} cannot be written "
            f"({printable(path)}: {error.strerror}); name another place"
        ) from None


def check_file(file: str | Path, where: str) -> None:
    """Refuse a file that cannot be written, as for `check_folder`, or that is a folder."""
    path = Path(file)
    if path.is_dir():
        raise RecipeError(f"{where}: {printable(file)} is a folder; a file is needed")
    check_folder(path.parent, where)


def check_cache() -> None:
    """Refuse a Hugging Face cache that cannot be written, where features and parts are stored.

    Raises:
        RecipeError: Names the folder.
    """
    from huggingface_hub import constants

    check_folder(constants.HF_ASSETS_CACHE, "HF_HOME")


def show_any_name() -> None:
    """Make standard output escape bytes that are not text, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
