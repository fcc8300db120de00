"""Does the choice of `fgssl train FOLDER` end above its start? The table of docs/own_pictures.md.

    python benchmarks/own_pictures.py own cub100 cars food10                     # 12 runs, of hours
    python benchmarks/own_pictures.py own cub100 --kinds flat -- stages.0.train.steps=100

Every SET holds `train/` and `test/` with a folder for each class. `--small` classes with ten
training images each, and all their test images, are cut out of the first set as one more.

    labels    fgssl train SET: the run measures itself on the test images
    flat      fgssl train on the training images in one folder, without labels and test images

Both are then scored by `fgssl eval` on the test images of SET, the start beside them, with the
paired test of that command. A run or score that is there already is not made again.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

PICTURES = 10
"""Training images of each class of the small set."""


def main() -> None:
    """Train and score every set in both forms, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET")
    parser.add_argument("--small", type=int, default=12, help="classes of the small set; 0: none")
    parser.add_argument("--kinds", nargs="+", default=["labels", "flat"])
    arguments = sys.argv[1:]
    words = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
    chosen = parser.parse_args(arguments[: len(arguments) - len(words) - bool(words)])
    sets = list(chosen.sets)
    if chosen.small:
        sets.insert(0, small_set(sets[0], chosen.out / "small", chosen.small))
    print("| images | labels | start, kNN | end, kNN | p |\n|---|---|---:|---:|---:|", flush=True)
    for folder in sets:
        for kind in chosen.kinds:
            seen = flat_set(folder, chosen.out / "flat" / folder.name) if kind == "flat" else folder
            run = chosen.out / "runs" / f"{folder.name}_{kind}"
            if not (run / "export" / "config.json").is_file():
                fgssl("train", str(seen), f"output={run}", *words)
            scores = chosen.out / "scores" / run.name
            if not (scores / "results.json").is_file():
                fgssl("eval", str(run), "--data", str(folder), "--protocols", "knn",
                      "--out", str(scores), "--cache", str(chosen.out / "cache"))  # fmt: skip
            print(row(folder.name, kind, scores / "results.json"), flush=True)


def fgssl(*words: str) -> None:
    """Run the command with this Python; its output goes to standard error."""
    command = [sys.executable, "-m", "fg_ssl_zoo.cli", *words]
    subprocess.run(command, check=True, stdout=sys.stderr)


def row(name: str, kind: str, file: Path) -> str:
    """A line of the table from a results file."""
    results = json.loads(file.read_text(encoding="utf-8"))
    metric = next(key for key in results["p_values"] if key.startswith("knn"))
    end, start = (row["scores"][metric] for row in results["rows"][:2])
    cells = [f"{100 * s['value']:.1f} ± {50 * (s['high'] - s['low']):.1f} %" for s in (start, end)]
    (pair,) = results["p_values"][metric]
    return f"| {name} | {kind} | {cells[0]} | {cells[1]} | {pair['p']:.3f} |"


def small_set(source: Path, out: Path, classes: int) -> Path:
    """`classes` folders of a set, evenly spaced, with `PICTURES` training images each."""
    names = sorted(path.name for path in (source / "train").iterdir() if path.is_dir())
    for name in names[:: len(names) // classes][:classes]:
        for split, most in (("train", PICTURES), ("test", None)):
            for file in sorted((source / split / name).iterdir())[:most]:
                link(file, out / split / name / file.name)
    return out


def flat_set(source: Path, out: Path) -> Path:
    """The training images of a set in one folder, in the same order and without classes."""
    for file in sorted((source / "train").rglob("*")):
        if file.is_file():
            link(file, out / f"{file.parent.name}__{file.name}")
    return out


def link(file: Path, place: Path) -> None:
    """A link at a place whose folder may be missing, and which may be there already."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.is_symlink():
        place.symlink_to(file.resolve())


if __name__ == "__main__":
    main()
