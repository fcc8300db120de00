"""The positions of images in tar files. Each file is scanned once, and the result is cached.

The key in the Hugging Face cache is the path, size and modification time of the tar file, so a file
that has changed is scanned again.
"""

import logging
import os
import posixpath
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
from fg_ssl_zoo.data.listing import JUNK, SUFFIXES, PathList, counts, unreadable
from fg_ssl_zoo.data.tensor_cache import cache_file, read_tensors, write_tensors
from fg_ssl_zoo.ops.distributed import local_processes, local_rank
from fg_ssl_zoo.progress import shown

LABELS = ("cls", "folder")
"""Sources of a label: `cls` is the member `KEY.cls`, `folder` the folder of the image."""

_LONGEST_LABEL = 200
"""Number of bytes of a `.cls` file that are read."""

_PACKED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}
"""First bytes of compressed files, and the program that unpacks them."""

_log = logging.getLogger(__name__)


@dataclass
class Members:
    """Images of one shard, in the order of the tar file.

    Attributes:
        names: Paths in the shard.
        labels: Class names; empty where an image has none.
        offsets: Position of the first byte of each image in the shard.
        sizes: Number of bytes of each image.
        others: Number of members that are not read, by ending.
    """

    names: PathList = field(default_factory=PathList)
    labels: PathList = field(default_factory=PathList)
    offsets: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    others: Counter[str] = field(default_factory=Counter)


def scanned(files: Sequence[Path], source: str) -> list[Members]:
    """The images of each shard, from the cache if it was scanned before.

    The processes of a machine begin at different shards, so that each scans its share and finds the
    other shares in the cache.

    Args:
        files: Tar files.
        source: Source of the labels, one of `LABELS`.
    """
    order = _own_share_first(len(files))
    by_number = {
        number: _members(files[number], source)
        for number in shown(order, len(files), "scanning tar files")
    }
    members = [by_number[number] for number in range(len(files))]
    others = sum((shard.others for shard in members), Counter[str]())
    if others:
        more = f" and {len(files) - 1} more shards" if len(files) > 1 else ""
        _log.warning("%s%s: left out are %s", printable(files[0]), more, counts(others))
    return members


def _own_share_first(count: int) -> list[int]:
    """All numbers below `count`; those of this process of a machine come first."""
    process = local_rank()
    processes = max(local_processes(), process + 1)  # some launchers give the rank alone
    first = count * process // processes
    return [*range(first, count), *range(first)]


def _members(file: Path, source: str) -> Members:
    try:
        status = os.stat(file)
    except OSError as error:
        link = ": it is a broken link" if file.is_symlink() else ""
        raise unreadable(file, error, link) from None
    about = {
        "path": os.fsencode(os.path.abspath(file)).hex(),
        "size": status.st_size,
        "time": status.st_mtime_ns,
        "labels": source,
        "format": 2,
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
        source: Source of the labels, one of `LABELS`.

    Raises:
        ValueError: The file is damaged, truncated, compressed, or not a tar file.
    """
    headers = _Scan()
    try:
        with file.open("rb") as opened:
            _refuse_compressed(opened, file)
            with tarfile.open(fileobj=opened, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # keeps all
                    headers.add(member, opened)
                _check_end(opened, tar.offset)
                if _has_content_left(opened):
                    headers.members.others["archive behind the first (of cat?)"] += 1
    except tarfile.TarError as error:
        raise ValueError(
            f"data.path: {printable(file)} cannot be read as a tar file ({error}); was it cut off? "
            "Copy or download it again"
        ) from None
    except OSError as error:
        raise unreadable(file, error) from None
    return headers.members_with_labels(source)


def _refuse_compressed(opened: BinaryIO, file: Path) -> None:
    start = opened.read(max(map(len, _PACKED)))
    opened.seek(0)
    for first, program in _PACKED.items():
        if start.startswith(first):
            raise ValueError(
                f"data.path: {printable(file)} is compressed, so that no image of it can be read "
                f"by itself; unpack it: {program} < {printable(file.name)} > NEW.tar"
            )


def _check_end(opened: BinaryIO, offset: int) -> None:
    """Refuse a tar file that does not end with a block of zeros; most programs write two."""
    opened.seek(offset)
    block = opened.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise tarfile.ReadError(f"no header at byte {offset}")
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end-of-archive block at byte {offset}")


def _has_content_left(opened: BinaryIO) -> bool:
    """Whether something other than zeros follows the end of an archive."""
    return any(block.strip(b"\0") for block in iter(lambda: opened.read(2**20), b""))


class _Scan:
    """Collects images, labels and links from the headers of a tar file."""

    def __init__(self) -> None:
        self.members = Members()
        self._labels: dict[str, str] = {}
        self._links: list[tuple[str, str]] = []

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        """Note a member: an image, the label of one, a link to either, or something else."""
        if member.isdir() or _is_hidden(member.name):
            return
        kind = _kind(member.name)
        if kind not in ("image", "label"):
            self.members.others[kind] += 1
        elif member.islnk() or member.issym():
            self._links.append((member.name, _target(member)))
        elif not member.isreg() or member.issparse():
            self.members.others["sparse or special files"] += 1
        elif kind == "image":
            self._add_image(member.name, member.offset_data, member.size)
        else:
            file.seek(member.offset_data)
            text = file.read(min(member.size, _LONGEST_LABEL)).decode("utf-8-sig", "replace")
            self._labels[key_of(member.name)[0]] = text.strip()

    def members_with_labels(self, source: str) -> Members:
        """All images with their labels; images that a link leads to come last."""
        self._follow_links()
        for name in self.members.names:
            folder = PurePosixPath(name).parent.name
            self.members.labels.append(
                folder if source == "folder" else self._labels.get(key_of(name)[0], "")
            )
        return self.members

    def _add_image(self, name: str, offset: int, size: int) -> None:
        self.members.names.append(name)
        self.members.offsets.append(offset)
        self.members.sizes.append(size)

    def _follow_links(self) -> None:
        """Read a link as the image or label that it leads to, over other links too."""
        if not self._links:
            return
        links = {_path(name): target for name, target in self._links}
        images = {_path(name): number for number, name in enumerate(self.members.names)}
        led_to: dict[str, str] = {}
        for name, target in self._links:
            seen = {_path(name)}
            while target in links and target not in seen:
                seen.add(target)
                target = links[target]
            key = key_of(target)[0]
            if _kind(name) == "label" and _kind(target) == "label" and key in self._labels:
                self._labels[key_of(name)[0]] = self._labels[key]
            elif _kind(name) == "image" and (number := images.get(target)) is not None:
                self._add_image(name, self.members.offsets[number], self.members.sizes[number])
                led_to[key_of(name)[0]] = key_of(self.members.names[number])[0]
            else:
                self.members.others["links to nothing that is read in the tar file"] += 1
        for key, target in led_to.items():  # a link without a label has that of its image
            if target in self._labels:
                self._labels.setdefault(key, self._labels[target])


def _kind(name: str) -> str:
    """`image`, `label`, or how a member that is neither is counted."""
    ending = key_of(name)[1].lower()
    if f".{ending}" in SUFFIXES:
        return "image"
    if ending == "cls":
        return "label"
    if not ending:
        return "without a suffix"
    last = f".{ending.rpartition('.')[2]}"
    return f"{last} with a second dot in the name" if "." in ending and last in SUFFIXES else last


def _target(link: tarfile.TarInfo) -> str:
    """The member that a link leads to; a symbolic link starts from its own folder."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return _path(posixpath.join(folder, link.linkname))


def _path(name: str) -> str:
    """A name to compare: `./a/1.jpg` and `a/1.jpg` are one."""
    return posixpath.normpath(name)


def key_of(name: str) -> tuple[str, str]:
    """The key and the ending of a member: its path up to, and behind, the first dot of its name."""
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
