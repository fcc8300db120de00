"""Embed a whole data set into one file, which an interruption at any time cannot break.

    x.parquet.parts/00000.parquet   some thousand pictures each, written under another name first
    x.parquet.parts/about.json      model, weights, data, input: who may go on here
    x.parquet                       the parts, joined when all are there; they are then removed
    x.parquet.skipped.txt           pictures that cannot be decoded, where there are any

What lies in a part depends on its number alone, and a batch lies in one part. So neither the number
of processes nor the places where a run was stopped can be seen in the file: processes take turns at
the parts, and what is missing is made. A part whose pictures were replaced under their names counts
as missing, in a complete file too; a part keeps sizes, times and one hash of its pictures for that.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fg_ssl_zoo.backbones.identity import KEYS, differing, identity
from fg_ssl_zoo.config import encodable, escaped, flatten, home_path, printable, unescaped
from fg_ssl_zoo.data.datasets import (
    Subset,
    file_state,
    fingerprint,
    hub_state,
    image_name,
    image_root,
)
from fg_ssl_zoo.data.inventory import content_of
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.features.embedder import Embedder
from fg_ssl_zoo.features.embedding_file import (
    FORMAT,
    SUFFIXES,
    merge,
    part_about,
    part_table,
    read_about,
    temporary,
    write_part_of,
    write_table,
)
from fg_ssl_zoo.features.extract import any_readable, stream, why_unreadable
from fg_ssl_zoo.ops.distributed import rank, world_size

PART_ROWS = 2048
"""Pictures of a part: what an interruption costs at most, for each process."""

FREE = ("model", "data", "root", "result", "parts")
"""What may differ when a file goes on: names of the same weights and pictures, and the outcome."""


@dataclass(frozen=True)
class Embedded:
    """What became of it.

    Attributes:
        path: The file.
        num_rows: Pictures in it.
        skipped: A line for each picture that cannot be decoded.
        found: Parts that an earlier run had left; all of them where the file was complete.
        made: Parts that this run added, of all processes.
    """

    path: Path
    num_rows: int
    skipped: list[str]
    found: int
    made: int


@dataclass(frozen=True)
class Part:
    """Pictures `first` to `last` - 1 of a split."""

    number: int
    split: str
    first: int
    last: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.number:05}.parquet"


def embed(
    embedder: Embedder,
    splits: Mapping[str, Images],
    out: str | Path,
    *,
    model: str,
    batch_size: int = 128,
    part_rows: int = PART_ROWS,
    num_workers: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Embedded:
    """Write the embeddings of all pictures, in their order; go on where an earlier call stopped.

    Args:
        embedder: The backbone, with device, precision and crop.
        splits: Name of the split -> its pictures, labelled or not.
        out: A .parquet, .npz or .safetensors file.
        model: What the user calls it; for the file's description.
        batch_size: Of the forward passes.
        part_rows: Pictures of a part, rounded up to whole batches.
        num_workers: Loader processes.
        overwrite: Drop what an earlier call has left at `out`.
        say: Called with a line for each part that is written, and about pictures that changed.

    Raises:
        ValueError: Another suffix, an output of another model or of other pictures, features that
            are not finite, or not one readable picture; the message says what to do.
    """
    out = home_path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: the suffix is one of {' '.join(SUFFIXES)}")
    if encodable(str(out)) != str(out):
        raise ValueError(
            f"--out {printable(out)} holds bytes that are not UTF-8, which pyarrow "
            "cannot write; name another file"
        )
    part_rows = ceil(part_rows / batch_size) * batch_size
    about = _describe(embedder, splits, model, part_rows)
    folder, parts = out.with_name(f"{out.name}.parts"), _plan(splits, part_rows)
    everyone = embedder.accelerator.wait_for_everyone
    everyone()
    _check_earlier(out, folder, about, overwrite)
    kept, stale = ({}, 0) if overwrite else _kept(out, folder, parts, splits)
    complete = out.exists() and len(kept) == len(parts)
    undone = [part for part in parts if part not in kept]
    everyone()  # nobody writes before everybody has looked
    if not complete:
        if stale:
            say(f"pictures of {stale} of {len(parts)} parts have changed; these are made again")
        if rank() == 0:
            _open(out, folder, about, overwrite)
            _restore(out, folder, kept)
        everyone()
        mine = undone[rank() :: world_size()]
        for part in _fill(embedder, splits, mine, folder, batch_size, num_workers):
            say(f"part {part.number + 1} of {len(parts)}: {part.split} to {part.last}")
        everyone()
        made = [part_about(folder / part.name) for part in parts]
        skipped = [line for found in made for line in found["skipped"]]
        if len(skipped) == sum(len(images) for images in splits.values()):
            raise ValueError(f"none of the {len(skipped)} pictures can be read; {skipped[0]}")
        if rank() == 0:
            _finish(out, folder, parts, {**about, "parts": made}, skipped)
        everyone()
    return _result(out, found=len(parts) - len(undone), made=len(undone), complete=complete)


def _describe(
    embedder: Embedder, splits: Mapping[str, Images], model: str, part_rows: int
) -> dict[str, Any]:
    """All that decides the content, and names for it."""
    backbone = embedder.backbone
    return {
        "format": FORMAT,
        "model": model,
        **identity(backbone),
        "num_features": backbone.num_features,
        "crop_pct": embedder.crop_pct,
        "precision": embedder.accelerator.mixed_precision,
        "part_rows": part_rows,
        "pictures": {split: _which(images) for split, images in splits.items()},
        "data": {split: images.name for split, images in splits.items()},
        "root": {split: image_root(images) for split, images in splits.items()},
    }


def _which(images: Images) -> str:
    """Twelve hex digits of names, order and labels; what the files hold is kept with each part."""
    if image_root(images) is None:
        return fingerprint(images)
    labels = None if images.labels is None else images.labels.tolist()
    names = [image_name(images, index) for index in range(len(images))]
    text = json.dumps([names, images.classes, labels])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _plan(splits: Mapping[str, Images], part_rows: int) -> list[Part]:
    ranges = [
        (split, first, min(first + part_rows, len(images)))
        for split, images in splits.items()
        for first in range(0, len(images), part_rows)
    ]
    return [Part(number, *which) for number, which in enumerate(ranges)]


# --------------------------------------------------------------------------- who may go on


def _check_earlier(out: Path, folder: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Refuse a file or parts that are not of this embedding."""
    if out.exists():
        found = read_about(out)
        if found is None:
            raise ValueError(f"{out} is there and not a file of `fgssl embed`; choose another")
        if not overwrite:
            _check_same(out, found, about)
    if folder.exists() and any(folder.iterdir()):
        found = _read_json(folder / "about.json")
        if found is None:
            raise ValueError(f"{folder} holds files that are no parts of `fgssl embed`")
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


def _open(out: Path, folder: Path, about: dict[str, Any], overwrite: bool) -> None:
    """Make the folder of the parts this embedding's; what was never completed is removed."""
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


def _kept(
    out: Path, folder: Path, parts: list[Part], splits: Mapping[str, Images]
) -> tuple[dict[Part, Path], int]:
    """Parts whose pictures are as they were, with the file they lie in; how many are not so.

    Only a .parquet file can give a part of it back.
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


def _pictures(splits: Mapping[str, Images], part: Part) -> Subset:
    return Subset(splits[part.split], np.arange(part.first, part.last))


def _state(images: Images) -> dict[str, str]:
    """Of the pictures of a part: sizes and times of their files, and what they hold."""
    return {"files": file_state(images), "content": content_of(images)}


def _is_current(about: Mapping[str, Any], splits: Mapping[str, Images], part: Part) -> bool:
    """Whether the pictures are as they were; equal content is enough, so that copies are.

    A picture that could not be read and can be now is not as it was.
    """
    if any_readable(splits[part.split], about.get("missing", ())):
        return False
    images = _pictures(splits, part)
    known = image_root(images) is not None or hub_state(images)
    same_files = known and about.get("files") == file_state(images)
    return bool(same_files) or about.get("content") == content_of(images)


def _restore(out: Path, folder: Path, kept: Mapping[Part, Path]) -> None:
    """Write the unchanged parts of a complete file as parts again, and remove changed ones."""
    wanted = {part.name for part in kept}
    for path in folder.glob("*.parquet"):
        if path.name not in wanted:
            path.unlink()
    for part, place in kept.items():
        if place == out:
            write_part_of(out, part.number, folder / part.name)


# --------------------------------------------------------------------------- parts


def _fill(
    embedder: Embedder,
    splits: Mapping[str, Images],
    parts: list[Part],
    folder: Path,
    batch_size: int,
    num_workers: int,
) -> Iterator[Part]:
    """Write these parts; one loader serves all parts of a split."""
    labelled = any(images.labels is not None for images in splits.values())
    for split, group in groupby(parts, key=lambda part: part.split):
        images, wanted = splits[split], list(group)
        batches = stream(
            embedder.backbone, images, embedder.accelerator,
            [i for part in wanted for i in range(part.first, part.last)],
            crop_pct=embedder.crop_pct, batch_size=batch_size, num_workers=num_workers,
        )  # fmt: skip
        for part in wanted:
            state = _state(_pictures(splits, part))
            count = ceil((part.last - part.first) / batch_size)
            found = [next(batches) for _ in range(count)]
            features = torch.cat([rows for rows, _ in found]).numpy()
            indices = torch.cat([which for _, which in found]).numpy()
            _write(folder / part.name, images, part, features, indices, labelled, state)
            yield part


def _write(
    path: Path,
    images: Images,
    part: Part,
    features: np.ndarray,
    indices: np.ndarray,
    labelled: bool,
    state: Mapping[str, str],
) -> None:
    bad = indices[~np.isfinite(features).all(axis=1)]
    if len(bad):
        names = ", ".join(image_name(images, int(index)) for index in bad[:5])
        raise ValueError(
            f"the features of {len(bad)} pictures of this part are not finite: {names}; "
            "are the weights broken?"
        )
    table = part_table(
        features,
        files=[image_name(images, int(index)) for index in indices],
        split=part.split,
        indices=indices,
        labels=None if images.labels is None else images.labels[indices],
        classes=images.classes,
        labelled=labelled,
    )
    missing = sorted(set(range(part.first, part.last)) - set(indices.tolist()))
    skipped = [why_unreadable(images, index) for index in missing]
    about = {"rows": len(indices), "skipped": skipped, "missing": missing}
    write_table(path, table, {**about, **state})


# --------------------------------------------------------------------------- the end


def _skipped_file(out: Path) -> Path:
    return out.with_name(f"{out.name}.skipped.txt")


def _finish(
    out: Path, folder: Path, parts: list[Part], about: dict[str, Any], skipped: list[str]
) -> None:
    """The list of what was skipped, then the file, then no parts any more."""
    names = _skipped_file(out)
    names.unlink(missing_ok=True)
    if skipped:
        lines = "".join(f"{escaped(message)}\n" for message in skipped)
        names.write_text(lines, encoding="utf-8")
    total = sum(part.last - part.first for part in parts)
    result = {"rows": total - len(skipped), "skipped": len(skipped)}
    merge([folder / part.name for part in parts], out, {**about, "result": result})
    shutil.rmtree(folder)


def _result(out: Path, *, found: int, made: int, complete: bool) -> Embedded:
    about, names = read_about(out), _skipped_file(out)
    assert about is not None
    lines = names.read_text(encoding="utf-8").split("\n") if about["result"]["skipped"] else []
    return Embedded(
        path=out,
        num_rows=about["result"]["rows"],
        skipped=[unescaped(line) for line in lines if line],
        found=found + made if complete else found,
        made=0 if complete else made,
    )
