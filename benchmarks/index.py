"""Time and memory of the index of many images, before any of them is read.

    python benchmarks/index.py FOLDER [--count 1000000] [--classes 1000] [--csv]

Writes so many empty files below FOLDER/images, if they are not there (they take no space but
their entries), and then does what a run does with its data: list them, compute their fingerprint,
their state and the inventory, write it, and compare it as a run that is continued does. Prints
processor seconds, and the largest memory of the process above that of its imports.
"""

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data import inventory
from fg_ssl_zoo.data.datasets import file_state, fingerprint, load_splits
from fg_ssl_zoo.data.order import Order


def main() -> None:
    """Make the files, then print one line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--csv", action="store_true", help="list them in a CSV file instead")
    chosen = parser.parse_args()
    root = chosen.folder / "pictures"
    make(root, chosen.count, chosen.classes)
    began = time.process_time()
    data = Data(path=str(root), test_split="none")
    if chosen.csv:
        data = Data(path=str(listed(root)), test_split="none")
    start = memory()
    print(f"{'part':<28} CPU-s   MB above the imports")
    train, _ = measured("list", start, lambda: load_splits(data))
    assert len(train) == chosen.count
    order = Order(len(train), 256, 0)
    measured("first batch of an epoch", start, lambda: order(0))
    measured("fingerprint", start, lambda: fingerprint(train))
    measured("sizes and times of all files", start, lambda: file_state(train))
    pictures = measured("inventory", start, lambda: inventory.take({"train": train}))
    file = chosen.folder / "data.json"
    measured("inventory written", start, lambda: inventory.write(file, pictures))
    before = measured("inventory read", start, lambda: inventory.read(file))
    found = measured("inventories compared", start, lambda: inventory.differences(before, pictures))
    assert not found
    print(f"{'all':<28} {time.process_time() - began:5.1f}  {memory() - start:6.0f}")


def make(root: Path, count: int, classes: int) -> None:
    """Empty files `CLASS/NUMBER.jpg`."""
    for number in range(classes):
        folder = root / f"class_{number:04d}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for row in range(number, count, classes):
                (folder / f"picture_{row:07d}.jpg").touch()


def listed(root: Path) -> Path:
    """A CSV file that lists them."""
    file = root.parent / "images.csv"
    with file.open("w", encoding="utf-8") as lines:
        lines.write("path,label\n")
        for path in root.glob("*/*.jpg"):
            lines.write(f"{path.relative_to(root.parent)},{path.parent.name}\n")
    return file


def measured(title: str, start: float, work: Callable[[], Any]) -> Any:
    """What the work gives; prints its line."""
    began = time.process_time()
    found = work()
    print(f"{title:<28} {time.process_time() - began:5.1f}  {memory() - start:6.0f}", flush=True)
    return found


def memory() -> float:
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
