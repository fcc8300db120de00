"""A contact sheet: one row per image, with its views beside it."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from fg_ssl_zoo.config import printable

GAP, CAPTION = 4, 16
"""Pixels between cells, and the height of a caption."""

_PAPER, _INK = 255, (40, 40, 40)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] | None = None,
    cell: int = 128,
    titles: Sequence[str] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Images in a grid on white.

    Args:
        rows: Images (h, w, 3) or grey (h, w), uint8, of any size; rows may differ in length.
        captions: One above each row; what is too long is cut.
        cell: Side of the square that an image is fitted into, in pixels.
        titles: One above each column, in as many lines of whole words as it needs; a single word
            that is too long is cut.

    Raises:
        ValueError: Captions or titles do not match rows or columns.
    """
    if captions is not None and len(captions) != len(rows):
        raise ValueError(f"captions: {len(captions)} for {len(rows)} rows")
    head = CAPTION if captions else 0
    num_columns = max((len(row) for row in rows), default=0)
    if titles is not None and len(titles) != num_columns:
        raise ValueError(f"titles: {len(titles)} for {num_columns} columns")
    lines = [_wrapped(title, cell) for title in titles or ()]
    above = CAPTION * max(map(len, lines), default=0)
    height = above + GAP + len(rows) * (head + cell + GAP)
    sheet = np.full((height, GAP + num_columns * (cell + GAP), 3), _PAPER, np.uint8)
    for j, column in enumerate(lines):
        left = GAP + j * (cell + GAP)
        for k, line in enumerate(column):
            baseline = GAP + above - CAPTION * (len(column) - k) + CAPTION - 5
            _write(sheet, line, baseline, left, cell)
    for i, row in enumerate(rows):
        top = above + GAP + i * (head + cell + GAP)
        if captions:
            _write(sheet, captions[i], top + CAPTION - 5, GAP, sheet.shape[1] - 2 * GAP)
        for j, picture in enumerate(row):
            left = GAP + j * (cell + GAP)
            sheet[top + head : top + head + cell, left : left + cell] = _fit(picture, cell)
    return sheet


def save_png(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write an RGB image; folders on the way are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    path.write_bytes(encoded.tobytes())


def _fit(picture: np.ndarray, cell: int) -> UInt8[np.ndarray, "s s 3"]:
    """The image in the middle of a white square, in its own proportions."""
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    height, width = picture.shape[:2]
    scale = cell / max(height, width)
    h, w = max(round(height * scale), 1), max(round(width * scale), 1)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    square = np.full((cell, cell, 3), _PAPER, np.uint8)
    y, x = (cell - h) // 2, (cell - w) // 2
    square[y : y + h, x : x + w] = cv2.resize(picture, (w, h), interpolation=how)
    return square


def _width(text: str) -> int:
    """Pixels of a line."""
    return cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]


def _wrapped(text: str, room: int) -> list[str]:
    """The words of a text in lines of `room` pixels at most, but for a word longer than that."""
    lines: list[str] = []
    for word in printable(text).split():
        if lines and _width(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _write(sheet: np.ndarray, text: str, baseline: int, left: int, room: int) -> None:
    """One line of text, cut to `room` pixels."""
    text = printable(text)  # OpenCV ends the process on half of a surrogate pair
    if _width(text) > room:
        while text and _width(text + "...") > room:
            text = text[:-1]
        text += "..."
    cv2.putText(sheet, text, (left, baseline), _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
