"""Shared code of the verbs of `fgssl`: adding a verb, common arguments, and CSV files."""

import argparse
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fg_ssl_zoo.config import escaped, write_whole

MODEL = (
    "a run or exported folder, hf-hub:OWNER/NAME, a timm or fgssl name, ARCHITECTURE@scratch, "
    "ARCHITECTURE@FILE.safetensors"
)
DATA = (
    "a folder, a .csv or .tar file or a name (fgssl data list), and key=value such as "
    "num_images=500"
)


def add_verb(verbs: Any, name: str, description: str) -> argparse.ArgumentParser:
    """Add a verb; shell completion shows the first sentence of its description."""
    first = description.partition(". ")[0].removesuffix(".")
    return verbs.add_parser(name, help=first[0].lower() + first[1:], description=description)


def add_model_and_data(parser: argparse.ArgumentParser) -> None:
    """Add `MODEL` and `--data`."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--data", nargs="+", required=True, metavar="DATA", help=DATA)


def add_image_size(parser: argparse.ArgumentParser, default: str = "that of the model") -> None:
    """Add `--image-size`."""
    parser.add_argument("--image-size", type=int, help=f"input size in pixels (default: {default})")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add `--cache`."""
    parser.add_argument(
        "--cache", type=Path, help="folder of cached features (default: the Hugging Face cache)"
    )


def count(text: str) -> int:
    """The type of an argument that is a number of things: 1, 2, 3, ..."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, whole or not at all; text is `escaped`. Makes its folder.

    Args:
        path: The file.
        rows: The titles first.
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows(
        [escaped(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.getvalue())
