"""Folders that the zoo's trainings read: a validation part of train, and a mixture of sets.

    python benchmarks/zoo_data.py validation cub100 cub100_val     # cub100/train split by class
    python benchmarks/zoo_data.py mixture mix cub100 cars food10   # mix/train/SET/...

The validation part is one in five images of each class of `train/`, drawn with seed 0; options of
a release are chosen on it and never on `test/`. Keypoints (`parts.csv`) of SET come along. Both
folders hold links to the images.
"""

import argparse
import csv
import random
from pathlib import Path

from fg_ssl_zoo.data.part_annotations import separator

SHARE = 5
"""One in so many images of a class is held out."""


def main() -> None:
    """Make one of the two folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    validation = kinds.add_parser("validation", help="split SET/train by class")
    validation.add_argument("source", type=Path, metavar="SET")
    validation.add_argument("out", type=Path, metavar="OUT")
    mixture = kinds.add_parser("mixture", help="the training images of several sets")
    mixture.add_argument("out", type=Path, metavar="OUT")
    mixture.add_argument("sources", type=Path, nargs="+", metavar="SET")
    chosen = parser.parse_args()
    if chosen.kind == "validation":
        split(chosen.source, chosen.out)
    else:
        mix(chosen.sources, chosen.out)


def split(source: Path, out: Path) -> None:
    """Link each class of SOURCE/train into OUT/train and OUT/test."""
    moved = {}
    for folder in sorted(path for path in (source / "train").iterdir() if path.is_dir()):
        files = sorted(folder.iterdir())
        count = max(1, round(len(files) / SHARE))
        held = set(random.Random(f"0 {folder.name}").sample(range(len(files)), count))
        for number, file in enumerate(files):
            place = Path("test" if number in held else "train", folder.name, file.name)
            link(file, out / place)
            moved[f"train/{folder.name}/{file.name}"] = place.as_posix()
    if (source / "parts.csv").is_file():
        move_keypoints(source / "parts.csv", out / "parts.csv", moved)


def move_keypoints(source: Path, out: Path, moved: dict[str, str]) -> None:
    """Write the rows of the images that were moved, with their new paths."""
    with (
        source.open(newline="", encoding="utf-8-sig") as old,
        out.open("w", newline="", encoding="utf-8") as new,
    ):
        rows = csv.DictReader(old, delimiter=separator(old))
        written = csv.DictWriter(new, rows.fieldnames or [])
        written.writeheader()
        written.writerows(
            {**row, "file": moved[row["file"]]} for row in rows if row["file"] in moved
        )


def mix(sources: list[Path], out: Path) -> None:
    """Link the training images of every set into OUT/train/SET."""
    for source in sources:
        for file in sorted(path for path in (source / "train").rglob("*") if path.is_file()):
            link(file, out / "train" / source.name / file.relative_to(source / "train"))


def link(file: Path, place: Path) -> None:
    """A link at a place whose folder may be missing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(file.resolve())


if __name__ == "__main__":
    main()
