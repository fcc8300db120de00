"""The folder of a run: who owns it, what lies in it.

recipe.yaml        the resolved recipe
data.json          the pictures: names, sizes, times, and hashes of a sample
metrics.jsonl      one line a log step or measurement
tensorboard/       the same for TensorBoard
checkpoints/       where it goes on
notes/             what the method noted on the pictures before a round, and parts of a few
pictures/          what the method made of a batch at each measurement, where it makes pictures
corrupt_images.txt names of pictures that were skipped, a line each (`config.escaped`)
export/            the published form of the backbone
"""

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fg_ssl_zoo.config import (
    Recipe,
    RecipeError,
    as_dict,
    escaped,
    flatten,
    load_recipe,
    printable,
    read_yaml,
    to_yaml,
    unescaped,
)
from fg_ssl_zoo.data import inventory
from fg_ssl_zoo.data.datasets import fingerprint
from fg_ssl_zoo.data.sample import Images

FREE_KEYS = (
    "output",
    "resume",
    "overwrite",
    "trackers",
    "hub",
    "monitor",
    "data.num_workers",
)
"""What may differ when a run goes on: none of it changes what a step computes."""

WEIGHTS = r"model[\w-]*\.safetensors(\.index\.json)?"
EXPORTED = rf"config\.json|{WEIGHTS}|README\.md|recipe\.yaml|results\.json|picture\.png"
AT = r"stage\d+_round\d+"
WRITTEN = re.compile(
    r"recipe\.yaml|data\.json|metrics\.jsonl|results\.json|corrupt_images\.txt"
    rf"|checkpoints/{AT}_step\d+\.(pt|partial)"
    rf"|notes/({AT}|shown_{AT}|(shown_)?stage\d+_(end|start))\.safetensors"
    rf"|pictures/{AT}_step\d+\.png"
    r"|tensorboard/(.*/)?events\.out\.tfevents\.[^/]*"
    rf"|(export(_\w+)?|\.export(_\w+)?\.\d+(\.old)?)/(pretraining/)?({EXPORTED})"
)
"""Files of a run, below its folder; `overwrite` deletes these and no others."""

FOLDERS = re.compile(r"checkpoints|notes|pictures|tensorboard|\.?export(_\w+)?(\.\d+)?(\.old)?")
"""Folders of a run; one may be a link to another disk."""

_log = logging.getLogger(__name__)


REMEDIES = "choose another folder with output=FOLDER, or delete that run with overwrite=true"
"""What to do about a folder that holds another run."""


class RunFolderTaken(ValueError):
    """The output folder holds another run."""


class RunFolder:
    """Paths inside the folder of a run.

    Attributes:
        path: The folder.
        recipe, data, metrics, checkpoints, notes, pictures, corrupt, export: What lies in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.notes = path / "notes"
        self.pictures = path / "pictures"
        self.corrupt = path / "corrupt_images.txt"
        self.export = path / "export"

    def claim(self, recipe: Recipe, splits: Mapping[str, Images | None]) -> None:
        """Make the folder this recipe's and these pictures', or go on in it when it is already.

        Args:
            recipe: Resolved.
            splits: `train`, and `test` where there is one.

        Raises:
            RunFolderTaken: It holds another run, the pictures of this one have changed, or it
                cannot be written; the message names the differences and the remedies.
        """
        pictures = inventory.take(splits)
        try:
            if recipe.overwrite:
                self._clear()
            elif self.path.exists() and any(self.path.iterdir()):
                self._check(recipe)
                if self._has_trained():
                    self._check_pictures(pictures, splits)
            self.path.mkdir(parents=True, exist_ok=True)
            text = to_yaml(replace(recipe, overwrite=False))  # an order, which no copy repeats
            self.recipe.write_text(text, encoding="utf-8")
            inventory.write(self.data, pictures)
        except OSError as error:
            raise RunFolderTaken(
                f"output folder {printable(self.path)} cannot be written ({error.strerror}); "
                "choose another with output=FOLDER"
            ) from error

    def corrupt_images(self) -> list[str]:
        """What was noted about unreadable pictures, also before the run went on."""
        if not self.corrupt.is_file():
            return []
        return [unescaped(line) for line in self.corrupt.read_text("utf-8").split("\n") if line]

    def note_corrupt(self, messages: Iterable[str]) -> None:
        """Append to the list of unreadable pictures."""
        with self.corrupt.open("a", encoding="utf-8") as file:
            file.writelines(f"{escaped(message)}\n" for message in messages)

    def keep_picture(self, name: str, picture: np.ndarray) -> None:
        """Write an RGB picture (h, w, 3) uint8."""
        self.pictures.mkdir(exist_ok=True)
        _, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        (self.pictures / name).write_bytes(content.tobytes())

    def _check(self, recipe: Recipe) -> None:
        self._refuse_no_run("output folder ")
        if recipe.resume == "never":
            raise RunFolderTaken(
                f"output folder {self.path} already holds a run; {REMEDIES}, "
                "or go on with resume=auto"
            )
        changed = differences(self._written(), as_dict(recipe))
        if self.data.is_file():  # the pictures themselves are compared, wherever they lie now
            changed = [entry for entry in changed if entry[0] != "data.path"]
        if changed:
            listed = ", ".join(f"{key} ({old} there, {new} here)" for key, old, new in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise RunFolderTaken(
                f"output folder {self.path} already holds another run, "
                f"which differs in {listed}{more}; {REMEDIES}"
            )

    def _has_trained(self) -> bool:
        """Whether a step was kept; before that, pictures may still be repaired."""
        return (self.path / "results.json").is_file() or any(self.checkpoints.glob("*.pt"))

    def _check_pictures(
        self, pictures: inventory.Inventory, splits: Mapping[str, Images | None]
    ) -> None:
        """Compare with the inventory, or with the fingerprint of a run that is older than it."""
        if self.data.is_file():
            changed = inventory.differences(inventory.read(self.data), pictures)
            what = f"has trained on other pictures ({changed})" if changed else ""
        else:
            what = _other_fingerprint(self.path / "results.json", splits)
        if what:
            raise RunFolderTaken(
                f"the run in output folder {self.path} {what}; restore the pictures, {REMEDIES}"
            )

    def _written(self) -> dict[str, Any]:
        """The recipe that lies here; a key that is younger than the run has its default."""
        try:
            return as_dict(load_recipe(self.recipe))
        except RecipeError:  # a key that there is no more: let the difference say so
            return read_yaml(self.recipe)

    def _holds_run(self) -> bool:
        """Whether the recipe of a run lies here, and not beside an exported model."""
        exported = any((self.path / name).exists() for name in ("config.json", "model.safetensors"))
        if exported or not self.recipe.is_file():
            return False
        with contextlib.suppress(RecipeError):
            return {"backbone", "stages"} <= read_yaml(self.recipe).keys()
        return False

    def _refuse_no_run(self, who: str) -> None:
        if not self._holds_run():
            raise RunFolderTaken(
                f"{who}{printable(self.path)} holds files that are not a run (recipe.yaml of one "
                "is missing, or a model lies beside it); choose another with output=FOLDER"
            )

    def _clear(self) -> None:
        """Delete the files of the run that lies here; all others stay and are named.

        Raises:
            RunFolderTaken: No run lies here, or a foreign file lies in `export/`, which has to be
                free when the new run ends.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        self._refuse_no_run("overwrite=true: ")
        found = sorted(self._files())
        foreign = [name for name in found if not WRITTEN.fullmatch(name)]
        if in_export := [name for name in foreign if name.startswith("export")]:
            raise RunFolderTaken(
                f"overwrite=true: no run wrote {_listed(in_export)} in {printable(self.path)}; "
                "move them out of the exported folder, or choose another with output=FOLDER"
            )
        for name in sorted(set(found) - set(foreign), key=lambda name: name == self.recipe.name):
            (self.path / name).unlink()  # the recipe last: what is cut off is still a run
        for folder, _, _ in os.walk(self.path, topdown=False):
            if FOLDERS.fullmatch(os.path.relpath(folder, self.path).partition("/")[0]):
                with contextlib.suppress(OSError):  # what is not empty stays
                    os.rmdir(folder)
        if foreign:
            _log.warning(
                "overwrite=true: %s of other origin stay in %s", _listed(foreign), self.path
            )

    def _files(self) -> Iterator[str]:
        """Names below the folder; of a folder that no run makes, its own name."""
        for entry in os.scandir(self.path):
            if not (entry.is_dir() and FOLDERS.fullmatch(entry.name)):
                yield entry.name + ("/" if entry.is_dir() else "")
                continue
            for folder, _, files in os.walk(entry.path):
                yield from (os.path.relpath(os.path.join(folder, f), self.path) for f in files)


def _listed(names: list[str]) -> str:
    """`a, b, c and 4 more`, for a message of one line."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


def _other_fingerprint(results: Path, splits: Mapping[str, Images | None]) -> str:
    """How the pictures differ from those of a run that ended before inventories were kept."""
    if not results.is_file():
        return ""
    data = json.loads(results.read_text(encoding="utf-8")).get("data", {})
    for split, key in (("train", "fingerprint"), ("test", "test_fingerprint")):
        images = splits.get(split)
        here = None if images is None else fingerprint(images)
        if data.get(key, here) != here:
            return f"has other pictures ({split}: fingerprint {data[key]} there, {here} here)"
    return ""


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of all that differs and would change what a step computes."""
    old, new = flatten(old), flatten(new)
    keys = [key for key in {**old, **new} if not key.startswith(FREE_KEYS)]
    return [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]
