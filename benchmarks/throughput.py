"""Images per core-second of the data path, the step, and both together.

    python benchmarks/throughput.py [RECIPE] [key.path=value ...] [--steps 12] [--only data]

One image is one source image, that is two views. A core-second is a second of processor time of
this process, so foreign load moves the figures little; with one thread and no workers it is all
there is.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from accelerate.utils import send_to_device

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Recipe, recipe_of
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.engine import hardware
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.engine.provenance import describe_hardware
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.pretrain.stages import options_on


def main() -> None:
    """Print one line for each of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", metavar="RECIPE or key.path=value")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["data", "step", "both"], metavar="PART")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    measure(recipe_of(chosen.words), chosen.steps, chosen.only)


def measure(recipe: Recipe, steps: int, parts: Sequence[str]) -> None:
    """Time the data path, the step on one batch, and the step on batches as they are loaded."""
    model = create_backbone(recipe.backbone, image_size=recipe.data.image_size).model
    switches = hardware.choose(recipe.speed, convolutional=hardware.is_convolutional(model))
    hardware.switch_on(switches)
    backbone = create_backbone(recipe.backbone, image_size=recipe.data.image_size)
    images, _ = load_splits(recipe.data, seed=recipe.seed)
    stage = recipe.stages[0]
    options = options_on(stage, images, "stages[0].options")
    method = create_method(stage.method, backbone, **options).to(switches.device)
    if switches.channels_last:
        method.to(memory_format=torch.channels_last)
    optimizer = create_optimizer(method, stage.train)
    dataset = ViewDataset(images, method.views(recipe.data.image_size), recipe.seed)
    order = Order(len(images), stage.train.batch_size, recipe.seed)
    loader = iter(step_loader(dataset, order, range(3 * steps + 9), num_workers=0))
    still = next(loader)

    def step(batch: dict[str, torch.Tensor]) -> None:
        with torch.autocast(switches.device, torch.bfloat16, enabled=switches.precision == "bf16"):
            loss = method(send_to_device(batch, switches.device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    size, batch = recipe.data.image_size, stage.train.batch_size
    print(f"{recipe.backbone}, {size} px, batch {batch}, {recipe.data.name}")
    print(f"{describe_hardware()}; {switches}")
    for name, work in {
        "data": lambda: next(loader),
        "step": lambda: step(still),
        "both": lambda: step(next(loader)),
    }.items():
        if name in parts:
            print(f"{name}  {batch / _core_seconds(work, steps):8.1f} images per core-second")


def _core_seconds(work: Callable[[], object], times: int) -> float:
    """Median processor time of one call, after three that do not count."""
    for _ in range(3):
        work()
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return sorted(taken)[len(taken) // 2]


if __name__ == "__main__":
    main()
