"""Processor time from the file of an image to its two views: large and small JPEGs.

    python benchmarks/pictures.py [--pictures 6] [--turns 3]

Draws JPEGs of 4000 x 3000 and 160 x 160 pixels. One thread; every way reads the same images, in
turns, and the figure is the median over the turns:

    whole     decoded at full size
    reduced   decoded as small as the crops allow (data/reduction.py), which is what a run does
    cached    the same from `data.cache: true`, after the first pass
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from fg_ssl_zoo.data.folders import FolderImages
from fg_ssl_zoo.data.picture_cache import PictureCache
from fg_ssl_zoo.data.views import RandomViews, augmentations_of

SIZES = ((4000, 3000), (160, 160))


def main() -> None:
    """Print one line for each size of image, side of view and preset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            root = Path(folder) / f"{width}x{height}"
            draw(root, width, height, chosen.pictures)
            for preset in ("simclr", "fine_grained"):
                for size in (96, 224):
                    views = RandomViews(size, augmentations_of(preset), (None, None))
                    measure(root, views, f"{width} x {height}, {preset} {size} px", chosen.turns)


def draw(root: Path, width: int, height: int, count: int) -> None:
    """Smooth colours with a little noise, about as many bytes a pixel as a photograph has."""
    root.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        noise = generator.integers(0, 12, image.shape, dtype=np.uint8)
        _, encoded = cv2.imencode(".jpg", cv2.add(image, noise), [cv2.IMWRITE_JPEG_QUALITY, 90])
        (root / f"{number}.jpg").write_bytes(encoded.tobytes())


def measure(root: Path, views: RandomViews, name: str, turns: int) -> None:
    """Milliseconds of one image, three ways."""
    names = sorted(path.name for path in root.iterdir() if path.suffix == ".jpg")
    plain, kept = (FolderImages(root, names, name="drawn") for _ in range(2))
    with tempfile.TemporaryDirectory(dir=root) as cache:
        kept.cache = PictureCache(Path(cache), 1 << 34)
        ways = {
            "whole": lambda index: plain.for_training(index, None),
            "reduced": lambda index: plain.for_training(index, views.reduction),
            "cached": lambda index: kept.for_training(index, views.reduction),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(turns + 1):
            for way, read in ways.items():
                began = time.process_time()
                for index in range(len(names)):
                    views(read(index), np.random.default_rng([turn, index]))
                if turn:  # the first fills the cache
                    taken[way].append(1000 * (time.process_time() - began) / len(names))
        held = sum(file.stat().st_size for file in Path(cache).glob("??/*")) / len(names)
    figures = ", ".join(f"{way} {statistics.median(ms):.2f} ms" for way, ms in taken.items())
    print(f"{name}: {figures}; {held / 1e6:.2f} MB kept an image", flush=True)


if __name__ == "__main__":
    main()
