"""The folder of a run: its files, and which run owns it.

recipe.yaml        the resolved recipe
data.json          the images: names, sizes, times, and hashes of a sample
metrics.jsonl      one line per log step or measurement
tensorboard/       the same for TensorBoard
checkpoints/       the state from which the run continues
notes/             the method's notes on the images, start weights, and parts of a few images
pictures/          images that the method draws at each measurement, if it does
corrupt_images.txt names of skipped images, one per line (`config.escaped`)
export/            the exported backbone
run.lock           locked while the run is active; run.owner.json names its process

Every file is written completely or not at all. An unreadable file is renamed to `NAME.unreadable`
with a warning; `checkpoints/recipe.yaml` is a second copy of the recipe.
"""

import contextlib
import json
import logging
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    set_aside,
    to_yaml,
    unescaped,
    write_whole,
)
from fg_ssl_zoo.data import inventory
from fg_ssl_zoo.data.datasets import fingerprint
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine.run_lock import LOCK, OWNER, RunFolderTaken, RunLock

FREE_KEYS = (
    "output",
    "resume",
    "overwrite",
    "keep_checkpoints",
    "trackers",
    "hub",
    "monitor",
    "data.num_workers",
    "data.cache",
    "data.cache_gb",
)
"""Keys that may differ when a run is continued, since they do not change what a step computes."""

WEIGHTS = r"model[\w-]*\.safetensors(\.index\.json)?"
EXPORTED = rf"config\.json|{WEIGHTS}|README\.md|recipe\.yaml|results\.json|picture\.png"
AT = r"stage\d+_round\d+"
PART = r"(\.\d+)?\.partial"
LEFT = rf"({PART}|\.unreadable\d*)?"
WRITTEN = re.compile(
    rf"(recipe\.yaml|data\.json|metrics\.jsonl|results\.json|corrupt_images\.txt){LEFT}"
    rf"|(checkpoints/recipe\.yaml|run\.owner\.json){LEFT}|run\.lock"
    rf"|checkpoints/{AT}_step\d+\.(pt{LEFT}|partial)"
    rf"|notes/({AT}|shown_{AT}|(shown_)?stage\d+_(end|start))\.(safetensors({PART})?|part)"
    rf"|pictures/{AT}_step\d+\.png({PART})?"
    r"|tensorboard/(.*/)?events\.out\.tfevents\.[^/]*"
    rf"|(export(_\w+)?|\.export(_\w+)?\.\d+(\.old)?)/(pretraining/)?({EXPORTED})({PART})?"
)
"""Files of a run in its folder; `overwrite` deletes only these."""

FOLDERS = re.compile(r"checkpoints|notes|pictures|tensorboard|\.?export(_\w+)?(\.\d+)?(\.old)?")
"""Folders of a run; one may be a link to another disk."""

_log = logging.getLogger(__name__)


REMEDIES = "choose another folder with output=FOLDER, or delete that run with overwrite=true"
"""What to do about a folder that holds another run."""


def _remedies(changed: Sequence[tuple[str, Any, Any]]) -> str:
    """`REMEDIES`; if only names differ (the data folder was renamed), also how to continue."""
    names = {key: old for key, old, _ in changed if key in ("name", "data.name")}
    if len(names) < len(changed):
        return REMEDIES
    words = " ".join(f"{key}={shlex.quote(str(old))}" for key, old in names.items())
    return f"{REMEDIES}; if the images are the same, {words} continues it"


class RunFolder:
    """Paths inside the folder of a run.

    Attributes:
        path: The folder.
        recipe, recipe_copy, data, metrics, results, checkpoints, notes, pictures, corrupt, export,
            lock: Its files and folders.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.checkpoints = path / "checkpoints"
        self.recipe_copy = self.checkpoints / "recipe.yaml"
        self.notes = path / "notes"
        self.pictures = path / "pictures"
        self.corrupt = path / "corrupt_images.txt"
        self.export = path / "export"
        self.lock = RunLock(path)

    def claim(self, recipe: Recipe, splits: Mapping[str, Images | None]) -> None:
        """Create the folder for this recipe and these images, or continue in it.

        Args:
            recipe: The resolved recipe.
            splits: `train`, and `test` if there is one.

        Raises:
            RunFolderTaken: It holds another run or an active one, the images have changed, or it
                cannot be written; the message names differences and remedies.
        """
        pictures = inventory.take(splits)
        try:
            if self._holds_files():
                self._refuse_no_run("overwrite=true: " if recipe.overwrite else "output folder ")
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
            try:
                self._claim(recipe, pictures, splits)
            except BaseException:
                self.lock.release()
                raise
        except OSError as error:
            place = f" ({printable(error.filename)})" if error.filename else ""
            raise RunFolderTaken(
                f"output folder {printable(self.path)} cannot be written: "
                f"{error.strerror or error}{place}; make room or choose another with output=FOLDER"
            ) from error

    def _claim(
        self,
        recipe: Recipe,
        pictures: inventory.Inventory,
        splits: Mapping[str, Images | None],
    ) -> None:
        if recipe.overwrite:
            self._clear()
        elif self._holds_files():
            self._check(recipe)
            if self._has_trained():
                self._check_pictures(pictures, splits)
        text = to_yaml(replace(recipe, overwrite=False))  # not again when it continues
        write_whole(self.recipe, text)
        self.checkpoints.mkdir(exist_ok=True)
        write_whole(self.recipe_copy, text)
        inventory.write(self.data, pictures)

    def corrupt_images(self) -> list[str]:
        """Lines about unreadable images, including those before the run was continued."""
        if not self.corrupt.is_file():
            return []
        text = self.corrupt.read_bytes().decode("utf-8", "replace")
        return [unescaped(line) for line in text.split("\n") if line]

    def note_corrupt(self, messages: Iterable[str]) -> None:
        """Add lines to the list of unreadable images."""
        known = dict.fromkeys([*self.corrupt_images(), *messages])
        write_whole(self.corrupt, "".join(f"{escaped(message)}\n" for message in known))

    def sync_metrics(self) -> None:
        """Flush `metrics.jsonl` to the disk, before a checkpoint of these steps is written."""
        if self.metrics.is_file():
            with self.metrics.open("rb+") as file:
                os.fsync(file.fileno())

    def refuse_lost_checkpoints(self) -> None:
        """Refuse to start from step 0 if all checkpoints of the run are lost.

        Raises:
            RunFolderTaken: Says what is lost, and what to do.
        """
        done = self._steps_measured()
        unreadable = sorted(self.checkpoints.glob("*.unreadable*"))
        if not (done or unreadable or self.results.is_file()):
            return
        which = f"cannot be read ({_listed([p.name for p in unreadable])})" if unreadable else ""
        raise RunFolderTaken(
            f"all checkpoints of the run in {printable(self.path)} {which or 'are gone'}"
            f"{f'; it had been measured at step {done}' if done else ''}. Restore "
            f"{self.checkpoints.name}/, or start again from step 0 with overwrite=true"
        )

    def _steps_measured(self) -> int:
        """The last step of a measurement in `metrics.jsonl`; each follows a checkpoint."""
        last = 0
        with contextlib.suppress(OSError):
            for line in self.metrics.read_bytes().split(b"\n"):
                with contextlib.suppress(ValueError, TypeError, LookupError):
                    record = json.loads(line)
                    if any(key.startswith("eval/") for key in record):
                        last = max(last, int(record["step"]))
        return last

    def keep_picture(self, name: str, picture: np.ndarray) -> None:
        """Write an RGB image (h, w, 3) uint8."""
        self.pictures.mkdir(exist_ok=True)
        _, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        write_whole(self.pictures / name, content.tobytes())

    def _check(self, recipe: Recipe) -> None:
        if recipe.resume == "never":
            raise RunFolderTaken(
                f"output folder {self.path} already holds a run; {REMEDIES}, "
                "or continue with resume=auto"
            )
        changed = differences(self._written(), as_dict(recipe))
        if self.data.is_file():  # the images are compared by content, in any folder
            place = re.compile(r"data\.path(\[[0-9]+\]\.path)?")
            changed = [entry for entry in changed if not place.fullmatch(entry[0])]
        if changed:
            listed = ", ".join(f"{key} ({old} there, {new} here)" for key, old, new in changed[:3])
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise RunFolderTaken(
                f"output folder {self.path} already holds another run, "
                f"which differs in {listed}{more}; {_remedies(changed)}"
            )

    def _has_trained(self) -> bool:
        """Whether a step was stored; before that, images may still be repaired."""
        return self.results.is_file() or any(self.checkpoints.glob("*.pt"))

    def _check_pictures(
        self, pictures: inventory.Inventory, splits: Mapping[str, Images | None]
    ) -> None:
        """Compare with the inventory, or with the fingerprint of a run of an older version."""
        before = self._pictures_before()
        remedy = "restore the images"
        if before is None:
            what = self._other_fingerprint(splits)
        elif (changed := inventory.differences(before, pictures)).only_moved:
            what = f"has trained on {changed}"
            remedy = "restore the order, or use the earlier version (this one sorts CSV files)"
        else:
            what = f"has trained on other images ({changed})" if changed else ""
        if what:
            raise RunFolderTaken(
                f"the run in output folder {self.path} {what}; {remedy}, {REMEDIES}"
            )

    def _other_fingerprint(self, splits: Mapping[str, Images | None]) -> str:
        """How the images differ from those of a run without an inventory."""
        if not self.results.is_file():
            return ""
        try:
            data = json.loads(self.results.read_text(encoding="utf-8")).get("data", {})
        except (ValueError, AttributeError) as error:
            set_aside(self.results, str(error))
            return ""
        for split, key in (("train", "fingerprint"), ("test", "test_fingerprint")):
            images = splits.get(split)
            here = None if images is None else fingerprint(images)
            if data.get(key, here) != here:
                return f"has other images ({split}: fingerprint {data[key]} there, {here} here)"
        return ""

    def _pictures_before(self) -> inventory.Inventory | None:
        """The inventory of the run, if it is readable."""
        if not self.data.is_file():
            return None
        try:
            return inventory.read(self.data)
        except ValueError as error:
            set_aside(self.data, f"{error}; the images are not compared with those before")
            return None

    def _written(self) -> dict[str, Any]:
        """The recipe in this folder; keys that are newer than the run have their defaults.

        Raises:
            RunFolderTaken: Neither of its copies can be read.
        """
        for path in (self.recipe, self.recipe_copy):
            content = _recipe_in(path)
            if content is not None:
                try:
                    return as_dict(load_recipe(path))
                except RecipeError:  # a removed key is reported as a difference
                    return content
            if path.is_file() and path == self.recipe:
                set_aside(path, "it is no recipe of a run")
        raise RunFolderTaken(
            f"recipe.yaml of the run in output folder {printable(self.path)} cannot be read; "
            f"restore it, {REMEDIES}"
        )

    def _holds_files(self) -> bool:
        """Whether the folder holds files other than the lock of a run that did not begin."""
        if not self.path.exists():
            return False
        return any(path.name not in (LOCK, OWNER) for path in self.path.iterdir())

    def _holds_run(self) -> bool:
        """Whether the folder holds the recipe of a run, and not an exported model."""
        exported = any((self.path / name).exists() for name in ("config.json", "model.safetensors"))
        if exported:
            return False
        recipes = any(_recipe_in(path) for path in (self.recipe, self.recipe_copy))
        return recipes or any(self.checkpoints.glob("stage*_round*_step*.pt"))

    def _refuse_no_run(self, who: str) -> None:
        if not self._holds_run():
            raise RunFolderTaken(
                f"{who}{printable(self.path)} holds files that are not a run (recipe.yaml of one "
                "is missing, or a model lies beside it); choose another with output=FOLDER"
            )

    def _clear(self) -> None:
        """Delete the files of the run in this folder; other files are kept and named.

        Raises:
            RunFolderTaken: There is no run, or `export/` contains a foreign file, which would
                prevent the export.
        """
        found = sorted(self._files())
        foreign = [name for name in found if not WRITTEN.fullmatch(name)]
        if in_export := [name for name in foreign if name.startswith("export")]:
            raise RunFolderTaken(
                f"overwrite=true: no run wrote {_listed(in_export)} in {printable(self.path)}; "
                "move them out of the exported folder, or choose another with output=FOLDER"
            )
        held = {LOCK, OWNER}  # locked by this run
        for name in sorted(set(found) - set(foreign) - held, key=self._is_recipe):
            (self.path / name).unlink()  # the recipe last: without it, the folder is no run
        for folder, _, _ in os.walk(self.path, topdown=False):
            if FOLDERS.fullmatch(os.path.relpath(folder, self.path).partition("/")[0]):
                with contextlib.suppress(OSError):  # folders that are not empty are kept
                    os.rmdir(folder)
        if foreign:
            _log.warning(
                "overwrite=true: %s of other origin stay in %s", _listed(foreign), self.path
            )

    def _is_recipe(self, name: str) -> bool:
        return name == self.recipe.name

    def _files(self) -> Iterator[str]:
        """Names of files below the folder; for a foreign folder, only its own name."""
        for entry in os.scandir(self.path):
            if not (entry.is_dir() and FOLDERS.fullmatch(entry.name)):
                yield entry.name + ("/" if entry.is_dir() else "")
                continue
            for folder, _, files in os.walk(entry.path):
                yield from (os.path.relpath(os.path.join(folder, f), self.path) for f in files)


def _listed(names: list[str]) -> str:
    """`a, b, c and 4 more`, for a one-line message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


def _recipe_in(path: Path) -> dict[str, Any] | None:
    """The recipe in a file; `None` if it is missing or unreadable."""
    with contextlib.suppress(RecipeError):
        content = read_yaml(path) if path.is_file() else {}
        return content if {"backbone", "stages"} <= content.keys() else None
    return None


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old, new) of all differences that change what a step computes."""
    old, new = flatten(old), flatten(new)
    keys = [key for key in {**old, **new} if not key.startswith(FREE_KEYS)]
    return [(k, old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)]
