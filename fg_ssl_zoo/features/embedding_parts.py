"""The parts of an embedding file: planned, checked against an earlier call, kept or replaced.

A part is kept if its images are unchanged, whether it is a file of its own or lies in a complete
.parquet file. `embed_dataset.py` computes the others.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fg_ssl_zoo.backbones.identity import KEYS, differing
from fg_ssl_zoo.config import flatten
from fg_ssl_zoo.data.datasets import Subset, file_state, hub_state, image_root
from fg_ssl_zoo.data.inventory import content_of
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.features.embedding_file import (
    part_about,
    read_about,
    temporary,
    write_part_of,
)
from fg_ssl_zoo.features.extract import any_readable

FREE = ("model", "data", "root", "result", "parts")
"""Keys that may differ if a file is continued: names of the same weights and images, results."""


@dataclass(frozen=True)
class Part:
    """Images `first` to `last` - 1 of a split."""

    number: int
    split: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.number:05}.parquet"


def plan(splits: Mapping[str, Images], part_rows: int) -> list[Part]:
    """The parts of all splits, in order."""
    ranges = [
        (split, first, min(first + part_rows, len(images)))
        for split, images in splits.items()
        for first in range(0, len(images), part_rows)
    ]
    return [Part(number, *which) for number, which in enumerate(ranges)]


def check_earlier(out: Path, folder: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Refuse an existing file, or parts, of another embedding."""
    if out.exists():
        found = read_about(out)
        if found is None:
            raise ValueError(f"{out} exists and is not a file of `fgssl embed`; choose another")
        if not overwrite:
            _check_same(out, found, about)
    if folder.exists() and any(folder.iterdir()):
        found = _read_json(folder / "about.json")
        if found is None:
            raise ValueError(f"{folder} holds files that `fgssl embed` did not write")
        if not overwrite:
            _check_same(folder, found, about)


def _check_same(where: Path, found: dict[str, Any], about: dict[str, Any]) -> None:
    old, new = flatten(found), flatten(about)
    keys = [key for key in {**old, **new} if not key.startswith((*FREE, *KEYS))]
    changed = differing(found, about)
    changed += [
        f"{key} ({old.get(key)} there, {new.get(key)} here)"
        for key in keys
        if old.get(key) != new.get(key)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{where} is of {found.get('model')} and differs in {', '.join(changed[:3])}{more}; "
            "choose another file with --out, or replace it with --overwrite"
        )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def open_parts(out: Path, folder: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Create the folder of parts; incomplete files are removed."""
    if overwrite:
        out.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for cut_off in folder.glob(".*"):
        cut_off.unlink()
    path = folder / "about.json"
    part = temporary(path)
    part.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def kept_parts(
    out: Path, folder: Path, parts: list[Part], splits: Mapping[str, Images]
) -> tuple[dict[Part, Path], int]:
    """Parts whose images are unchanged, with their file; and the number of changed parts.

    Single parts can be restored only from a .parquet file.
    """
    complete = (read_about(out) or {}).get("parts") or []
    kept, stale = {}, 0
    for part in parts:
        found = {}
        if part.number < len(complete):
            found[out] = complete[part.number]
        if (folder / part.name).is_file():
            found[folder / part.name] = part_about(folder / part.name)
        good = [place for place, about in found.items() if _is_current(about, splits, part)]
        if good:
            kept[part] = good[-1]
        stale += not good and (bool(found) or out.exists())
    if stale and out.suffix != ".parquet":
        kept = {part: place for part, place in kept.items() if place != out}
    return kept, stale


def pictures_of(splits: Mapping[str, Images], part: Part) -> Subset:
    """The images of a part."""
    return Subset(splits[part.split], np.arange(part.first, part.last))


def state_of(images: Images) -> dict[str, str]:
    """Sizes and times of the files of a part, and a hash of their content."""
    return {"files": file_state(images), "content": content_of(images)}


def _is_current(about: Mapping[str, Any], splits: Mapping[str, Images], part: Part) -> bool:
    """Whether the images are unchanged; equal content is enough, so a copied folder is unchanged.

    An image that was unreadable and is readable now counts as a change.
    """
    if any_readable(splits[part.split], about.get("missing", ())):
        return False
    images = pictures_of(splits, part)
    known = image_root(images) is not None or hub_state(images)
    same_files = known and about.get("files") == file_state(images)
    return bool(same_files) or about.get("content") == content_of(images)


def restore(out: Path, folder: Path, kept: Mapping[Part, Path]) -> None:
    """Write the unchanged parts of a complete file as single parts, and remove changed ones."""
    wanted = {part.name for part in kept}
    for path in folder.glob("*.parquet"):
        if path.name not in wanted:
            path.unlink()
    for part, place in kept.items():
        if place == out:
            write_part_of(out, part.number, folder / part.name)
