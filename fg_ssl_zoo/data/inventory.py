"""The images of a run, so that a continued run uses the same images.

    take(splits)             one entry per image: name, class, size, time, content
    differences(old, new)    images that were added, are missing, or have changed
    content_of(images)       one hash of their content

An image is unchanged if its name, class and size are the same, and its content if both inventories
have it. The content of up to `SAMPLED` evenly spaced images of a split is hashed; reading all
images of a large data set at every start would take minutes. For the others, the modification time
decides, unless no file has kept its time: then the folder is a copy, and names, sizes and sampled
contents decide. Part masks have their own entries, since some methods train on them.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fg_ssl_zoo.config import write_whole
from fg_ssl_zoo.data.datasets import Subset, image_name, image_root
from fg_ssl_zoo.data.folders import FolderImages
from fg_ssl_zoo.data.hub_images import HubImages
from fg_ssl_zoo.data.sample import CorruptImage, Images

SAMPLED = 2048
"""Images of a split whose content is hashed; about a second on a local disk."""

_FORMAT = 1


class Entry(NamedTuple):
    """One image, or one part mask.

    Fields:
        name: Path below the folder, or data set and row.
        label: Class name; `None` where nothing is labelled.
        size: Bytes of the file; `None` of what is no file.
        time: When the file was changed last, in nanoseconds.
        content: Hash of the encoded bytes, of a sample of the images.
    """

    name: str
    label: str | None = None
    size: int | None = None
    time: int | None = None
    content: str | None = None


Inventory = Mapping[str, list[Entry]]
"""Entries by split (`train`, `test`, and `train masks`, `test masks` where there are any)."""


@dataclass(frozen=True)
class Differences:
    """Names of images, in their order."""

    added: list[str]
    gone: list[str]
    changed: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed)

    def __str__(self) -> str:
        """`2 added, 0 gone, 1 changed: jay/1.png, jay/2.png, crow/0.png`."""
        names = list(dict.fromkeys([*self.added, *self.gone, *self.changed]))
        counts = ((len(getattr(self, kind)), kind) for kind in ("added", "gone", "changed"))
        more = ", ..." if len(names) > 3 else ""
        return f"{', '.join(f'{n} {kind}' for n, kind in counts)}: {', '.join(names[:3])}{more}"


# --------------------------------------------------------------------------- taking


def take(splits: Mapping[str, Images | None]) -> dict[str, list[Entry]]:
    """The inventory of these splits; one that is `None` is left out.

    Args:
        splits: Name -> its images.
    """
    found: dict[str, list[Entry]] = {}
    for split, images in splits.items():
        if images is not None:
            found[split] = list(_entries(images))
            if masks := list(_mask_entries(images)):
                found[f"{split} masks"] = masks
    return found


def _entries(images: Images) -> Iterator[Entry]:
    sampled, root = _sampled(len(images)), image_root(images)
    for index in range(len(images)):
        name = image_name(images, index)
        label = None if images.labels is None else images.classes[images.labels[index]]
        if root is not None:
            yield _file_entry(root, name, label, index in sampled)
        else:
            yield Entry(name, label, content=_hub_content(images, index, sampled))


def _mask_entries(images: Images) -> Iterator[Entry]:
    """An entry for each file of part masks."""
    source, rows = images, np.arange(len(images))
    while isinstance(source, Subset):
        source, rows = source.images, source.indices[rows]
    if not isinstance(source, FolderImages) or source.masks is None:
        return
    files = [file for row in rows for file in source.masks.files(source.paths[int(row)])]
    sampled = _sampled(len(files))
    for number, file in enumerate(files):
        yield _file_entry(source.root, os.path.relpath(file, source.root), None, number in sampled)


def _file_entry(root: str, name: str, label: str | None, hashed: bool) -> Entry:
    """An entry without size for a file that cannot be read; training names it as unreadable."""
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
        content = _hash(Path(path).read_bytes()) if hashed else None
    except OSError:
        return Entry(name, label)
    return Entry(name, label, status.st_size, status.st_mtime_ns, content)


def _hub_content(images: Images, index: int, sampled: set[int]) -> str | None:
    """Hash of a row of a Hub data set; drawn images follow from the recipe and have none."""
    if index not in sampled:
        return None
    while isinstance(images, Subset):
        images, index = images.images, int(images.indices[index])
    if not isinstance(images, HubImages):
        return None
    try:
        return _hash(images.encoded(index))
    except CorruptImage:
        return "unreadable"


def content_of(images: Images) -> str:
    """Hash of the encoded bytes of these images, all of them.

    Drawn images follow from their settings and are not drawn for this.
    """
    root, rows = image_root(images), range(len(images))
    if root is None:
        every = set(rows)
        return _hash("".join(_hub_content(images, row, every) or "" for row in rows).encode())
    found = (_file_entry(root, image_name(images, row), None, True).content for row in rows)
    return _hash("".join(content or "gone" for content in found).encode())


def _sampled(count: int) -> set[int]:
    return set(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int).tolist())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


# --------------------------------------------------------------------------- comparing


def differences(old: Inventory, new: Inventory) -> Differences:
    """What has happened to the images since `old` was taken.

    An image that went from one split to the other is gone from one and added to the other.
    """
    before, after = _by_name(old), _by_name(new)
    shared = [key for key in after if key in before]
    copied = not any(before[key].time == after[key].time for key in shared)
    return Differences(
        added=[name for split, name in after if (split, name) not in before],
        gone=[name for split, name in before if (split, name) not in after],
        changed=[key[1] for key in shared if _differs(before[key], after[key], copied)],
    )


def _by_name(inventory: Inventory) -> dict[tuple[str, str], Entry]:
    return {(split, entry.name): entry for split, found in inventory.items() for entry in found}


def _differs(old: Entry, new: Entry, copied: bool) -> bool:
    if (old.label, old.size) != (new.label, new.size):
        return True
    if old.content is not None and new.content is not None:
        return old.content != new.content
    return old.time != new.time and not copied


# --------------------------------------------------------------------------- the file


def write(path: Path, inventory: Inventory) -> None:
    """Write it as JSON; names that are no UTF-8 are kept."""
    write_whole(path, json.dumps({"format": _FORMAT, "splits": inventory}) + "\n")


def read(path: Path) -> dict[str, list[Entry]]:
    """What `write` wrote.

    Raises:
        ValueError: No inventory of this version; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, not {_FORMAT}")
        splits = content["splits"].items()
        return {split: [Entry(*entry) for entry in found] for split, found in splits}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of images ({error})") from error
