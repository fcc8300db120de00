"""Images in tar files, the layout of WebDataset; read in place, one by one.

    shards/train-0000.tar    0001.jpg 0001.cls 0002.jpg 0002.cls ...
    shards/val-0000.tar      or train/0000.tar, val/0000.tar; a folder in a tar file is no split

A shard is scanned once; the positions of its images are kept in the Hugging Face cache (see
`tar_index`). Each image is then read by its position. Training therefore computes the same with
any number of processes, and a stopped run continues with the next image.

The key of a member is its path up to the first dot of the file name. The label of an image is the
text of `KEY.cls`, or with `data.columns={label: folder}` the folder of the image.
"""

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import Data, printable
from fg_ssl_zoo.data.decode import EncodedImages
from fg_ssl_zoo.data.listing import PathList, absent, counts, files_below, natural
from fg_ssl_zoo.data.order import Group
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.data.splits import (
    TEST_NAMES,
    TRAIN_NAMES,
    ClassColumn,
    choose_splits,
    is_split,
    number_classes,
    tell_unlabelled,
)
from fg_ssl_zoo.data.tar_index import LABELS, Members, key_of, scanned

BUFFER = 10_000
"""Number of images of consecutive shards that are shuffled together (`data.shuffle_buffer`)."""

_NO_LABELS = {
    "folder": "no image lies in a folder inside of its tar file",
    "cls": "no image has a label NAME.cls beside it",
}
"""Where labels were looked for (one of `LABELS`) -> why there are none."""

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ROWS = (".parquet", ".arrow")

_log = logging.getLogger(__name__)


class ShardImages(EncodedImages):
    """Images of one split in tar files.

    Args:
        root: Folder that the names of the shards start from.
        shards: Tar files, in their order.
        members: Images of each shard.
        name: Name of the data set.
        classes: Class names in the order of the labels.
        labels: Class number of every image.
        buffer: Number of images that are shuffled together; all when not given.

    Attributes:
        groups: One group, whose blocks are the shards; see `Order`.
    """

    def __init__(
        self,
        root: Path,
        shards: Sequence[Path],
        members: Sequence[Members],
        *,
        name: str,
        classes: Sequence[str] = (),
        labels: np.ndarray | None = None,
        buffer: int | None = BUFFER,
    ) -> None:
        self.name, self.classes, self.labels = name, list(classes), labels
        self.shards = [str(path) for path in shards]
        self._shown = [os.path.relpath(path, root) for path in shards]
        self._times = [os.stat(path).st_mtime_ns for path in shards]
        sizes = [len(found.names) for found in members]
        self._firsts = np.cumsum([0, *sizes])
        self._offsets = np.concatenate([np.frombuffer(m.offsets, np.int64) for m in members])
        self._sizes = np.concatenate([np.frombuffer(m.sizes, np.int64) for m in members])
        self.members = PathList()
        for found in members:
            self.members.extend(found.names)
        self.groups = [Group(len(self.members), blocks=np.array(sizes), buffer=buffer)]

    def __len__(self) -> int:
        return len(self.members)

    def encoded(self, index: int) -> bytes:
        """The image file.

        Raises:
            CorruptImage: The shard cannot be read, or is shorter than when it was scanned.
        """
        shard, size = self.shards[self._shard(index)], int(self._sizes[index])
        try:
            with open(shard, "rb", buffering=0) as file:
                file.seek(int(self._offsets[index]))
                content = file.read(size)
        except OSError as error:
            raise CorruptImage(
                f"{self.name_of(index)}: {shard} cannot be read ({error.strerror})"
            ) from None
        if len(content) < size:
            raise CorruptImage(f"{self.name_of(index)}: the shard has become shorter")
        return content

    def name_of(self, index: int) -> str:
        """`SHARD/MEMBER`."""
        return f"{self._shown[self._shard(index)]}/{self.members[index]}"

    def object_of(self, index: int) -> str:
        """`SHARD/KEY`: the same for all images of a key; it does not contain the shard's folder."""
        shard = os.path.basename(self.shards[self._shard(index)])
        return f"{shard}/{key_of(self.members[index])[0]}"

    def stat_of(self, index: int) -> tuple[int, int]:
        """Size of the image in bytes, and modification time of the shard in nanoseconds."""
        return int(self._sizes[index]), self._times[self._shard(index)]

    @property
    def identity(self) -> str:
        """Names and sizes of all images."""
        shards = [f"{name} {first}" for name, first in zip(self._shown, self._firsts, strict=False)]
        return "\n".join([*shards, self.members.joined("\n"), str(self._sizes.tolist())])

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._firsts, index, side="right")) - 1


# --------------------------------------------------------------------------- loading


def shard_files(path: Path) -> tuple[Path, list[Path]]:
    """The tar files of a path, after their folder; no files if the path is not one of tar files.

    Args:
        path: A tar file; a folder with tar files in it or below it; or a pattern, as
            `shards/train-{0000..0127}.tar` or `shards/*.tar`.

    Raises:
        ValueError: The tar files are compressed, or one is missing.
    """
    if os.path.isdir(path):
        return path, _shards_below(path)
    if path.name.lower().endswith(_COMPRESSED):
        raise _compressed([path], path)
    if path.suffix.lower() != ".tar":
        return path.parent, []
    if path.is_file() or path.is_symlink():
        return path.parent, [path]
    files = list(_expanded(str(path)))
    if files == [str(path)]:
        if hint := _patterns(str(path)):
            raise ValueError(f"data.path: there is no file {printable(path)}{hint}")
        raise absent(str(path), "file")
    if missing := [file for file in files if not os.path.isfile(file)]:
        raise ValueError(
            f"data.path: {len(missing)} of {len(files)} shards of {printable(path)} are not "
            f"there, as {printable(missing[0])}{_patterns(missing[0])}"
        )
    return Path(os.path.commonpath([os.path.dirname(file) for file in files])), [*map(Path, files)]


def _shards_below(folder: Path) -> list[Path]:
    """The tar files of a folder; none where there are images, whose archive may lie beside them."""
    found = files_below(folder, (".tar", *_COMPRESSED, *_ROWS)) or []
    shards = [file for file in found if file.suffix.lower() == ".tar"]
    packed = [file for file in found if file.name.lower().endswith(_COMPRESSED)]
    if packed and len(packed) == len(found):
        raise _compressed(packed, folder)
    if shards and len(shards) < len(found):
        others = Counter(file.suffix.lower() for file in found if file.suffix.lower() != ".tar")
        _log.warning(
            "%s: the .tar files are read; not used are %s", printable(folder), counts(others)
        )
    return shards


def _compressed(files: Sequence[Path], where: Path) -> ValueError:
    given = f"{printable(where)} is compressed"
    if files[0] != where:
        given = f"{printable(where)} holds only compressed tar files, as {printable(files[0].name)}"
    return ValueError(
        f"data.path: {given}, so that no image can be read by itself; unpack to a .tar or to a "
        "folder"
    )


def _patterns(path: str) -> str:
    """A hint at the supported patterns if a missing file looks like another kind of pattern."""
    if not re.search(r"[\[\]{}?,]|::", path):
        return ""
    return "; patterns are {0000..0127} for a range of numbers and * for any text"


def _expanded(pattern: str) -> Iterator[str]:
    """Files of a pattern: `{00..12}` stands for a range of numbers, `*` for any text."""
    if found := re.search(r"\{([0-9]+)\.\.([0-9]+)\}", pattern):
        before, behind = pattern[: found.start()], pattern[found.end() :]
        first, last = found.groups()
        if int(last) < int(first):
            raise ValueError(
                f"data.path: the range {found[0]} of {printable(pattern)} is empty; "
                f"{{{last}..{first}}} counts upwards"
            )
        for number in range(int(first), int(last) + 1):
            yield from _expanded(f"{before}{number:0{len(first)}d}{behind}")
    elif "*" in pattern:
        yield from sorted(glob.glob(pattern), key=natural) or [pattern]
    else:
        yield pattern


def load_shards(
    data: Data, root: Path, files: Sequence[Path]
) -> tuple[ShardImages, ShardImages | None]:
    """Training and test images of these tar files.

    A split is the folder of a shard below `root`, or a word of its name: `train-0001.tar`.

    Raises:
        ValueError: No such split, no images, a tar file that is damaged, or test classes that
            training lacks.
    """
    source = _label_source(data.columns)
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = _split_of(file, root, (data.train_split, data.test_split))
        splits.setdefault(name, []).append(file)
    train_name, test_name = choose_splits(splits, data, str(root))
    shards = [splits[train_name], splits[test_name] if test_name else []]
    members = [scanned(found, source) for found in shards]
    if not any(len(found.names) for found in members[0]):
        others = sum((found.others for found in members[0]), Counter[str]())
        raise ValueError(
            f"data.path: no images in {len(shards[0])} shards of {printable(root)}, as "
            f"{printable(shards[0][0])}; found {counts(others) or 'nothing'}"
        )
    columns = [ClassColumn(name for m in found for name in m.labels) for found in members]
    where = [f"{root}[{name}]" for name in (train_name or "all", test_name)]
    classes, *labels = number_classes(columns[0], columns[1] if test_name else None, *where)
    if "label" in data.columns and not columns[0].names - {""}:
        tell_unlabelled(where[0], _NO_LABELS[source])
    for name, found in zip((train_name, test_name), members, strict=True):
        if source != "folder":  # folders are classes then
            _tell_split_folders(root, name or "", found)
    buffer = BUFFER if data.shuffle_buffer == "auto" else data.shuffle_buffer

    def split(number: int) -> ShardImages:
        known = labels[number]
        return ShardImages(
            root,
            shards[number],
            members[number],
            name=data.name,
            classes=() if known is None else classes,
            labels=known,
            buffer=buffer,
        )

    return split(0), split(1) if shards[1] else None


def _label_source(columns: Mapping[str, str]) -> str:
    if unknown := sorted(columns.keys() - {"label"}):
        raise ValueError(f"data.columns: unknown key '{unknown[0]}' for tar files; known is label")
    source = columns.get("label", "cls")
    if source not in LABELS:
        raise ValueError(
            f"data.columns.label: '{printable(source)}' for tar files; cls (the member KEY.cls) or "
            "folder is needed"
        )
    return source


def _tell_split_folders(root: Path, split: str, members: Sequence[Members]) -> None:
    """Warn if folders inside of tar files have the name of another split; they are no splits."""
    same = next((names for names in (TRAIN_NAMES, TEST_NAMES) if split.casefold() in names), ())
    called = re.compile(rf"(?mi)(?:^|/)({'|'.join((*TRAIN_NAMES, *TEST_NAMES))})(?=/)")
    words = {word for found in members for word in called.findall(found.names.joined("\n"))}
    if others := sorted(word for word in words if word.casefold() not in same):
        _log.warning(
            "%s: the folders %s inside of tar files are not read as splits, and their images are "
            "in one split; make a tar file of each split, as train.tar and test.tar",
            printable(root), printable(", ".join(others)),
        )  # fmt: skip


def _split_of(file: Path, root: Path, wanted: Sequence[str]) -> str:
    """Split of a shard, from its folder or a word of its name; empty if neither names a split."""
    words = [*file.relative_to(root).parts[:-1], *re.split(r"[^A-Za-z0-9]+", file.stem)]
    return next((word for word in words if is_split(word) or word in wanted), "")
