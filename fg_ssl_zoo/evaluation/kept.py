"""Scores of an evaluation that was stopped, so that the same command continues from them.

One file for each model and protocol. Its name is a hash of everything that can change the scores:
model, images, options, seed, precision, processes, versions and commit.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from fg_ssl_zoo.config import set_aside, write_whole
from fg_ssl_zoo.evaluation.protocol import Outcome


class Kept:
    """Scores stored in a folder.

    Args:
        folder: Created with the first scores; with `None` nothing is kept.
        about: Settings that all scores share; part of the hash.
        accelerator: The main process writes; all processes read what existed at the start.
    """

    def __init__(
        self, folder: Path | None, about: Mapping[str, Any], accelerator: Accelerator
    ) -> None:
        self.folder, self.about, self.accelerator = folder, about, accelerator
        self.there = {path.name for path in folder.glob("*.json")} if folder else set()
        accelerator.wait_for_everyone()

    def read(self, key: Mapping[str, Any]) -> list[Outcome] | None:
        """The stored scores of a model and a protocol; `None` if there are none.

        Args:
            key: Model, protocol and options of these scores.
        """
        path = self._path(key)
        if path is None or path.name not in self.there:
            return None
        try:
            return [_outcome(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, LookupError) as error:
            if self.accelerator.is_main_process and path.is_file():
                set_aside(path, str(error))
            return None

    def write(self, key: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
        """Store the scores of a model and a protocol."""
        path = self._path(key)
        if path is not None and self.accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps([_plain(outcome) for outcome in outcomes]))

    def _path(self, key: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        text = json.dumps({**self.about, **key}, sort_keys=True, default=repr)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _plain(outcome: Outcome) -> dict[str, Any]:
    found = asdict(outcome)
    predictions = None if outcome.predictions is None else outcome.predictions.tolist()
    return {**found, "values": outcome.values.tolist(), "predictions": predictions}


def _outcome(entry: dict[str, Any]) -> Outcome:
    predictions = entry["predictions"]
    return Outcome(
        metric=entry["metric"],
        values=np.array(entry["values"], np.float64),
        predictions=None if predictions is None else np.array(predictions, np.int64),
        settings=entry["settings"],
        notes=tuple(entry["notes"]),
    )
