"""Rows of Parquet files that are read where they lie, on a disk or on the Hub.

A Parquet file is a series of row groups (`datasets` writes 100 images in each); its last bytes, the
footer, list them. The footers are read first. A row group is read when one of its rows is needed,
and kept until `MOST_BYTES` are exceeded. Nothing is copied to the disk. A row is found by its
number, so a stopped run continues with the next image.
"""

import hashlib
import logging
import math
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from fg_ssl_zoo.config import printable, reason_of
from fg_ssl_zoo.data.order import LANES, Group
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.progress import shown

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_log = logging.getLogger(__name__)

BUFFER = 256
"""Number of rows that are shuffled together (`data.shuffle_buffer`)."""

MOST_BYTES = 2**30
"""Bytes of row groups that each process keeps; the last one is kept even if it is larger."""

NO_IMAGE = {"bytes": None, "path": None}
"""A row without an image."""

OPENED_AT_ONCE = 8
"""Number of files whose footers are read at the same time."""


class ParquetRows(Sequence[dict[str, Any]]):
    """Encoded images of Parquet files; each row is `{"bytes": ..., "path": ...}`.

    Args:
        files: Paths or addresses (`hf://...`), in their order.
        image: Name of the image column.
        most: Number of rows that are used, the first ones; all when not given.
        buffer: Number of rows that are shuffled together.

    Attributes:
        state: Hash of the names, row counts and footer sizes of the files.
        groups: One group, whose blocks are the row groups; see `Order`.

    Raises:
        ValueError: A file cannot be read.
    """

    def __init__(
        self, files: Sequence[str], image: str, most: int | None = None, buffer: int = BUFFER
    ) -> None:
        self.image = image
        self._files: list[str] = []
        self._about: list[pq.FileMetaData] = []
        self._columns: list[list[int]] = []
        self._places: list[tuple[int, int]] = []
        self._firsts, described = [0], [image]
        for file, about in _abouts(files, most):
            for group in range(about.num_row_groups):
                if most is None or len(self) < most:
                    self._places.append((len(self._files), group))
                    self._firsts.append(len(self) + about.row_group(group).num_rows)
            self._files.append(file)
            self._about.append(about)
            self._columns.append(_columns_of(about, image))
            described.append(f"{file} {about.num_rows} {about.serialized_size}")
        self._firsts[-1] = min(self._firsts[-1], most or self._firsts[-1])
        self.state = hashlib.blake2b("\n".join(described).encode(), digest_size=8).hexdigest()
        self.groups = [Group(len(self), blocks=np.diff(self._firsts), buffer=buffer)]
        self._tell_large_groups(buffer)
        self._open_here()

    def _tell_large_groups(self, buffer: int) -> None:
        """Warn if the row groups in use exceed `MOST_BYTES`, so that each is read several times."""
        largest = max((self._bytes(number) for number in range(len(self._places))), default=0)
        rows = max(1, len(self) // max(1, len(self._places)))
        in_use = min(len(self._places), LANES * (1 + math.ceil(buffer / rows)))
        if largest * in_use > MOST_BYTES:
            _log.warning(
                "%s: training reads from %d row groups at a time, of up to %.0f MB each, and keeps "
                "%.1f GB, so groups are read again and again; write the files with 100 rows in a "
                "row group, as the datasets package does",
                printable(self._files[0]), in_use, largest / 1e6, MOST_BYTES / 1e9,
            )  # fmt: skip

    def _bytes(self, number: int) -> int:
        """Bytes of the images of a row group in memory."""
        place, group = self._places[number]
        about = self._about[place].row_group(group)
        return sum(about.column(i).total_uncompressed_size for i in self._columns[place])

    def _open_here(self) -> None:
        self._kept: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """The state for another process, without the kept row groups."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_here()

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        number = bisect_right(self._firsts, row) - 1
        value = self._row_group(number)[row - self._firsts[number]].as_py()
        if isinstance(value, dict):
            return value
        return NO_IMAGE | {"path" if isinstance(value, str) else "bytes": value}

    def column(self, name: str) -> list[Any]:
        """The values of another column, one per row."""
        values: list[Any] = []
        numbers = range(len(self._places))
        for number in shown(numbers, len(numbers), f"reading column {name}"):
            values.extend(self._read(number, name).to_pylist())
        return values[: len(self)]

    def _row_group(self, number: int) -> "pa.Array":
        """The images of a row group, read if they are not kept."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            images = self._kept[number] = self._read(number, self.image)
            while len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > MOST_BYTES:
                self._kept.popitem(last=False)
            return images

    def _read(self, number: int, column: str) -> "pa.Array":
        import pyarrow.parquet as pq
        from datasets.utils.file_utils import xopen

        place, group = self._places[number]
        try:
            with xopen(self._files[place], "rb") as file:
                opened = pq.ParquetFile(file, metadata=self._about[place])
                return opened.read_row_group(group, columns=[column])[column].combine_chunks()
        except Exception as error:  # of huggingface_hub, fsspec, pyarrow
            raise CorruptImage(
                f"{self._files[place]}: cannot be read ({reason_of(error)})"
            ) from error


def _columns_of(about: "pq.FileMetaData", name: str) -> list[int]:
    """Numbers of the Parquet columns of a table column, which are several if it is a struct."""
    paths = [about.schema.column(number).path for number in range(about.num_columns)]
    return [number for number, path in enumerate(paths) if f"{path}.".startswith(f"{name}.")]


def _abouts(files: Sequence[str], most: int | None) -> "Iterator[tuple[str, pq.FileMetaData]]":
    """Each file with its footer, up to the file that completes `most` rows."""
    rows, starts = 0, range(0, len(files), OPENED_AT_ONCE)
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        for start in shown(starts, len(files), "opening Parquet files", size=OPENED_AT_ONCE):
            some = files[start : start + OPENED_AT_ONCE]
            for file, about in zip(some, pool.map(footer_of, some), strict=True):
                if most is not None and rows >= most:
                    return
                rows += about.num_rows
                yield file, about


def footer_of(file: str) -> "pq.FileMetaData":
    """The footer of a Parquet file.

    Raises:
        ValueError: The file cannot be read.
    """
    import pyarrow.parquet as pq
    from datasets.utils.file_utils import xopen

    try:
        with xopen(file, "rb") as opened:
            return pq.read_metadata(opened)
    except Exception as error:  # of huggingface_hub, fsspec, pyarrow
        raise ValueError(f"data.hub_id: {file} cannot be read ({reason_of(error)})") from error
