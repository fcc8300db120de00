"""Checkpoints named by their position, written atomically, read without unpickling code.

    checkpoints/stage0_round0_step00000180.pt

Names sort by position; a file is complete or does not exist. The random draws of a step are a
function of (seed, step), so weights, optimizer and position are the complete state of a run.

A file is a zip archive by `torch.save` whose comment is the SHA-256 of its content; `torch.load`
reads it as usual. The hash is verified whenever a checkpoint is read.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fg_ssl_zoo.config import PARTIAL, disk_error, reason_of, set_aside, whole_file

_LABEL = b"sha256:"
_NO_COMMENT = b"\0\0"
_COMMENT = (len(_LABEL) + 64).to_bytes(2, "little")
"""The last two bytes of a zip archive are the length of its comment, which follows."""


@dataclass(frozen=True, order=True)
class Position:
    """Progress of a run: stage, round in the stage, completed optimizer steps in the round."""

    stage: int = 0
    round: int = 0
    step: int = 0

    @property
    def file_name(self) -> str:
        """The checkpoint's name."""
        return f"stage{self.stage}_round{self.round}_step{self.step:08d}.pt"


class CheckpointError(OSError):
    """A checkpoint could not be written or read; the message says which one is still valid."""


def positions(folder: Path) -> dict[Position, Path]:
    """All complete checkpoints of a folder, oldest first."""
    found = {}
    for path in folder.glob("stage*_round*_step*.pt"):
        match = re.fullmatch(r"stage(\d+)_round(\d+)_step(\d+)\.pt", path.name)
        if match and path.is_file():
            found[Position(*map(int, match.groups()))] = path
    return dict(sorted(found.items()))


def save(folder: Path, position: Position, state: dict[str, Any], keep: int = 2) -> Path:
    """Write a temporary file, flush and rename it; then delete all but the newest `keep`.

    Raises:
        CheckpointError: Writing failed; older checkpoints are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / position.file_name
    try:
        with whole_file(path) as partial, partial.open("w+b") as file:
            torch.save(state, file)
            _sign(file)
    except (OSError, RuntimeError) as error:
        good = list(positions(folder).values())
        kept = (
            f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
        )
        raise CheckpointError(
            f"could not write checkpoint {_what_failed(error, path)}; {kept}. Run the same command "
            "again to continue"
        ) from error
    for old in list(positions(folder).values())[:-keep]:
        old.unlink(missing_ok=True)
    for partial in folder.glob(f"*{PARTIAL}"):  # left by killed runs
        partial.unlink(missing_ok=True)
    return path


def _what_failed(error: BaseException, path: Path) -> str:
    """Path, reason and remedy; torch replaces the disk error by its own."""
    found: BaseException | None = error
    while found is not None and not (isinstance(found, OSError) and found.errno is not None):
        found = found.__cause__ or found.__context__
    if found is None:
        return f"{path} ({str(error).partition(chr(10))[0]})"
    return disk_error(OSError(found.errno, found.strerror, str(path)))


def load_into(owner: Any, state: Mapping[str, Any], key: str, path: Path) -> None:
    """Load the part of a checkpoint that belongs to a method or an optimizer.

    Args:
        owner: Object with `load_state_dict`.
        state: Content of the checkpoint.
        key: Key of the part.
        path: Path of the file, for the error.

    Raises:
        CheckpointError: It belongs to another method or network.
    """
    try:
        owner.load_state_dict(state[key])
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        reason = reason_of(error)[:200]
        raise CheckpointError(
            f"{path} is not a checkpoint of this run ({key}: {reason}); remove it from the folder"
        ) from error


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a NaN or infinity, if any.

    A finite sum has finite terms; only where it is not finite is each value looked at, since a sum
    may also overflow. This reads weights ten times as fast as a test of each value.
    """
    floats = ((k, v) for k, v in state.items() if v.is_floating_point())
    return next((k for k, v in floats if not (v.sum().isfinite() or v.isfinite().all())), None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; tensors and plain data only.

    Raises:
        CheckpointError: The file is incomplete or damaged.
    """
    try:
        with path.open("rb") as file:
            _check(file)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}); delete it to use the one before"
        ) from error


def newest(folder: Path) -> tuple[Position, dict[str, Any] | None]:
    """The newest readable checkpoint; newer unreadable ones are renamed, with a warning.

    Returns:
        Its position and content; the first position and `None` if there is none.
    """
    for position, path in reversed(positions(folder).items()):
        try:
            return position, load(path)
        except CheckpointError as error:
            set_aside(path, str(error.__cause__).partition("\n")[0])
    return Position(), None


def _sign(file: BinaryIO) -> None:
    """Write the hash of the archive into its comment."""
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    if file.read() != _NO_COMMENT:
        raise RuntimeError("torch.save wrote no zip archive without a comment")
    digest = _digest(file, file.tell() - len(_NO_COMMENT))
    file.seek(-len(_NO_COMMENT), os.SEEK_END)
    file.write(_COMMENT + _LABEL + digest)


def _check(file: BinaryIO) -> None:
    """Verify the hash; a file of an older version has none, and its zip checksums are verified.

    Raises:
        ValueError: Says what differs.
    """
    end = len(_COMMENT) + len(_LABEL) + 64
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(end, size), os.SEEK_END)
    tail = file.read()
    if tail[:-64].startswith(_COMMENT + _LABEL):
        if _digest(file, size - end) != tail[-64:]:
            raise ValueError("its content has another hash than when it was written")
    elif not tail.endswith(_NO_COMMENT):
        raise ValueError("it does not end like a checkpoint")
    elif damaged := zipfile.ZipFile(file).testzip():
        raise ValueError(f"{damaged} in it has another checksum than when it was written")


def _digest(file: BinaryIO, size: int) -> bytes:
    """SHA-256 of the first bytes of a file, in hexadecimal."""
    file.seek(0)
    digest = hashlib.sha256()
    while size and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()
