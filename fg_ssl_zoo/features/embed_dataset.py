"""Embed a whole data set into one file; an interruption at any time does not damage it.

    x.parquet.parts/00000.parquet   some thousand images each, renamed when complete
    x.parquet.parts/about.json      model, weights, data, input: what a continued run must match
    x.parquet                       all parts joined at the end; the parts are then removed
    x.parquet.skipped.txt           unreadable images, if there are any

The content of a part depends only on its number, and no batch crosses parts. The file is therefore
the same for any number of processes and after any interruption: processes take turns at the
missing parts. A part whose images were replaced counts as missing, also in a complete file; each
part stores sizes, times and a hash of its images to detect this.
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

from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.config import encodable, escaped, home_path, printable, unescaped
from fg_ssl_zoo.data.datasets import (
    fingerprint,
    image_name,
    image_root,
)
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.features.embedder import Embedder
from fg_ssl_zoo.features.embedding_file import (
    FORMAT,
    SUFFIXES,
    merge,
    part_about,
    part_table,
    read_about,
    write_table,
)
from fg_ssl_zoo.features.embedding_parts import (
    Part,
    check_earlier,
    kept_parts,
    open_parts,
    pictures_of,
    plan,
    restore,
    state_of,
)
from fg_ssl_zoo.features.extract import stream, why_unreadable
from fg_ssl_zoo.ops.distributed import rank, world_size

PART_ROWS = 2048
"""Images of a part; an interruption loses at most one part per process."""


@dataclass(frozen=True)
class Embedded:
    """The result of `embed`.

    Attributes:
        path: The file.
        num_rows: Number of images in it.
        skipped: A line for each unreadable image.
        found: Number of parts from earlier runs; all parts if the file was complete.
        made: Number of parts that this run added, over all processes.
    """

    path: Path
    num_rows: int
    skipped: list[str]
    found: int
    made: int


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
    """Write the embeddings of all images in their order; continues an interrupted call.

    Args:
        embedder: The backbone with device, precision and crop.
        splits: Name of the split -> its images, labelled or not.
        out: A .parquet, .npz or .safetensors file.
        model: The user's name of the model, for the description in the file.
        batch_size: Batch size of the forward passes.
        part_rows: Images of a part, rounded up to whole batches.
        num_workers: Number of loader processes.
        overwrite: Whether an existing output at `out` is replaced.
        say: Called with a line for each part that is written, and about changed images.

    Raises:
        ValueError: Another suffix, an output of another model or of other images, features that
            are not finite, or no readable image. The message says what to do.
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
    folder, parts = out.with_name(f"{out.name}.parts"), plan(splits, part_rows)
    everyone = embedder.accelerator.wait_for_everyone
    everyone()
    check_earlier(out, folder, about, overwrite)
    kept, stale = ({}, 0) if overwrite else kept_parts(out, folder, parts, splits)
    complete = out.exists() and len(kept) == len(parts)
    undone = [part for part in parts if part not in kept]
    everyone()  # no process writes before all have looked
    if not complete:
        if stale:
            say(f"images of {stale} of {len(parts)} parts have changed and are computed again")
        if rank() == 0:
            open_parts(out, folder, about, overwrite)
            restore(out, folder, kept)
        everyone()
        mine = undone[rank() :: world_size()]
        for part in _fill(embedder, splits, mine, folder, batch_size, num_workers):
            say(f"part {part.number + 1} of {len(parts)}: {part.split} to {part.last}")
        everyone()
        made = [part_about(folder / part.name) for part in parts]
        skipped = [line for found in made for line in found["skipped"]]
        if len(skipped) == sum(len(images) for images in splits.values()):
            raise ValueError(f"none of the {len(skipped)} images can be read; {skipped[0]}")
        if rank() == 0:
            _finish(out, folder, parts, {**about, "parts": made}, skipped)
        everyone()
    return _result(out, found=len(parts) - len(undone), made=len(undone), complete=complete)


def _describe(
    embedder: Embedder, splits: Mapping[str, Images], model: str, part_rows: int
) -> dict[str, Any]:
    """Everything that determines the content, and the names of model and data."""
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
    """Twelve hex digits of names, order and labels; file contents are stored with each part."""
    if image_root(images) is None:
        return fingerprint(images)
    labels = None if images.labels is None else images.labels.tolist()
    names = [image_name(images, index) for index in range(len(images))]
    text = json.dumps([names, images.classes, labels])
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# --------------------------------------------------------------------------- parts


def _fill(
    embedder: Embedder,
    splits: Mapping[str, Images],
    parts: list[Part],
    folder: Path,
    batch_size: int,
    num_workers: int,
) -> Iterator[Part]:
    """Write these parts; all parts of a split share one loader."""
    labelled = any(images.labels is not None for images in splits.values())
    for split, group in groupby(parts, key=lambda part: part.split):
        images, wanted = splits[split], list(group)
        batches = stream(
            embedder.backbone, images, embedder.accelerator,
            [i for part in wanted for i in range(part.first, part.last)],
            crop_pct=embedder.crop_pct, batch_size=batch_size, num_workers=num_workers,
        )  # fmt: skip
        for part in wanted:
            state = state_of(pictures_of(splits, part))
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
            f"the features of {len(bad)} images of this part are not finite: {names}; "
            "check the weights"
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
    """Write the list of skipped images, then the file; then remove the parts."""
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
