"""Checkpoints named by their position, written atomically, read without unpickling code.

    checkpoints/stage0_round0_step00000180.pt

The position in the name is the order; a file is either whole or not there. What a step draws is a
function of (seed, step), so weights, optimizer and position are the whole state of a run.
"""

import contextlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEEP = 2
"""Newest checkpoints that stay."""


@dataclass(frozen=True, order=True)
class Position:
    """How far a run is: stage, round inside it, optimizer steps done inside that."""

    stage: int = 0
    round: int = 0
    step: int = 0

    @property
    def file_name(self) -> str:
        """The checkpoint's name."""
        return f"stage{self.stage}_round{self.round}_step{self.step:08d}.pt"


class CheckpointError(OSError):
    """A checkpoint that could not be written or read; the message says what is still good."""


def positions(folder: Path) -> dict[Position, Path]:
    """All whole checkpoints of a folder, oldest first."""
    found = {}
    for path in folder.glob("stage*_round*_step*.pt"):
        if match := re.fullmatch(r"stage(\d+)_round(\d+)_step(\d+)\.pt", path.name):
            found[Position(*map(int, match.groups()))] = path
    return dict(sorted(found.items()))


def save(folder: Path, position: Position, state: dict[str, Any]) -> Path:
    """Write beside, flush to the disk, rename; then drop all but the newest `KEEP`.

    Raises:
        CheckpointError: The disk refused; older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / position.file_name
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        good = list(positions(folder).values())
        kept = (
            f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
        )
        raise CheckpointError(
            f"could not write checkpoint {path} ({error}); {kept}. Free some space and run "
            "the same command again to go on"
        ) from error
    for old in list(positions(folder).values())[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity, if any."""
    floats = {k: v for k, v in state.items() if v.is_floating_point() and v.numel()}
    if torch.nn.utils.get_total_norm(list(floats.values()), math.inf).isfinite():
        return None
    return next((name for name, value in floats.items() if not value.isfinite().all()), None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; tensors and plain data only.

    Raises:
        CheckpointError: Not a whole checkpoint.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}); delete it to go on from the one before"
        ) from error
