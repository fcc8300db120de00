"""What a training on many GPUs would take: bytes that the real modules exchange, and a formula.

    python benchmarks/scaling.py [--backbone resnet50 vit_small_patch16_224] [--methods simclr ...]
                                 [--gpus 8 16 256] [--batch-size 64] [--rate 1218]

Counted, from a forward and a backward pass of each method on four images and on eight, in a world
of two processes and in one of four that exist in the count only: bytes that a process gathers and
reduces for its loss, its gradients (float32), its buffers, and the statistics of its norms.

Calculated, for b images and N GPUs (docs/scaling.md explains the terms):

    step      = b * views / (rate * speed)
    gradients = 2 (N - 1) / N * G / w          all-reduce around a ring
    buffers   = B / w                          broadcast by the first process
    loss      = (N - 1) * s / w + 2 (N - 1) / N * r / w
    norms     = n * latency                    small messages: their number counts
    cores     = images of a GPU per second / images of a core per second

Nothing here is measured on a GPU: `--rate`, `--link`, `--network` and `--latency` are inputs.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.methods import complete_options, create_method
from fg_ssl_zoo.ops import distributed
from fg_ssl_zoo.ops.tables import markdown_table

STEPS = Path(__file__).parent / "results" / "steps"
RATES = {"resnet50": 1218.01, "vit_small_patch16_224": 1057.92}
"""Images per second, forward and backward, of one RTX 3090 with mixed precision at 224 px: timm's
results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv. Not measured by this project."""

OPTIONS = {"moco": {"queue_size": 65_536}}
"""Where the default depends on the images; the queue is the paper's."""

METHODS = ("simclr", "simsiam", "moco", "byol", "dino")
PICTURES = {"iNaturalist 2021": 2_686_843, "100 M": 100_000_000}
EPOCHS = 100
"""Of the hours in the table; 100 M images are passed once in the hundredth part."""

KB_A_PICTURE = 83
"""224 GB of iNaturalist 2021 for 2,686,843 training images."""

CORE = 831
"""Images per core-second: two SimCLR views at 224 px (docs/performance.md, one process)."""


class Wire:
    """Stands in for torch.distributed: equal processes, whose messages are counted.

    Args:
        world: Number of processes.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self.gathered = self.reduced = 0

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def get_world_size(self) -> int:
        return self.world

    def get_rank(self) -> int:
        return 0

    def all_gather(self, parts: Sequence[Tensor], x: Tensor) -> None:
        self.gathered += x.nbytes
        for part in parts:
            part.copy_(x)

    def all_reduce(self, x: Tensor) -> None:
        self.reduced += x.nbytes
        x.mul_(self.world)

    def broadcast(self, x: Tensor, src: int) -> None:
        self.reduced += x.nbytes


@dataclass(frozen=True)
class Volume:
    """Bytes of one process and step.

    Attributes:
        gradients: Of all that is trained, in float32.
        buffers: Which data parallel training sends from the first process before each pass.
        gathered: Brought by a process, for each of its images.
        reduced: (constant, for each process, for each process and image).
        norms: Synchronised statistics: messages of a step.
    """

    gradients: int
    buffers: int
    gathered: float
    reduced: tuple[float, float, float]
    norms: int

    def of_loss(self, pictures: int, world: int) -> tuple[float, float]:
        """Bytes that a process gathers and reduces for its loss."""
        constant, each, picture = self.reduced
        return self.gathered * pictures, constant + world * (each + picture * pictures)


def counted(name: str, backbone: str, image_size: int = 64) -> Volume:
    """Volume of a method with its default options."""
    (method, _), few = _pass(name, backbone, 4, 2, image_size)
    _, more = _pass(name, backbone, 8, 2, image_size)
    (_, norms), wide = _pass(name, backbone, 4, 4, image_size)
    for_picture = (more.reduced - few.reduced) / 8
    for_process = (wide.reduced - few.reduced) / 2 - 4 * for_picture
    constant = few.reduced - 2 * for_process - 8 * for_picture
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return Volume(
        gradients=4 * trained,
        buffers=sum(buffer.nbytes for buffer in method.buffers()),
        gathered=(more.gathered - few.gathered) / 4,
        reduced=(constant, for_process, for_picture),
        norms=norms,
    )


def _pass(
    name: str, backbone: str, pictures: int, world: int, size: int
) -> tuple[tuple[Method, int], Wire]:
    """One forward and backward pass: the method, messages of its norms, and what was sent."""
    torch.manual_seed(0)
    images = DrawnBirds(pictures, num_classes=2, image_size=size, seed=0)
    options = complete_options(name, OPTIONS.get(name, {}), images, batch_size=pictures * world)
    method = create_method(name, create_backbone(backbone, image_size=size), **options).train()
    loader = step_loader(
        ViewDataset(images, method.views(size), 0),
        Order(pictures, pictures, 0),
        range(1),
        num_workers=0,
    )
    batch = next(iter(loader))
    batch.pop("corrupt")
    wire, norms = Wire(world), _count_norms(method)
    real, distributed.dist = distributed.dist, wire  # pyright: ignore[reportAttributeAccessIssue]
    try:
        method(send_to_device(batch, "cpu")).loss.backward()
    finally:
        distributed.dist = real
    return (method, sum(norms)), wire


def _count_norms(method: nn.Module) -> list[int]:
    """Messages of each pass through a norm: one forward, and one backward with a gradient."""
    messages: list[int] = []
    for layer in method.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_hook(
                lambda *_: messages.append(2 if torch.is_grad_enabled() else 1)
            )
    return messages


def speeds() -> dict[str, tuple[float, float]]:
    """Method -> its measured speed beside bare passes of its views, and views of an image.

    Measured on a CPU with ResNet-18 (benchmarks/step.py); views are in units of the largest.
    """
    found = {}
    for path in sorted(STEPS.glob("*.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        for row in about["rows"]:
            pixels = sum(n * h * w for n, h, w in row["views"])
            views = pixels / about["batch_size"] / about["image_size"] ** 2
            found[row["method"]] = (row["speed"]["views"], views)
    return found


@dataclass(frozen=True)
class Cluster:
    """Inputs that were not measured by this project.

    Attributes:
        rate: Images per second of the bare backbone, forward and backward, on one GPU.
        link: Bytes per second between the GPUs of a machine, in one direction.
        network: Bytes per second of a GPU to another machine.
        latency: Seconds of a small message among all.
        per_machine: GPUs.
    """

    rate: float
    link: float = 300e9
    network: float = 25e9
    latency: float = 30e-6
    per_machine: int = 8


def seconds(
    volume: Volume, speed: float, views: float, cluster: Cluster, pictures: int, gpus: int
) -> dict[str, float]:
    """Seconds of the parts of a step; no part overlaps another."""
    width = cluster.link if gpus <= cluster.per_machine else cluster.network
    ring = 2 * (gpus - 1) / gpus / width
    gathered, reduced = volume.of_loss(pictures, gpus)
    return {
        "step": pictures * views / (cluster.rate * speed),
        "gradients": ring * volume.gradients,
        "buffers": volume.buffers / width,
        "loss": (gpus - 1) * gathered / width + ring * reduced,
        "norms": volume.norms * cluster.latency,
    }


def volumes(found: dict[str, Volume], pictures: int) -> str:
    """A row for each method: what a process sends."""
    rows = []
    for name, volume in found.items():
        eight, most = (volume.of_loss(pictures, gpus) for gpus in (8, 256))
        loss = f"{eight[0] / 1e3:,.0f}", f"{eight[1] / 1e6:,.2f}", f"{most[1] / 1e6:,.1f}"
        rows.append(
            [
                name,
                f"{volume.gradients / 1e6:,.0f}",
                f"{volume.buffers / 1e6:,.1f}",
                *loss,
                str(volume.norms),
            ]
        )
    titles = ["method", "gradients, MB", "buffers, MB", "gathered, KB", "reduced at 8 GPUs, MB"]
    return markdown_table([*titles, "at 256, MB", "norm messages"], rows)


def times(found: dict[str, Volume], cluster: Cluster, pictures: int, gpus: Sequence[int]) -> str:
    """A row for each method and number of GPUs: the parts of a step, and what follows."""
    rows = []
    known = speeds()
    for name, volume in found.items():
        for count in gpus:
            parts = seconds(volume, *known[name], cluster, pictures, count)
            whole = sum(parts.values())
            shown = [f"{1e3 * value:,.1f}" for value in parts.values()]
            every = count * pictures / whole
            hours = [f"{EPOCHS * n / every / 3600:,.1f}" for n in PICTURES.values()]
            cores = f"{every / count / CORE:.2f}"
            read = f"{every * KB_A_PICTURE / 1e6:,.2f}"
            rows.append(
                [name, str(count), *shown, f"{parts['step'] / whole:.0%}", cores, read, *hours]
            )
    titles = ["method", "GPUs", "step, ms", "gradients", "buffers", "loss", "norms", "step's share"]
    titles += ["cores a GPU", "GB/s read", *(f"hours, {name}" for name in PICTURES)]
    return markdown_table(titles, rows)


def main(words: Sequence[str] | None = None) -> None:
    """Print both tables of each backbone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", nargs="+", default=list(RATES))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=sorted(speeds()))
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 16, 256])
    parser.add_argument("--batch-size", type=int, default=64, help="images of each GPU")
    parser.add_argument("--rate", type=float, help="images per second of one GPU, bare backbone")
    parser.add_argument("--link", type=float, default=300, help="GB/s between GPUs of a machine")
    parser.add_argument("--network", type=float, default=25, help="GB/s of a GPU to other machines")
    parser.add_argument("--latency", type=float, default=30, help="microseconds of a message")
    chosen = parser.parse_args(words)
    torch.set_num_threads(1)
    for backbone in chosen.backbone:
        if (rate := chosen.rate or RATES.get(backbone)) is None:
            parser.error(f"--rate is needed for {backbone}; known: {', '.join(RATES)}")
        print(tables(backbone, rate, chosen))


def tables(backbone: str, rate: float, chosen: Any) -> str:
    """Both tables of a backbone."""
    cluster = Cluster(rate, chosen.link * 1e9, chosen.network * 1e9, chosen.latency / 1e6)
    found = {name: counted(name, backbone) for name in chosen.methods}
    about = f"{backbone}, {chosen.batch_size} images a GPU, {rate:,.0f} images/s of one GPU"
    both = volumes(found, chosen.batch_size), times(found, cluster, chosen.batch_size, chosen.gpus)
    return f"{about}:\n\n{both[0]}\n\n{both[1]}\n"


if __name__ == "__main__":
    main()
