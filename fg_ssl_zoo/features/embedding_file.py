"""Files of embeddings: one row per image, and JSON metadata.

    .parquet       a row group for each part; columns file, split, index, label, class, embedding
    .npz           arrays of these names and `about`; np.load(path, allow_pickle=False) opens it
    .safetensors   tensors of these names; texts are UTF-8 bytes, separated by zeros

Names of files and classes are stored as UTF-8; `config.unescaped` restores names with other bytes.
`label` and `class` exist if any image is labelled; an unlabelled image has null, in arrays -1 and
"". Parquet is written and read part by part, in constant memory. The other formats hold all rows in
one array. Writing collects it in a memory-mapped file, so only reading needs that memory.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32
from safetensors.numpy import save_file

from fg_ssl_zoo.config import escaped, naming

SUFFIXES = (".parquet", ".npz", ".safetensors")
KEY = "fg_ssl_zoo"
"""Key of the JSON in the file's metadata."""

FORMAT = "fg_ssl_zoo embeddings, 1"


class EmbeddingFile:
    """A .parquet file of embeddings, read in chunks.

    Attributes:
        path: The file.
        about: Its metadata: model, weights, data, input.
        num_rows: Number of images.

    Raises:
        ValueError: The file does not exist, is of another kind, or has no rows.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(
                f"there is no file {path}; `fgssl embed MODEL --data DATA --out {path}` makes it"
            )
        self.path, about = path, read_about(path)
        if about is None or path.suffix != ".parquet":
            raise ValueError(f"{path} is not a .parquet file of `fgssl embed`")
        self.about = about
        self.num_rows = pq.read_metadata(path).num_rows
        if self.num_rows == 0:
            raise ValueError(f"{path} holds no images")

    def chunks(self) -> Iterator[tuple[Float32[np.ndarray, "n d"], pa.Table]]:
        """Embeddings and the other columns, one row group at a time."""
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                yield embeddings_of(table), table.drop_columns(["embedding"])


def read_about(path: Path) -> dict[str, Any] | None:
    """The metadata of an embedding file of any suffix; `None` if it is another file."""
    try:
        if path.suffix == ".parquet":
            text = (pq.read_schema(path).metadata or {})[KEY.encode()]
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                text = str(arrays["about"])
        else:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            text = header["__metadata__"][KEY]
        about = json.loads(text)
    except (OSError, ValueError, KeyError, MemoryError, OverflowError, zipfile.BadZipFile):
        return None  # includes pyarrow's errors
    return about if isinstance(about, dict) and about.get("format") == FORMAT else None


# --------------------------------------------------------------------------- parts


def part_table(
    embeddings: Float32[np.ndarray, "n d"],
    *,
    files: Sequence[str],
    split: str,
    indices: np.ndarray,
    labels: np.ndarray | None,
    classes: Sequence[str],
    labelled: bool,
) -> pa.Table:
    """The rows of one part.

    Args:
        embeddings: A row for each image.
        files: Names of the images.
        split: Name of their split.
        indices: Numbers of the images in the split.
        labels: Labels of these images, if they have any.
        classes: Class names in the order of the labels.
        labelled: Whether any image of the file has a label, since all parts have the same columns.
    """
    count, width = embeddings.shape
    columns: dict[str, Any] = {
        "file": pa.array([escaped(file) for file in files], pa.string()),
        "split": pa.array([split] * count, pa.string()),
        "index": pa.array(indices, pa.int64()),
    }
    if labelled:
        numbers = [None] * count if labels is None else labels.tolist()
        lines = [escaped(name) for name in classes]
        names = [None if number is None else lines[number] for number in numbers]
        columns |= {"label": pa.array(numbers, pa.int64()), "class": pa.array(names, pa.string())}
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1), pa.float32())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.table(columns)


def embeddings_of(table: pa.Table) -> Float32[np.ndarray, "n d"]:
    """The `embedding` column as a matrix."""
    column = table["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(table), column.type.list_size)


def write_table(path: Path, table: pa.Table, about: dict[str, Any]) -> None:
    """Write a .parquet file under a temporary name, then rename it."""
    with_json = table.replace_schema_metadata({KEY: json.dumps(about)})
    part = temporary(path)
    pq.write_table(with_json, part, compression="none", use_dictionary=False)
    part.replace(path)


def temporary(path: Path) -> Path:
    """Name of a file until it is complete; hidden, and different for each process."""
    return path.with_name(f".{path.name}.{os.getpid()}")


# --------------------------------------------------------------------------- the whole file


def merge(parts: Sequence[Path], out: Path, about: dict[str, Any]) -> None:
    """Join parts into a file of the format given by the suffix; it is renamed when complete."""
    filled = [part for part in parts if pq.read_metadata(part).num_rows]
    written = temporary(out)
    try:
        if out.suffix == ".parquet":
            _merge_parquet(filled, written, about)
        else:
            _merge_arrays(filled, out.suffix, written, about)
        written.replace(out)
    finally:
        written.unlink(missing_ok=True)


def _merge_parquet(parts: Sequence[Path], path: Path, about: dict[str, Any]) -> None:
    schema = pq.read_schema(parts[0]).with_metadata({KEY: json.dumps(about)})
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))


def _merge_arrays(parts: Sequence[Path], suffix: str, path: Path, about: dict[str, Any]) -> None:
    gathered = parts[0].parent / ".embedding.npy"
    shape = (sum(pq.read_metadata(part).num_rows for part in parts), about["num_features"])
    embeddings = np.lib.format.open_memmap(gathered, "w+", np.float32, shape)
    columns: dict[str, list[Any]] = {}
    start = 0
    for part in parts:
        table = pq.read_table(part)
        embeddings[start : start + len(table)] = embeddings_of(table)
        start += len(table)
        for name in table.column_names[:-1]:
            columns.setdefault(name, []).extend(table[name].to_pylist())
    embeddings.flush()
    text = json.dumps(about)
    if suffix == ".npz":
        _write_npz(path, gathered, {**_arrays(columns), "about": np.array(text)})
    else:
        tensors = {name: _as_numbers(array) for name, array in _arrays(columns).items()}
        with naming(path):
            save_file({"embedding": embeddings, **tensors}, path, metadata={KEY: text})
    gathered.unlink()


def _arrays(columns: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Numbers as int64, texts as str; null becomes -1 or ""."""
    numbers = ("index", "label")
    return {
        name: np.array([-1 if v is None else v for v in values], np.int64)
        if name in numbers
        else np.array(["" if v is None else v for v in values], np.str_)
        for name, values in columns.items()
    }


def _as_numbers(array: np.ndarray) -> np.ndarray:
    """Texts as UTF-8 bytes, separated by zeros."""
    if array.dtype == np.int64:
        return array
    return np.frombuffer("\0".join(array.tolist()).encode(), np.uint8)


def _write_npz(path: Path, embeddings: Path, arrays: dict[str, np.ndarray]) -> None:
    """Like `np.savez`, but without loading the embeddings, and without timestamps."""
    with zipfile.ZipFile(path, "w") as file:
        with (
            file.open(zipfile.ZipInfo("embedding.npy"), "w", force_zip64=True) as entry,
            embeddings.open("rb") as content,
        ):
            shutil.copyfileobj(content, entry, 1 << 20)
        for name, array in arrays.items():
            with file.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def part_about(part: Path) -> dict[str, Any]:
    """The metadata of a part: rows, skipped images, and the state of its images."""
    return json.loads(pq.read_schema(part).metadata[KEY.encode()])


def write_part_of(whole: Path, number: int, path: Path) -> None:
    """Write one part of a complete .parquet file as a separate file, as before merging.

    A part without rows has no row group in the complete file.
    """
    about = read_about(whole)
    assert about is not None
    with pq.ParquetFile(whole) as file:
        group = sum(found["rows"] > 0 for found in about["parts"][:number])
        has_rows = about["parts"][number]["rows"] > 0
        table = file.read_row_group(group) if has_rows else file.schema_arrow.empty_table()
    write_table(path, table, about["parts"][number])
