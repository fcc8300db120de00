"""Where the images of tar files lie: each file is scanned once, and the result is kept.

It is kept in the Hugging Face cache under path, size and time of change of the tar file, so a file
that has changed is scanned again.
"""

import logging
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError

from fg_ssl_zoo.config import printable
from fg_ssl_zoo.data.listing import JUNK, SUFFIXES, PathList, counts
from fg_ssl_zoo.data.tensor_cache import cache_file, read_tensors, write_tensors
from fg_ssl_zoo.progress import shown

LABELS = ("cls", "folder")
"""Where the label of an image may stand: in a member `KEY.cls`, or in its path."""

_LONGEST_LABEL = 200
"""Bytes of a label that are read."""

_log = logging.getLogger(__name__)


@dataclass
class Members:
    """Images of one shard, in its order.

    Attributes:
        names: Paths in the shard.
        labels: Class names; empty where an image has none.
        offsets: Of the first byte of each, in the shard.
        sizes: In bytes.
        others: Number of members that are no images, by ending.
    """

    names: PathList = field(default_factory=PathList)
    labels: PathList = field(default_factory=PathList)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    others: Counter[str] = field(default_factory=Counter)


def scanned(files: Sequence[Path], source: str) -> list[Members]:
    """The images of shards, from the cache where they were scanned before."""
    found = [_members(file, source) for file in shown(files, len(files), "scanning tar files")]
    others = sum((members.others for members in found), Counter[str]())
    if others:
        _log.warning(
            "%s and %d more shards: left out are %s",
            printable(files[0]), len(files) - 1, counts(others),
        )  # fmt: skip
    return found


def _members(file: Path, source: str) -> Members:
    status = os.stat(file)
    about = {
        "path": os.fsencode(os.path.abspath(file)).hex(),
        "size": status.st_size,
        "time": status.st_mtime_ns,
        "labels": source,
        "format": 1,
    }
    path = cache_file(about, "shards")
    if kept := read_tensors(path):
        return _of_tensors(kept)
    members = scan(file, source)
    if not members.sizes:
        return members
    try:
        write_tensors(path, _as_tensors(members))
    except (OSError, SafetensorError) as error:
        _log.warning("%s is scanned again next time: %s", printable(file), error)
    return members


def scan(file: Path, source: str = "cls") -> Members:
    """The images of a tar file, from the headers of its members.

    Args:
        file: Not compressed.
        source: Where labels stand, one of `LABELS`.

    Raises:
        ValueError: It is damaged, cut off, or no tar file.
    """
    members, texts = Members(), dict[str, str]()
    try:
        with file.open("rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # keeps all else
                if member.isreg() and not member.issparse() and not _is_hidden(member.name):
                    _add(members, texts, member, opened)
            opened.seek(tar.offset)
            if opened.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"no header at byte {tar.offset}")
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"data.path: {printable(file)} cannot be read as a tar file ({error}); was it cut off? "
            "Copy or download it again"
        ) from None
    for name in members.names:
        folder = PurePosixPath(name).parent.name
        members.labels.append(folder if source == "folder" else texts.get(_key(name)[0], ""))
    return members


def _add(members: Members, texts: dict[str, str], member: tarfile.TarInfo, file: BinaryIO) -> None:
    """Note a member: an image, the label of one, or something else."""
    key, ending = _key(member.name)
    if f".{ending.lower()}" in SUFFIXES:
        members.names.append(member.name)
        members.offsets.append(member.offset_data)
        members.sizes.append(member.size)
    elif ending == "cls":
        file.seek(member.offset_data)
        texts[key] = file.read(min(member.size, _LONGEST_LABEL)).decode("utf-8", "replace").strip()
    else:
        members.others[f".{ending}" if ending else "without a suffix"] += 1


def _key(name: str) -> tuple[str, str]:
    """What belongs together, and the ending, both sides of the first dot of a file's name."""
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    return f"{folder}{slash}{stem}", ending


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in JUNK for part in PurePosixPath(name).parts)


def _as_tensors(members: Members) -> dict[str, torch.Tensor]:
    others = PathList(f"{count} {kind}" for kind, count in members.others.items())
    texts = {"names": members.names, "labels": members.labels, "others": others}
    arrays = {
        f"{key}.{part}": a for key, text in texts.items() for part, a in text.arrays().items()
    }
    arrays |= {"offsets": np.array(members.offsets, np.int64)}
    arrays |= {"sizes": np.array(members.sizes, np.int64)}
    return {key: torch.from_numpy(values) for key, values in arrays.items()}


def _of_tensors(kept: Mapping[str, torch.Tensor]) -> Members:
    arrays = {key: values.numpy() for key, values in kept.items()}
    names, labels, others = (
        PathList.of({part: arrays[f"{key}.{part}"] for part in ("bytes", "ends")})
        for key in ("names", "labels", "others")
    )
    counted = Counter({kind: int(count) for count, _, kind in (o.partition(" ") for o in others)})
    offsets, sizes = (array("q", arrays[key].tobytes()) for key in ("offsets", "sizes"))
    return Members(names, labels, offsets, sizes, counted)
