"""What an evaluation costs: features against the bare forward pass, and the protocols on them.

    python benchmarks/evaluate.py [--backbone resnet18] [--image-size 96] [--data FOLDER]
    python benchmarks/evaluate.py --large     also kNN of 50,000 x 50,000 features of 2,048

Seconds are wall time; `--large` needs about 1 GB of memory and prints the peak.
"""

import argparse
import os
import resource
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.config import data_of
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.engine.hardware import evaluation_accelerator
from fg_ssl_zoo.engine.provenance import describe_hardware
from fg_ssl_zoo.evaluation.protocols.linear import logistic_regression
from fg_ssl_zoo.evaluation.protocols.linear_sgd import sgd_logits
from fg_ssl_zoo.evaluation.protocols.retrieval import ranked
from fg_ssl_zoo.features.extract import extract
from fg_ssl_zoo.ops.neighbours import knn_predict

BATCH = 128


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--data", nargs="+", default=["drawn", "image_size=96"])
    parser.add_argument("--large", action="store_true")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    print(f"{describe_hardware()}, {torch.get_num_threads()} threads")
    features(chosen.backbone, chosen.image_size, chosen.data)
    protocols()
    if chosen.large:
        large()


def features(name: str, image_size: int, words: list[str]) -> None:
    """The extraction of a split against the forward pass of one batch in memory."""
    accelerator = evaluation_accelerator()
    backbone = open_backbone(f"{name}@scratch", image_size=image_size).to(accelerator.device).eval()
    torch.nn.Module.to(backbone, memory_format=torch.channels_last)
    images, _ = load_splits(data_of(words))
    pixels = torch.randint(0, 256, (BATCH, image_size, image_size, 3), dtype=torch.uint8)
    rounds = -(-len(images) // BATCH)

    def bare() -> None:
        with torch.inference_mode(), accelerator.autocast():
            for _ in range(rounds):
                backbone(backbone.normalize(pixels.to(accelerator.device))).float().cpu()

    bare()  # warm
    forward = seconds(bare) * len(images) / (rounds * BATCH)
    whole = seconds(lambda: extract(backbone, images, accelerator, batch_size=BATCH))
    print(f"{name}, {image_size} px, {len(images)} images of {images.name}")
    print(f"  bare forward  {forward:6.1f} s")
    print(f"  features      {whole:6.1f} s  ({whole / forward:.2f} x)")


def protocols() -> None:
    """3,000 training and 3,000 test rows of 2,048, 100 classes, separable in part."""
    centres = torch.randn(100, 2048)
    labels = torch.arange(3000) % 100
    train, test = (centres[labels] + 6 * torch.randn(3000, 2048) for _ in range(2))
    for name, work in {
        "kNN": lambda: knn_predict(train, labels, test, num_classes=100),
        "retrieval": lambda: ranked(test, labels),
        "logistic regression": lambda: logistic_regression(train, labels, test),
        "SGD, one rate": lambda: sgd_logits(train, labels, test, (1.0,), 100, seed=0),
    }.items():
        print(f"  {name:20} {seconds(work):6.1f} s   (3,000 x 2,048, 100 classes)")


def large() -> None:
    """50,000 test rows against 50,000 training rows."""
    train, test = torch.randn(2, 50_000, 2048)
    labels = torch.arange(50_000) % 1000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    taken = seconds(lambda: knn_predict(train, labels, test, num_classes=1000))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"  kNN of 50,000 x 50,000 {taken:6.1f} s, peak memory {before:.1f} -> {after:.1f} GiB")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
