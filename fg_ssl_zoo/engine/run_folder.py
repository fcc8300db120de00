"""The folder of a run: who owns it, what lies in it.

recipe.yaml        the resolved recipe
data.json          the pictures: names, sizes, times, and hashes of a sample
metrics.jsonl      one line a log step or measurement
tensorboard/       the same for TensorBoard
checkpoints/       where it goes on
notes/             what the method noted on the pictures before a round, and parts of a few
pictures/          what the method made of a batch at each measurement, where it makes pictures
corrupt_images.txt names of pictures that were skipped
export/            the published form of the backbone
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from fg_ssl_zoo.config import Recipe, RecipeError, as_dict, flatten, parse_recipe, to_yaml
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
            RunFolderTaken: It holds another run, or the pictures of this one have changed; the
                message names the differences and the remedies.
        """
        if recipe.overwrite:
            self._clear()
        pictures = inventory.take(splits)
        if self.path.exists() and any(self.path.iterdir()):
            self._check(recipe)
            if self._has_trained():
                self._check_pictures(pictures, splits)
        self.path.mkdir(parents=True, exist_ok=True)
        self.recipe.write_text(to_yaml(recipe), encoding="utf-8")
        inventory.write(self.data, pictures)

    def corrupt_images(self) -> list[str]:
        """What was noted about unreadable pictures, also before the run went on."""
        return (
            self.corrupt.read_text(encoding="utf-8").splitlines() if self.corrupt.is_file() else []
        )

    def note_corrupt(self, messages: Iterable[str]) -> None:
        """Append to the list of unreadable pictures."""
        with self.corrupt.open("a", encoding="utf-8") as file:
            file.writelines(f"{message}\n" for message in messages)

    def keep_picture(self, name: str, picture: np.ndarray) -> None:
        """Write an RGB picture (h, w, 3) uint8."""
        self.pictures.mkdir(exist_ok=True)
        _, content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        (self.pictures / name).write_bytes(content.tobytes())

    def _check(self, recipe: Recipe) -> None:
        if not self.recipe.is_file():
            raise RunFolderTaken(
                f"output folder {self.path} holds files that are not a run; "
                "choose another with output=FOLDER"
            )
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
        content = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        try:
            return as_dict(parse_recipe(content))
        except RecipeError:  # a key that there is no more: let the difference say so
            return content

    def _clear(self) -> None:
        if self.path.exists() and any(self.path.iterdir()) and not self.recipe.is_file():
            raise RunFolderTaken(
                f"overwrite=true: {self.path} holds files that are not a run; "
                "choose another with output=FOLDER"
            )
        shutil.rmtree(self.path, ignore_errors=True)


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
