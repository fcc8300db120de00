"""A small vision transformer that begins with a convolutional network's knowledge of places.

    python benchmarks/distilled_start.py cub100 cars --teacher resnet18@FILE --out vit_start

Part discovery needs a start whose patches mean something, and no such transformer is small enough
for the tables of docs/results.md. This makes one, from pictures without labels: its tokens
learn to predict the teacher's third stage at the same place, and its class token the mean of that
stage. Both are standardised over each batch; squared error; heads are thrown away.

The student sees half the teacher's pixels: patches of 8 and a stride of 16 give the same map. The
folder that is written is a start for recipes (`init=vit_start`) and a model for `fgssl eval`.
"""

import argparse
import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone, create_backbone
from fg_ssl_zoo.backbones.hypercolumns import maps_of
from fg_ssl_zoo.config import data_of, load_recipe
from fg_ssl_zoo.data.datasets import load_images
from fg_ssl_zoo.data.loader import Order, ViewDataset, step_loader
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.hub.export import export

STUDENT: dict[str, Any] = {"patch_size": 8, "depth": 6}
SIDE = 64


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="folders with train/, or names")
    parser.add_argument("--teacher", required=True, help="ARCHITECTURE@FILE, with a third stage")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    name, _, init = chosen.teacher.partition("@")
    teacher = create_backbone(name, init=init, image_size=2 * SIDE).eval()
    student = create_backbone("vit_tiny_patch16_224", image_size=SIDE, **STUDENT)
    learn(student, teacher, chosen)
    options = f"backbone_options={{patch_size: {STUDENT['patch_size']}, depth: {STUDENT['depth']}}}"
    recipe = load_recipe(
        overrides=["backbone=vit_tiny_patch16_224", options, f"data.image_size={SIDE}"]
    )
    export(student.eval(), chosen.out, recipe, {"rows": []})


def learn(student: Backbone, teacher: Backbone, chosen: argparse.Namespace) -> None:
    """Distil; a line for each tenth of the training."""
    (view, _) = augmentations_of("fine_grained")
    views = RandomViews(2 * SIDE, (view,), (None,))
    sets = [load_images(data_of([words]), "train") for words in chosen.data]
    steps = [chosen.epochs * len(images) // chosen.batch_size for images in sets]
    loaders = [
        iter(step_loader(ViewDataset(images, views, chosen.seed),
                         Order(len(images), chosen.batch_size, chosen.seed),
                         range(count), num_workers=0))
        for images, count in zip(sets, steps, strict=True)
    ]  # fmt: skip
    turns = torch.cat([torch.full((count,), number) for number, count in enumerate(steps)])
    turns = turns[torch.randperm(len(turns), generator=torch.Generator().manual_seed(0))].tolist()
    with torch.no_grad():
        width = maps_of(teacher, torch.zeros(1, 3, 2 * SIDE, 2 * SIDE), [-2])[0].shape[1]
    heads = nn.ModuleList(nn.Linear(student.num_features, width) for _ in range(2))
    weights = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, chosen.lr, weight_decay=0.05)
    for step, turn in enumerate(turns):
        done = step / len(turns)
        rate = min(1.0, done / 0.1) * (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = chosen.lr * rate
        pixels = next(loaders[turn])["images"][:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                there = maps_of(teacher, teacher.normalize(pixels), [-2])[0].float()
            images = F.avg_pool2d(student.normalize(pixels), 2)
            tokens, h = student.map_and_features(images)
            places = heads[0](tokens.flatten(2).mT)
            loss = error(places.flatten(0, 1), there.flatten(2).mT.flatten(0, 1))
            loss = loss + error(heads[1](h), there.mean(dim=(2, 3)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, len(turns) // 10) == 0:
            print(f"step {step}/{len(turns)}, loss {loss.item():.3f}", flush=True)


def error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of (n, d) to what is wanted, in its standard deviations."""
    return F.mse_loss(found.float(), (wanted - wanted.mean(0)) / (wanted.std(0) + 1e-3))


if __name__ == "__main__":
    main()
