"""Images from Hugging Face `datasets`: of the Hub, or a local folder that `load_dataset` opens.

    load_dataset(id) -> rows of encoded bytes -> `decode`, the same as for files

With `streaming`, nothing is copied to the disk: Parquet files are read in place (`parquet_rows`).
Of other formats, the first `num_images` rows are kept encoded in memory. An id may name a
configuration, `OWNER/NAME:CONFIGURATION`. `datasets` is imported at first use.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fg_ssl_zoo.config import Data, home_path, printable
from fg_ssl_zoo.data.catalog import Entry, find_entry
from fg_ssl_zoo.data.decode import EncodedImages
from fg_ssl_zoo.data.listing import absent, files_with, folders_in, has_pictures
from fg_ssl_zoo.data.order import Group, groups_of
from fg_ssl_zoo.data.parquet_rows import BUFFER, NO_IMAGE, ParquetRows, footer_of
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.data.splits import (
    NO_TEST,
    class_numbers,
    find_test,
    find_train,
    is_split,
    tell_columns,
    tell_unused,
)

if TYPE_CHECKING:
    import datasets

IMAGE_COLUMNS, LABEL_COLUMNS = ("image", "img", "jpg", "png"), ("label", "labels", "fine_label")
"""Columns that are tried when `data.columns` does not name them."""

_SAVED = ("dataset_dict.json", "state.json")
"""What `save_to_disk` writes."""

_log = logging.getLogger(__name__)


class HubImages(EncodedImages):
    """Rows of one split.

    Args:
        rows: One `{"bytes": ..., "path": ...}` per image, from Parquet files, an Arrow table or a
            list; `None` for a row without an image.
        where: Data set and split, for errors.
        name: Name of the data set.
        classes: Class names in the order of the labels.
        labels: Class number of every row.
        state: Text that changes when the rows change; empty if unknown.
    """

    def __init__(
        self,
        rows: "Sequence[Mapping[str, Any] | None] | datasets.Column",
        where: str,
        *,
        name: str,
        classes: Sequence[str] = (),
        labels: np.ndarray | None = None,
        state: str = "",
    ) -> None:
        self.rows, self.where, self.name = rows, where, name
        self.classes, self.labels, self.state = list(classes), labels, state

    def __len__(self) -> int:
        return len(self.rows)

    def encoded(self, index: int) -> bytes:
        """The image file of a row.

        Raises:
            CorruptImage: The row has none, or it lies in a file that cannot be read.
        """
        return self.file_of(index)[0]

    def name_of(self, index: int) -> str:
        """The set's name and the number of the row."""
        return f"{self.name}[{index}]"

    def stat_of(self, index: int) -> None:
        """Rows have no time of change, see `HasFiles`."""

    def file_of(self, index: int) -> tuple[bytes, str]:
        """The image file; data set, split, row, and the path that the row gives.

        The row is read once: that takes as long as to decode a small image.
        """
        row = self._row(index)
        name = f"{self.where} row {index}" + (f" ({row['path']})" if row["path"] else "")
        return _encoded(row, name), name

    def checked(self, index: int) -> bytes:
        """The encoded image; for Parquet files, a hash that identifies them, see `HasFiles`."""
        if isinstance(self.rows, ParquetRows):
            return self.rows.state.encode()
        return self.encoded(index)

    @property
    def groups(self) -> list[Group]:
        """The row groups of Parquet files, else one group of all rows; see `Order`."""
        return groups_of(self.rows)

    @property
    def identity(self) -> str:
        """The source of the rows, and the sizes in bytes of up to 32 images."""
        if isinstance(self.rows, ParquetRows):
            return f"{self.where} {self.rows.state}"
        some = np.linspace(0, len(self) - 1, min(len(self), 32)).astype(int)
        return f"{self.where} {[len(self._row(int(i))['bytes'] or b'') for i in some]}"

    def _row(self, index: int) -> Mapping[str, Any]:
        try:
            return self.rows[index] or NO_IMAGE
        except CorruptImage as error:  # of the file; each row is an unreadable image of its own
            raise CorruptImage(f"{self.where} row {index}: {error}") from error


def _encoded(row: Mapping[str, Any], where: str) -> bytes:
    if row["bytes"] is not None:
        return row["bytes"]
    if not row["path"]:
        raise CorruptImage(f"{where} has no image")
    try:
        return Path(row["path"]).read_bytes()
    except OSError as error:
        raise CorruptImage(f"{where}: cannot be read ({error.strerror})") from None


# --------------------------------------------------------------------------- loading


def load_hub(data: Data) -> tuple[HubImages, HubImages | None]:
    """Training and test images of `data.hub_id`, or of the catalogue's `data.name`.

    Raises:
        ValueError: Unknown name, or a data set, split or column that is not there.
    """
    entry = Entry("", "", "", data.hub_id, {}) if data.hub_id else find_entry(data.name)
    if entry.hub_id is None:
        raise ValueError(
            f"data.name: {data.name} is not on the Hub; download it from {entry.homepage}, "
            f"unpack it, and give data.path=FOLDER"
        )
    splits = _open(entry.hub_id, data.streaming, entry.homepage)
    columns = {**entry.columns, **data.columns}
    train_name = entry.train_split if data.train_split == "train" else data.train_split
    if train_name == "train":
        train_name = find_train(list(splits), train_name, entry.hub_id) or train_name
    test_name = entry.test_split if data.test_split == "test" else data.test_split
    if test_name == "test":
        test_name = find_test(list(splits), test_name, entry.hub_id) or NO_TEST
    rows = _select(splits, train_name, "data.train_split", entry.hub_id)
    train = _images(data, entry.hub_id, train_name, rows, columns)
    test = None
    if test_name != NO_TEST:
        rows = _select(splits, test_name, "data.test_split", entry.hub_id)
        test = _images(data, entry.hub_id, test_name, rows, columns, train)
    used = {*train_name.split("+"), *test_name.split("+")}
    tell_unused(entry.hub_id, [name for name in splits if name not in used])
    return train, test


def is_data_set(path: Path) -> bool | None:
    """`True` for a folder of Parquet files, `False` for one that `save_to_disk` wrote, else `None`.

    The Parquet files lie in the folder, in its folder `data`, or in a folder for each split.

    Raises:
        ValueError: The path is a single file of such a data set.
    """
    if path.suffix.lower() in (".parquet", ".arrow") and not os.path.isdir(path):
        if not os.path.exists(path):
            raise absent(str(path), "file")
        raise ValueError(
            f"data.path: {printable(path)} is one file of a data set; give its folder, "
            f"{printable(path.parent)}"
        )
    if not os.path.isdir(path):
        return None
    if _is_saved(path):
        return False
    folders = [path / name for name in folders_in(path) if name == "data" or is_split(name)]
    found = any(files_with(folder, ".parquet") for folder in (path, *folders))
    return True if found and not has_pictures(path) else None


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in _SAVED)


def _open(hub_id: str, streaming: bool, homepage: str) -> Mapping[Any, Any]:
    """All splits of a data set by name."""
    import datasets

    if hub_id.startswith("~"):
        hub_id = str(home_path(hub_id))
    try:
        if _is_saved(Path(hub_id)):
            saved = datasets.load_from_disk(hub_id)
            return saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        repository, configuration = _repository(hub_id)
        return datasets.load_dataset(repository, configuration, streaming=streaming)
    except Exception as error:  # of datasets, huggingface_hub, httpx, pyarrow
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        hint = f"; or download it from {homepage} and give data.path=FOLDER" if homepage else ""
        raise ValueError(f"data.hub_id: {hub_id} cannot be loaded: {reason}{hint}") from error


def _repository(hub_id: str) -> tuple[str, str | None]:
    """Repository or folder, and configuration."""
    if Path(hub_id).is_dir():
        return hub_id, None
    repository, _, configuration = hub_id.partition(":")
    return repository, configuration or None


def _select(splits: Mapping[Any, Any], wanted: str, key: str, hub_id: str) -> Any:
    """Rows of a split, or of several joined by `+`."""
    import datasets

    missing = [name for name in wanted.split("+") if name not in splits]
    if missing:
        raise ValueError(
            f"{key}: {hub_id} has no split '{missing[0]}'; there are {', '.join(splits)}"
        )
    try:
        rows = datasets.concatenate_datasets([splits[name] for name in wanted.split("+")])
    except ValueError as error:  # other columns, or other class names
        raise ValueError(f"{key}: the splits {wanted} of {hub_id} do not fit ({error})") from None
    return rows if rows.features else rows._resolve_features()  # a stream may not know them yet


def _images(
    data: Data,
    hub_id: str,
    split: str,
    rows: Any,
    columns: Mapping[str, str],
    train: HubImages | None = None,
) -> HubImages:
    """Images of a split; the test split takes over the classes of `train`."""
    import datasets

    image, label = _find_columns(rows, columns, hub_id)
    rows = rows.select_columns([image, label] if label else [image])
    rows = rows.cast_column(image, datasets.Image(decode=False))
    feature = rows.features[label] if label else None
    state = ""
    if data.streaming and (files := _parquet_files(hub_id, split)):
        buffer = BUFFER if data.shuffle_buffer == "auto" else data.shuffle_buffer
        pictures = ParquetRows(files, image, data.num_images, buffer)
        values, state = pictures.column(label) if label else None, pictures.state
    elif data.streaming:
        if data.num_images is None:
            raise ValueError(
                f"data.streaming: {hub_id} has no Parquet files, so its rows are read into memory; "
                "say how many with data.num_images"
            )
        pictures, values = _read(rows, image, label, data.num_images)
    else:
        pictures, values = rows[image], rows[label][:] if label else None
        state = rows._fingerprint  # of datasets: follows files and contents
    known = train.classes if train else None
    where = f"{hub_id}[{split}]"
    if not len(pictures):
        raise ValueError(f"data: {where} has no rows; each split needs at least one")
    names = getattr(feature, "names", None)
    if names and label:
        names = _names_in_files(hub_id, split, label) or names
    classes, labels = (
        class_numbers(values, names, known, f"{where}.{label}")
        if values is not None
        else ([], None)
    )
    return HubImages(pictures, where, name=data.name, classes=classes, labels=labels, state=state)


def _names_in_files(hub_id: str, split: str, label: str) -> list[str] | None:
    """Class names as the first parquet file of a split gives them; `None` where none does.

    `datasets` reads every split under the names of the first one, whatever their files say.

    Raises:
        ValueError: A file cannot be read, or joined splits have different orders.
    """
    per_split = [_names_in_file(files, label) for files in _data_files(hub_id, split)]
    orders = list(dict.fromkeys(tuple(names) for names in per_split if names))
    if len(orders) > 1:
        raise ValueError(
            f"data: the splits {split} of {hub_id} name their classes in different orders; "
            "take one of them"
        )
    return list(orders[0]) if orders else None


def _names_in_file(files: Sequence[str], label: str) -> list[str] | None:
    """Class names in the first parquet file among these."""
    import datasets

    first = next((file for file in files if file.endswith(".parquet")), None)
    if first is None:
        return None
    schema = footer_of(first).schema.to_arrow_schema()
    return getattr(datasets.Features.from_arrow_schema(schema).get(label), "names", None)


def _parquet_files(hub_id: str, split: str) -> list[str]:
    """The files of a split, or of several joined by `+`; empty if one is not a Parquet file."""
    files = [file for files in _data_files(hub_id, split) for file in files]
    return files if all(file.endswith(".parquet") for file in files) else []


def _data_files(hub_id: str, split: str) -> list[list[str]]:
    """Paths or addresses of the files of each split of `A+B`; none if `save_to_disk` wrote them."""
    import datasets

    if _is_saved(Path(hub_id)):
        return []
    by_split = datasets.load_dataset_builder(*_repository(hub_id)).config.data_files or {}
    return [[str(file) for file in by_split.get(name) or ()] for name in split.split("+")]


def _read(
    rows: "datasets.IterableDataset", image: str, label: str | None, count: int
) -> tuple[list[dict[str, Any] | None], list[Any] | None]:
    """The first rows of a stream, in memory."""
    from datasets.utils.file_utils import xopen

    pictures, labels = [], []
    for row in rows.take(count):
        picture = row[image]
        if picture and picture["bytes"] is None and picture["path"]:
            with xopen(picture["path"], "rb") as file:
                picture = {**picture, "bytes": file.read()}
        pictures.append(picture)
        labels.append(row[label] if label else None)
    return pictures, labels if label else None


def _find_columns(rows: Any, wanted: Mapping[str, str], hub_id: str) -> tuple[str, str | None]:
    """Names of the image and the label column."""
    import datasets

    unknown = wanted.keys() - {"image", "label"}
    if unknown:
        raise ValueError(f"data.columns: unknown key '{min(unknown)}'; image and label are known")
    there: Mapping[str, Any] = rows.features or {}
    listed = ", ".join(f"{name} ({_kind(feature)})" for name, feature in there.items())
    for key, column in wanted.items():
        if column not in there:
            raise ValueError(f"data.columns.{key}: {hub_id} has no column '{column}', but {listed}")
    image = wanted.get("image") or _guess(there, IMAGE_COLUMNS, datasets.Image)
    if image is None:
        raise ValueError(f"data.columns.image: which of {listed} of {hub_id} is the image?")
    label = wanted.get("label") or _guess(there, LABEL_COLUMNS, datasets.ClassLabel)
    if not _holds_images(there[image]):
        raise ValueError(
            f"data.columns.image: column '{image}' of {hub_id} holds no images; its columns: "
            f"{listed}"
        )
    if label is None:
        tell_columns(hub_id, listed)
    return image, label


def _guess(there: Mapping[str, Any], names: Sequence[str], kind: type) -> str | None:
    """A usual name, or the only column of a kind."""
    named = [name for name in names if name in there]
    fitting = [name for name, feature in there.items() if isinstance(feature, kind)]
    return named[0] if named else fitting[0] if len(fitting) == 1 else None


def _holds_images(feature: Any) -> bool:
    """Whether a column holds encoded images, their paths, or both."""
    import datasets

    if isinstance(feature, Mapping):
        return feature.keys() >= {"bytes", "path"}
    if isinstance(feature, datasets.Value):  # null: no row has an image, or there is no row
        return feature.dtype in ("binary", "large_binary", "string", "large_string", "null")
    return isinstance(feature, datasets.Image)


def _kind(feature: Any) -> str:
    kind = type(feature).__name__
    return feature.dtype if kind == "Value" else kind
