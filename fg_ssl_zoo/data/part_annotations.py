"""Keypoints and part masks that lie beside images.

    ROOT/parts.csv        file, PART_x, PART_y (0..1 of the image), PART_visible (0/1), ...
    ROOT/parts.json       {"0": "background", "1": "beak", ...}
    ROOT/masks/PATH.png   one part number per pixel, named and sized like ROOT/PATH.jpg
    ROOT/masks/PART/PATH.png   instead, where parts overlap: a mask of each part, 0 outside of it

What is not there is left out of the samples.
"""

import csv
import json
import logging
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from fg_ssl_zoo.config import printable, reason_of
from fg_ssl_zoo.data.decode import opened
from fg_ssl_zoo.data.sample import WrongMask

_log = logging.getLogger(__name__)


@dataclass
class Points:
    """Keypoints of many images.

    Attributes:
        names: Names of the k keypoints.
        rows: (n, k, 3) x, y, visible.
        pixels: Whether x and y are pixels; else they are shares of the image.
    """

    names: list[str]
    rows: Float32[np.ndarray, "n k 3"]
    pixels: bool = False

    def of(self, index: int, height: int, width: int) -> Float32[np.ndarray, "k 3"]:
        """Shares x and y in 0..1 of a (height, width) image, and visible."""
        row = self.rows[index].copy()
        if self.pixels:
            row[:, :2] /= (width, height)
        return row


def read_points(root: Path, paths: Sequence[str]) -> Points | None:
    """Keypoints of `ROOT/parts.csv` in the order of the paths; without a row, all are invisible.

    The separator is the comma, the semicolon or the tab. Bytes that are no UTF-8 are kept, as in
    the names of files; a name is also found in its other Unicode form (NFC, NFD).

    Raises:
        ValueError: No `file` column or no keypoint, a column that is there twice, a row that lacks
            values or has too many, an image that is listed twice with other keypoints, a value that
            is no number, or a visible keypoint outside of the image; the message names the line.
    """
    file = root / "parts.csv"
    if not file.is_file():
        return None
    wanted = {unicodedata.normalize("NFC", path) for path in paths}
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines, delimiter=separator(lines))
            names = _keypoints_of(file, reader.fieldnames or [])
            found: dict[str, np.ndarray] = {}
            for row in reader:
                name = unicodedata.normalize("NFC", row["file"] or "")
                if name in wanted:
                    points = _point_row(file, reader.line_num, row, names)
                    if not np.array_equal(found.setdefault(name, points), points):
                        raise ValueError(
                            f"{printable(file)}, line {reader.line_num}: {printable(name)} is "
                            "listed before with other keypoints; keep one of the lines"
                        )
    except csv.Error as error:
        raise ValueError(f"{printable(file)} is no CSV file ({error})") from None
    nothing = np.zeros((len(names), 3), np.float32)
    rows = [found.get(unicodedata.normalize("NFC", path)) for path in paths]
    missing = sum(row is None for row in rows)
    if missing:
        _log.warning("%s has no row for %d of %d images", printable(file), missing, len(paths))
    return Points(names, np.stack([nothing if row is None else row for row in rows]))


def separator(lines: TextIO) -> str:
    """What separates the columns of the first line, which is read again."""
    first = lines.readline()
    lines.seek(0)
    return max(",;\t", key=first.count)


def _keypoints_of(file: Path, columns: Sequence[str]) -> list[str]:
    """Names of the keypoints.

    Raises:
        ValueError: There are none, or images are not named.
    """
    named = [column for column in columns if column.strip()]
    twice = next((column for column in named if named.count(column) > 1), None)
    if twice is not None:
        raise ValueError(f"{printable(file)} has two columns {printable(twice)}; remove one")
    names = [column.removesuffix("_visible") for column in columns if column.endswith("_visible")]
    lacking = [column for name in names for column in _columns_of(name)]
    lacking = [column for column in ("file", *lacking) if column not in columns]
    if lacking or not names:
        what = f"has no column {printable(lacking[0])}" if lacking else "names no keypoint"
        raise ValueError(
            f"{printable(file)} {what}; its first line is file,NAME_x,NAME_y,NAME_visible,... and "
            f"not {printable(','.join(columns))[:80]}"
        )
    return names


def _columns_of(keypoint: str) -> tuple[str, str, str]:
    return f"{keypoint}_x", f"{keypoint}_y", f"{keypoint}_visible"


def _point_row(
    file: Path, line: int, row: dict[Any, Any], names: Sequence[str]
) -> Float32[np.ndarray, "k 3"]:
    lacking = [column for name in names for column in _columns_of(name) if row[column] is None]
    if lacking:  # as csv.DictReader marks a row that is too short
        raise ValueError(
            f"{printable(file)}, line {line}: no value of {printable(lacking[0])}; the row is "
            "shorter than the first line"
        )
    if surplus := [value for value in row.get(None) or () if value.strip()]:
        raise ValueError(
            f"{printable(file)}, line {line}: '{printable(surplus[0])}' stands behind the last "
            "column; is a separator in the row that belongs to a value?"
        )
    points = np.zeros((len(names), 3), np.float32)
    name = ""
    try:
        for point, name in zip(points, names, strict=True):
            x, y, visible = (row[column] for column in _columns_of(name))
            if int(visible or 0):
                point[:] = float(x), float(y), 1
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{printable(file)}, line {line}: {printable(name)} needs _x, _y, _visible ({error})"
        ) from None
    outside = ~((points[:, :2] >= 0) & (points[:, :2] <= 1)).all(axis=1)  # NaN is nowhere inside
    if outside.any():
        first = int(outside.argmax())
        x, y = points[first, :2].tolist()
        raise ValueError(
            f"{printable(file)}, line {line}: {printable(names[first])} at x {x:g}, y {y:g} is "
            "outside of the image; visible keypoints are shares of it, 0 to 1"
        )
    return points


@dataclass
class PartMasks:
    """Part masks of many images.

    Attributes:
        names: Names of the values 1, 2, ...
        folder: Where the masks lie, under the paths of the images.
        overlapping: Whether each part has masks of its own, in a folder of its name.
    """

    names: list[str]
    folder: str
    overlapping: bool = False

    def files(self, path: str) -> list[str]:
        """The mask of an image, or one for each part."""
        if self.overlapping:
            return [_mask_file(os.path.join(self.folder, name), path) for name in self.names]
        return [_mask_file(self.folder, path)]

    def of(
        self, path: str, height: int, width: int
    ) -> UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "p h w"]:
        """The mask of a (height, width) image, or the maps of its overlapping parts.

        Raises:
            WrongMask: It cannot be read, or has another size.
        """
        masks = [_read_mask(file, height, width) for file in self.files(path)]
        return np.stack(masks) > 0 if self.overlapping else masks[0]


def _read_mask(file: str, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    try:
        with opened(file) as image:  # by Pillow: OpenCV would turn a palette into colours
            if image.size != (width, height):  # before its pixels take memory
                raise ValueError(f"{image.size[::-1]}; the image needs uint8 {(height, width)}")
            mask = np.array(image)
    except Exception as error:  # Pillow's plugins raise all kinds
        raise WrongMask(f"{file}: {reason_of(error)}") from None
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise WrongMask(
            f"{file}: {mask.dtype} {mask.shape}; the image needs uint8 {(height, width)}"
        )
    return mask


def read_part_masks(root: Path, paths: Sequence[str]) -> PartMasks | None:
    """The masks of `ROOT/parts.json` and `ROOT/masks`, if both are there.

    Raises:
        ValueError: `parts.json` is no table of names, or an image has no mask.
    """
    table, folder = root / "parts.json", str(root / "masks")
    if not table.is_file() or not os.path.isdir(folder):
        return None
    try:
        values = {
            int(value): str(name) for value, name in json.loads(table.read_text("utf-8")).items()
        }
    except (ValueError, AttributeError) as error:
        raise ValueError(f'{table}: {{"0": "background", "1": NAME}} is needed ({error})') from None
    names = [values.get(i, f"part{i}") for i in range(1, max(values) + 1)]
    overlapping = all(os.path.isdir(os.path.join(folder, name)) for name in names)
    masks = PartMasks(names, folder, overlapping)
    refuse_missing_masks(masks, paths)
    return masks


def refuse_missing_masks(masks: PartMasks, paths: Sequence[str]) -> None:
    """Every image needs its mask.

    Raises:
        ValueError: Some have none; says how many and names one.
    """
    missing = [
        next(file for file in masks.files(path) if not os.path.isfile(file))
        for path in paths
        if not all(map(os.path.isfile, masks.files(path)))
    ]
    if missing:
        raise ValueError(
            f"{masks.folder}: {len(missing)} of {len(paths)} images have no mask, as {missing[0]}"
        )


def _mask_file(folder: str, path: str) -> str:
    return os.path.join(folder, os.path.splitext(path)[0] + ".png")
