"""k-means on the hypercolumns of images: time and inertia against scikit-learn's KMeans.

    python benchmarks/clustering.py [--backbone NAME] [--init INIT] [--image-size 224]
        [--data drawn image_size=224] [--images 12] [--clusters 15] [--seeds 2] [--sample 50000]

With `--sample` the images make one set of so many pixels of the deepest layer alone, as
`discover_parts` clusters them for `scope: dataset`.

Seconds are processor time of this process for one image on one thread. Inertia is relative to
scikit-learn's with one start (`n_init=1`), the mean over images and seeds; another seed of
scikit-learn shows how far two of its own runs lie apart. On an accelerator (`--device cuda`)
seconds are wall time of whole batches.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from sklearn.cluster import KMeans

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.hypercolumns import default_layers, hypercolumns
from fg_ssl_zoo.config import data_of
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.fixed_views import WholeView
from fg_ssl_zoo.engine.provenance import describe_hardware
from fg_ssl_zoo.ops.clustering import kmeans


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--init", default="scratch")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--data", nargs="+", default=["drawn", "image_size=224"])
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--clusters", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    points = features(chosen)
    b, n, d = points.shape
    print(f"{describe_hardware()}, one thread; {chosen.backbone}, {chosen.init}")
    print(f"{b} sets of {n} pixels x {d}, {chosen.clusters} clusters")
    ours = partial(of_torch, points.to(chosen.device), chosen.clusters)
    compare(
        {
            "scikit-learn": partial(of_sklearn, points, chosen.clusters, 0),
            "scikit-learn, another seed": partial(of_sklearn, points, chosen.clusters, 100),
            "kmeans": ours,
            "kmeans, coarse=4": partial(ours, coarse=4),
            "kmeans, coarse=4, restarts=3": partial(ours, coarse=4, restarts=3),
        },
        chosen.seeds,
        time.process_time if chosen.device == "cpu" else time.perf_counter,
    )


def features(chosen: argparse.Namespace) -> torch.Tensor:
    """Hypercolumns (b, n, d) of some images of the set, or a sample (1, n, d) of all of them."""
    backbone = create_backbone(chosen.backbone, init=chosen.init, image_size=chosen.image_size)
    images, _ = load_splits(data_of(chosen.data))
    view, nothing = WholeView(chosen.image_size), np.random.default_rng(0)
    some = np.linspace(0, len(images) - 1, chosen.images).round().astype(int)
    pixels = np.stack([view(images[int(i)], nothing)["image"] for i in some])
    with torch.inference_mode():
        seen = backbone.eval().normalize(torch.from_numpy(pixels))
        layers = default_layers(backbone)[: 1 if chosen.sample else None]
        found = hypercolumns(backbone, seen, layers, 64).flatten(2).mT.contiguous()
    if not chosen.sample:
        return found
    each = -(-chosen.sample // len(found))
    return torch.cat([pixels[torch.randperm(len(pixels))[:each]] for pixels in found])[None].clone()


def of_sklearn(points: torch.Tensor, clusters: int, offset: int, seed: int) -> np.ndarray:
    """Inertia of each image."""
    sets = [x.numpy() for x in points]
    fit = [KMeans(clusters, n_init=1, random_state=seed + offset).fit(x) for x in sets]
    return np.array([found.inertia_ for found in fit])


def of_torch(points: torch.Tensor, clusters: int, seed: int, **options: int) -> np.ndarray:
    """Inertia of each image."""
    seeds = [1000 * seed + i for i in range(len(points))]
    return kmeans(points, clusters, seeds, **options).inertia.cpu().numpy()


def compare(
    ways: dict[str, Callable[..., np.ndarray]], seeds: int, clock: Callable[[], float]
) -> None:
    """Time and inertia of every way, in turns, so that foreign load meets all alike."""
    seconds, inertia = dict.fromkeys(ways, 0.0), {name: [] for name in ways}
    for seed in range(seeds):
        for name, way in ways.items():
            began = clock()
            found = way(seed=seed)
            seconds[name] += (clock() - began) / len(found) / seeds
            inertia[name].append(found)
    reference = np.stack(inertia["scikit-learn"])
    for name in ways:
        ratio = np.mean(np.stack(inertia[name]) / reference)
        print(f"  {name:30} {1e3 * seconds[name]:7.1f} ms a set   inertia {ratio:.4f}")


if __name__ == "__main__":
    main()
