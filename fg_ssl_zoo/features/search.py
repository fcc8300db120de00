"""Search the nearest images in an embedding file, which is read part by part."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.identity import differing, identity
from fg_ssl_zoo.config import unescaped
from fg_ssl_zoo.data.decode import decode
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.features.embedding_file import EmbeddingFile
from fg_ssl_zoo.ops.neighbours import unit_rows


@dataclass(frozen=True)
class Hit:
    """One neighbour.

    Attributes:
        similarity: Cosine similarity.
        row: Row in the index.
        file: Name in the index.
        split: Split of the data set.
        class_name: Its class; `None` without labels.
    """

    similarity: float
    row: int
    file: str
    split: str
    class_name: str | None


def check_same_model(index: EmbeddingFile, backbone: Backbone, model: str) -> None:
    """Refuse an index of another model.

    Raises:
        ValueError: The model differs; the message names the differences.
    """
    if changed := differing(index.about, identity(backbone)):
        raise ValueError(
            f"{index.path} was made with {index.about['model']}, not with {model}: they differ in "
            f"{', '.join(changed[:3])}; search with that model, or embed again"
        )


def search(
    index: EmbeddingFile, queries: Float32[np.ndarray, "q d"], k: int = 8
) -> list[list[Hit]]:
    """The `k` nearest rows of each query by cosine similarity, nearest first; ties by row.

    One part of the index is in memory at a time.
    """
    wanted = unit_rows(queries)
    best: list[list[Hit]] = [[] for _ in queries]
    start = 0
    for rows, columns in index.chunks():
        similarity = wanted @ unit_rows(rows).T  # (q, n)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        names = columns.to_pydict()
        for number, hits in enumerate(best):
            found = [
                Hit(
                    float(similarity[number, row]),
                    start + int(row),
                    unescaped(names["file"][row]),
                    names["split"][row],
                    _class_of(names, int(row)),
                )
                for row in order[number]
            ]
            hits[:] = sorted([*hits, *found], key=lambda hit: (-hit.similarity, hit.row))[:k]
        start += len(rows)
    return best


def _class_of(columns: dict[str, list[Any]], row: int) -> str | None:
    name = columns["class"][row] if "class" in columns else None
    return None if name is None else unescaped(name)


def picture_of(index: EmbeddingFile, hit: Hit) -> np.ndarray | None:
    """The image of a hit, if its file exists and is readable."""
    root = index.about["root"].get(hit.split)
    if root is None:
        return None
    path = Path(root) / hit.file
    try:
        return decode(path.read_bytes(), str(path))
    except (OSError, CorruptImage):
        return None


def sheet_rows(
    index: EmbeddingFile, queries: Sequence[np.ndarray], hits: Sequence[Sequence[Hit]]
) -> tuple[list[list[np.ndarray]], int]:
    """Rows of a contact sheet, each starting with its query; and the number of missing images.

    A missing image is white.

    Raises:
        ValueError: All images are missing.
    """
    rows, missing = [], 0
    for query, found in zip(queries, hits, strict=True):
        pictures = [picture_of(index, hit) for hit in found]
        missing += sum(picture is None for picture in pictures)
        blank = np.full((8, 8, 3), 255, np.uint8)
        rows.append([query, *(blank if p is None else p for p in pictures)])
    if missing == sum(map(len, hits)):
        where = ", ".join(str(root) for root in index.about["root"].values() if root)
        raise ValueError(
            f"--out: none of the images is in {where}"
            if where
            else f"--out: the images of {index.path} are not files"
        )
    return rows, missing
