"""The images of a run, so that a continued run uses the same images.

    take(splits)             one entry per image: name, class, size, time, content
    differences(old, new)    images that were added, are missing, or have changed; another order
    content_of(images)       one hash of their content

An image is unchanged if its name, class and size are the same, and its content if both inventories
have it. The content of up to `SAMPLED` evenly spaced images of a split is hashed; reading all
images of a large data set at every start would take minutes. For the others, the modification time
decides, unless no file has kept its time: then the folder is a copy, and names, sizes and sampled
contents decide. Part masks have their own entries, since some methods train on them.

A million entries take about 60 MB: they are columns, and the file is written and read by lines.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fg_ssl_zoo.config import whole_file
from fg_ssl_zoo.data.combine import Mixture, Subset
from fg_ssl_zoo.data.folders import FolderImages
from fg_ssl_zoo.data.listing import PathList
from fg_ssl_zoo.data.sample import CorruptImage, HasFiles, Images, files_of

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


class Entries(Sequence[Entry]):
    """Entries in columns; `Entry` is made when one is asked for."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._names, self._labels = PathList(), array("q")
        self._sizes, self._times = array("q"), array("q")
        self._classes: dict[str | None, int] = {}
        self._contents: dict[int, str] = {}
        for entry in entries:
            self.append(entry)

    def append(self, entry: Entry) -> None:
        """Add an entry at the end."""
        if entry.content is not None:
            self._contents[len(self)] = entry.content
        self._names.append(entry.name)
        self._labels.append(self._classes.setdefault(entry.label, len(self._classes)))
        self._sizes.append(-1 if entry.size is None else entry.size)
        self._times.append(-1 if entry.time is None else entry.time)

    def unchanged(self, other: "Entries") -> bool:
        """Whether all entries are equal, and contents where both know them; no entry is made."""
        known = self._contents.keys() & other._contents.keys()
        return (
            (self._names, self._labels, self._sizes, self._times)
            == (other._names, other._labels, other._sizes, other._times)
            and list(self._classes) == list(other._classes)
            and all(self._contents[row] == other._contents[row] for row in known)
        )

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return next(self._some(range(row, row + 1)))

    def __iter__(self) -> Iterator[Entry]:
        return self._some(range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def _some(self, rows: range) -> Iterator[Entry]:
        classes = list(self._classes)
        for row in rows:
            size, time = self._sizes[row], self._times[row]
            yield Entry(
                self._names[row],
                classes[self._labels[row]],
                None if size < 0 else size,
                None if time < 0 else time,
                self._contents.get(row),
            )


Inventory = Mapping[str, Sequence[Entry]]
"""Entries by split (`train`, `test`, and `train masks`, `test masks` where there are any)."""


@dataclass(frozen=True)
class Differences:
    """Names of images, in their order.

    Fields:
        moved: First image with another number, if the images are the same. Training reads images
            by number, so that another order is another run.
    """

    added: list[str]
    gone: list[str]
    changed: list[str]
    moved: str = ""

    def __bool__(self) -> bool:
        return bool(self.added or self.gone or self.changed or self.moved)

    @property
    def only_moved(self) -> bool:
        """Whether the images are the same, in another order."""
        return bool(self.moved) and not self.changed

    def __str__(self) -> str:
        """`2 added, 0 gone, 1 changed: jay/1.png, jay/2.png, crow/0.png`."""
        if self.only_moved:
            return f"the same images in another order, from {self.moved} on"
        names = list(dict.fromkeys([*self.added, *self.gone, *self.changed]))
        counts = ((len(getattr(self, kind)), kind) for kind in ("added", "gone", "changed"))
        more = ", ..." if len(names) > 3 else ""
        return f"{', '.join(f'{n} {kind}' for n, kind in counts)}: {', '.join(names[:3])}{more}"


# --------------------------------------------------------------------------- taking


def take(splits: Mapping[str, Images | None]) -> dict[str, Entries]:
    """The inventory of these splits; one that is `None` is left out.

    Args:
        splits: Name -> its images.
    """
    found: dict[str, Entries] = {}
    for split, images in splits.items():
        if images is not None:
            found[split] = Entries(_entries(images))
            if masks := Entries(_mask_entries(images)):
                found[f"{split} masks"] = masks
    return found


def _entries(images: Images) -> Iterator[Entry]:
    sampled, files, labels = _sampled(len(images)), files_of(images), images.labels
    for index in range(len(images)):
        label = None if labels is None else images.classes[labels[index]]
        name = files.name_of(index)
        try:
            size, time = files.stat_of(index) or (None, None)
        except OSError:  # without a size; training names it as unreadable
            yield Entry(name, label)
            continue
        yield Entry(name, label, size, time, _content(files, index) if index in sampled else None)


def _mask_entries(images: Images) -> Iterator[Entry]:
    """An entry for each file of part masks."""
    if isinstance(images, Mixture):
        for source in images.sources if images.parts else ():
            for entry in _mask_entries(source):
                yield entry._replace(name=f"{source.name}/{entry.name}")
    source, rows = images, np.arange(len(images))
    while isinstance(source, Subset):
        source, rows = source.images, source.indices[rows]
    if not isinstance(source, FolderImages) or source.masks is None:
        return
    files = [file for row in rows for file in source.masks.files(source.paths[int(row)])]
    sampled = _sampled(len(files))
    for number, file in enumerate(files):
        yield _file_entry(source.root, os.path.relpath(file, source.root), number in sampled)


def _file_entry(root: str, name: str, hashed: bool) -> Entry:
    """An entry without size for a file that cannot be read; training names it as unreadable."""
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
        content = _hash(Path(path).read_bytes()) if hashed else None
    except OSError:
        return Entry(name)
    return Entry(name, None, status.st_size, status.st_mtime_ns, content)


def _content(files: HasFiles, index: int) -> str | None:
    """Hash of the encoded image; drawn images follow from the recipe and have none."""
    try:
        content = files.checked(index)
    except CorruptImage:
        return "unreadable"
    return _hash(content) if content else None


def content_of(images: Images) -> str:
    """Hash of the encoded bytes of these images, all of them.

    Drawn images follow from their settings and are not drawn for this.
    """
    files = files_of(images)
    found = (_content(files, index) for index in range(len(images)))
    return _hash("".join(content or "" for content in found).encode())


def _sampled(count: int) -> set[int]:
    return set(np.linspace(0, count - 1, min(count, SAMPLED)).astype(int).tolist())


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


# --------------------------------------------------------------------------- comparing


def differences(old: Inventory, new: Inventory) -> Differences:
    """What has happened to the images since `old` was taken.

    An image that went from one split to the other is gone from one and added to the other.
    """
    if old.keys() == new.keys() and all(_unchanged(old[split], new[split]) for split in old):
        return Differences([], [], [])
    pairs, moved = _pairs(old, new), ""
    if pairs is None:
        before, after = _by_name(old), _by_name(new)
        pairs = [(before[key], after[key]) for key in after if key in before]
        added = [name for split, name in after if (split, name) not in before]
        gone = [name for split, name in before if (split, name) not in after]
        moved = "" if added or gone else _first_moved(old, new)
    else:
        added, gone = [], []
    kept_times, by_content, by_time = False, [], []
    for there, here in pairs:
        kept_times |= there.time == here.time
        by_content += [here.name] if _differs(there, here, copied=True) else []
        by_time += [here.name] if _differs(there, here, copied=False) else []
    return Differences(added, gone, by_time if kept_times else by_content, moved)


def _unchanged(old: Sequence[Entry], new: Sequence[Entry]) -> bool:
    return isinstance(old, Entries) and isinstance(new, Entries) and old.unchanged(new)


def _pairs(old: Inventory, new: Inventory) -> Iterable[tuple[Entry, Entry]] | None:
    """Entries of the same names, where all names and their order are the same; else `None`."""
    if {split: len(old[split]) for split in old} != {split: len(new[split]) for split in new}:
        return None
    if any(a.name != b.name for split in old for a, b in zip(old[split], new[split], strict=True)):
        return None
    return (pair for split in new for pair in zip(old[split], new[split], strict=True))


def _first_moved(old: Inventory, new: Inventory) -> str:
    """The first image that has another number; empty where none has."""
    pairs = (pair for split in new for pair in zip(old.get(split, ()), new[split], strict=False))
    return next((after.name for before, after in pairs if before.name != after.name), "")


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
    """Write it as JSON, an entry a line; names that are no UTF-8 are kept."""
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(f'{{"format": {_FORMAT}, "splits": {{')
        for number, (split, entries) in enumerate(inventory.items()):
            file.write(f"{',' if number else ''}\n{json.dumps(split)}: [")
            for row, entry in enumerate(entries):
                file.write(f"{',' if row else ''}\n{json.dumps(entry)}")
            file.write("\n]")
        file.write("\n}}\n")


def read(path: Path) -> dict[str, Entries]:
    """What `write` wrote, also before it wrote lines.

    Raises:
        ValueError: No inventory of this version; the message names the file.
    """
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
            if first != f'{{"format": {_FORMAT}, "splits": {{\n':
                return _read_whole(first + file.read())
            return _read_lines(file)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a list of images ({error})") from error


def _read_lines(lines: Iterable[str]) -> dict[str, Entries]:
    found: dict[str, Entries] = {}
    entries, line = Entries(), ""
    for line in lines:
        if line.startswith("["):
            entries.append(Entry(*json.loads(line.rstrip().rstrip(","))))
        elif line.startswith('"'):
            entries = found[json.loads(line.rpartition(":")[0])] = Entries()
        elif line.rstrip() not in ("]", "],", "}}"):
            raise ValueError(f"the line {line.rstrip()[:40]!r} is not one of such a list")
    if line != "}}\n":
        raise ValueError("it was cut off")
    return found


def _read_whole(text: str) -> dict[str, Entries]:
    content = json.loads(text)
    if content["format"] != _FORMAT:
        raise ValueError(f"format {content['format']}, not {_FORMAT}")
    return {
        split: Entries(Entry(*entry) for entry in entries)
        for split, entries in content["splits"].items()
    }
