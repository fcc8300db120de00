"""What the pairs of SSL-Cassava cost the data path beside the plain views of SimCLR.

    python benchmarks/views.py [key.path=value ...] [--images 600] [--rounds 7]

    python benchmarks/views.py data.name=cub100 data.path=FOLDER data.image_size=96

Processor time of one thread from an encoded image to its two views. The pairs take turns, and a
speed is the median over the turns of plain time over this pair's time: 0.9 means 90 images while
the plain views make 100.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from fg_ssl_zoo.config import Speed, recipe_of
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.pairs import PAIRS
from fg_ssl_zoo.data.sample import Images, Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.engine import hardware


def main() -> None:
    """Print a line for each pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="key.path=value")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    hardware.switch_on(hardware.choose(Speed(threads=1), convolutional=True))
    recipe = recipe_of(chosen.words)
    images, _ = load_splits(recipe.data, seed=recipe.seed)
    plain = augmentations_of("fine_grained", None, paper="simclr")
    size = recipe.data.image_size
    views = {
        name: RandomViews(size, plain, (pair.first, pair.second), pair.after)
        for name, pair in PAIRS.items()
    }
    order = np.random.default_rng(0).permutation(len(images))[: chosen.images].tolist()
    turns = [
        {name: seconds(images, order, how, turn) / len(order) for name, how in views.items()}
        for turn in range(chosen.rounds)
    ]
    for name in views:
        each = statistics.median(turn[name] for turn in turns)
        speed = statistics.median(turn["original"] / turn[name] for turn in turns)
        print(f"{name:16} {each * 1e6:6.0f} us an image   speed {speed:.2f}")


def seconds(images: Images, order: list[int], views: Views, turn: int) -> float:
    """Processor time of decoding the images and making their views."""
    began = time.process_time()
    for index in order:
        views(images[index], np.random.default_rng((0, turn, index)))
    return time.process_time() - began


if __name__ == "__main__":
    main()
