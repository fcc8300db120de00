"""SRGAN's two players: one step for both, or the discriminator first and then the generator.

    python benchmarks/srgan_updates.py RUN [--steps 200] [--batch-size 16] [--seed 0] [--out FILE]

RUN is the folder of a `super_resolution` run; both ways begin with its weights, its data, the same
fresh discriminator and the same batches. `together` is what `methods/srgan.py` does: one Adam step
on L_G + L_D. `in_turn` is the papers' way: a step on L_D, then L_G against the discriminator that
has just learnt. PSNR and SSIM are those of 256 test images that neither has seen.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Recipe, load_recipe
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.provenance import commit, describe_hardware, versions
from fg_ssl_zoo.layers.frozen import frozen
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.ops.image_quality import psnr, ssim

LR = 1e-4
"""Of both Adams, as in the papers."""


def main() -> None:
    """Train both ways and print a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    recipe = load_recipe(chosen.run / "recipe.yaml")
    found = {way: train(way, recipe, chosen) for way in ("together", "in_turn")}
    if chosen.out:
        about = {"steps": chosen.steps, "batch_size": chosen.batch_size, "seed": chosen.seed}
        about |= {"commit": commit(), "hardware": describe_hardware(), "versions": versions()}
        about |= {"backbone": recipe.backbone, "image_size": recipe.data.image_size}
        text = json.dumps({**about, "data": recipe.data.name, "curves": found}, indent=2)
        chosen.out.write_text(text + "\n", encoding="utf-8")


def train(way: str, recipe: Recipe, chosen: argparse.Namespace) -> list[dict[str, float]]:
    """The curve of one way: PSNR and SSIM of test images, and how well the judge tells."""
    images, test = load_splits(recipe.data, seed=recipe.seed)
    assert test is not None
    torch.manual_seed(chosen.seed)
    size = recipe.data.image_size
    backbone = create_backbone(recipe.backbone, image_size=size, **recipe.backbone_options)
    method: Any = create_method("srgan", backbone)
    newest = checkpoint.positions(chosen.run / "checkpoints")
    state = checkpoint.load(newest[max(newest)])["method"]
    method.load_state_dict(state, strict=False)
    held = batch_of(method, test, size, 256, chosen.seed)
    groups = [list(group["params"]) for group in method.param_groups()]
    generator, discriminator = (torch.optim.Adam(params, LR) for params in groups)
    dataset = ViewDataset(images, method.views(size), chosen.seed)
    order = Order(len(images), chosen.batch_size, chosen.seed)
    loader = step_loader(dataset, order, range(chosen.steps + 1), num_workers=0)
    curve, began, paused = [], time.perf_counter(), 0.0
    for step, batch in enumerate(loader):
        if step % max(1, chosen.steps // 10) == 0:
            at = time.perf_counter()
            seconds = at - began - paused
            curve.append({"step": step, "seconds": seconds, **measure(method, held)})
            print(way, {key: round(value, 4) for key, value in curve[-1].items()}, flush=True)
            paused += time.perf_counter() - at
        if way == "in_turn":
            real = batch["high"].movedim(-1, 1) / 255
            fake = method.restore(batch["low"]).float()
            method.discriminator_loss(real, fake.detach()).backward()
            discriminator.step()
            discriminator.zero_grad()
            with frozen(method.discriminator) as judge:
                fooled = F.softplus(-judge(fake)).mean()
            (F.mse_loss(fake, real) + method.adversarial_weight * fooled).backward()
            generator.step()
            generator.zero_grad()
        else:
            method(batch).loss.backward()
            for optimizer in (generator, discriminator):
                optimizer.step()
                optimizer.zero_grad()
    return curve


def batch_of(method: Any, images: Images, size: int, count: int, seed: int) -> dict[str, Tensor]:
    """The same images for both ways."""
    dataset = ViewDataset(images, method.views(size), seed)
    return next(
        iter(step_loader(dataset, Order(len(images), count, seed), range(1), num_workers=0))
    )


def measure(method: Any, held: dict[str, Tensor]) -> dict[str, float]:
    """Quality of the restored images, and the share of real and restored ones that D names."""
    with evaluating(method), torch.no_grad():
        real = held["high"].movedim(-1, 1) / 255
        fake = torch.cat([method.restore(part) for part in held["low"].split(32)]).float()
        judged = [torch.cat([method.discriminator(p) for p in x.split(32)]) for x in (real, fake)]
        right = ((judged[0] > 0).float().mean() + (judged[1] < 0).float().mean()) / 2
        return {
            "psnr": psnr(fake, real).item(),
            "ssim": ssim(fake, real).item(),
            "pixel": F.mse_loss(fake, real).item(),
            "judge_right": right.item(),
        }


if __name__ == "__main__":
    main()
