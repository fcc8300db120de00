"""Our data path beside lightly's: images per core-second from JPEG to two float views.

    python benchmarks/peers.py FOLDER [--image-size 96] [--batches 12] [--turns 5]

FOLDER holds JPEGs at any depth. Both run in this process on one thread, take turns on the same
images, and draw SimCLR's views; ours are normalised as a step reads them. lightly has to be
installed in this environment (`pip install lightly`); without it the command ends with one line.
Other peers (lightly-train, solo-learn, stable-pretraining) are not driven by this command.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch

BATCH = 64


def main() -> None:
    """Print both rates and the median of their ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    chosen = parser.parse_args()
    if importlib.util.find_spec("lightly") is None:
        parser.exit(2, "error: lightly is not installed here: pip install lightly\n")
    names = sorted(path for path in chosen.folder.rglob("*") if path.suffix in (".jpg", ".jpeg"))
    if len(names) < BATCH:
        parser.exit(2, f"error: {chosen.folder} holds {len(names)} JPEGs; {BATCH} are needed\n")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    ways = {"ours": ours(names, chosen.image_size), "lightly": lightly(names, chosen.image_size)}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(chosen.turns):
        for name, batches in ways.items():
            rates[name].append(rate(batches, chosen.batches))
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["lightly"], strict=True))
    for name, found in rates.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        print(f"{name:8} {middle:7.0f} images per core-second ({low:.0f} to {high:.0f})")
    print(f"ours / lightly {ratio:.2f}")


def rate(batches: Iterator[Any], count: int) -> float:
    """Images per second of processor time."""
    next(batches)
    began = time.process_time()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.process_time() - began)


def ours(names: list[Path], size: int) -> Iterator[torch.Tensor]:
    """Views of `simclr`, normalised."""
    from fg_ssl_zoo.backbones.create import create_backbone
    from fg_ssl_zoo.data.folders import FolderImages
    from fg_ssl_zoo.data.loader import ViewDataset, step_loader
    from fg_ssl_zoo.data.order import Order
    from fg_ssl_zoo.data.views import RandomViews, augmentations_of

    images = FolderImages("/", [str(name.resolve())[1:] for name in names], name="peers")
    dataset = ViewDataset(images, RandomViews(size, augmentations_of("simclr"), (None, None)), 0)
    backbone = create_backbone("resnet18", image_size=size)
    loader = step_loader(dataset, Order(len(names), BATCH, 0), range(10**6), num_workers=0)
    return (backbone.normalize(batch["images"]) for batch in loader)


def lightly(names: list[Path], size: int) -> Iterator[Any]:
    """Lightly's `SimCLRTransform` on Pillow's images, stacked by torch's loader."""
    from lightly.transforms import SimCLRTransform  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    transform: Callable[[Any], Any] = SimCLRTransform(input_size=size)

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, index: int) -> Any:
            with Image.open(names[index]) as image:
                return transform(image.convert("RGB"))

    while True:
        yield from DataLoader(Pictures(), batch_size=BATCH, shuffle=True, drop_last=True)


if __name__ == "__main__":
    main()
