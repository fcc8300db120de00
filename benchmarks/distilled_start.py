"""A network that begins with a small convolutional network's knowledge of places.

    python benchmarks/distilled_start.py cub100 cars --teacher resnet18@FILE --out vit_start
    python benchmarks/distilled_start.py cub --teacher resnet18@FILE --student resnet50 --side 128

Part discovery needs a start whose patches mean something, and there is none small enough for the
tables of docs/results.md among transformers, or at hand for a ResNet-50. This makes one, from
images without labels: wherever a map of the student has the cells of one of the teacher's first
three stages, a linear head on it learns to predict that stage (Romero et al., 2015, arXiv
1412.6550, on every stage), and one on the pooled features the mean of the third. Targets are
standardised over each batch; squared error, mean over the maps; heads are thrown away.

The teacher sees 128 px. A transformer with patches of 8 has the third stage's cells at 64 px.
The folder that is written is a start for recipes (`init=start`) and a model for `fgssl eval`.
"""

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.config import data_of, load_recipe
from fg_ssl_zoo.data.datasets import load_images
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.hub.export import export

SIDE = 128
"""Of the teacher's images."""


def main() -> None:
    """Train and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="folders with train/, or names")
    parser.add_argument("--teacher", required=True, help="ARCHITECTURE@FILE, with a third stage")
    parser.add_argument("--student", default="vit_tiny_patch16_224{patch_size: 8, depth: 6}")
    parser.add_argument("--side", type=int, default=64, help="of the student's images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("start"))
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    name, _, init = chosen.teacher.partition("@")
    teacher = create_backbone(name, init=init, image_size=SIDE).eval()
    student = open_backbone(f"{chosen.student}@scratch", image_size=chosen.side).eval()
    learn(student, teacher, chosen)
    recipe = load_recipe(overrides=[f"backbone={student.name}", f"data.image_size={chosen.side}"])
    recipe = replace(recipe, backbone_options=student.options)
    student.eval().to(memory_format=torch.contiguous_format)
    export(student, chosen.out, recipe, {"rows": []})


def learn(student: Backbone, teacher: Backbone, chosen: argparse.Namespace) -> None:
    """Distil; a line for each tenth of the training."""
    (view, _) = augmentations_of("fine_grained")
    views = RandomViews(SIDE, (view,), (None,))
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
    there = stages(teacher, torch.zeros(2, 3, SIDE, SIDE))[1:4]
    here = alike(stages(student, torch.zeros(2, 3, chosen.side, chosen.side)), there)
    widths = [(a.shape[1], b.shape[1]) for a, b in here]
    heads = nn.ModuleList(
        nn.Linear(a, b) for a, b in [*widths, (student.num_features, widths[-1][1])]
    )
    student.train().to(memory_format=torch.channels_last)
    weights = [*student.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, chosen.lr, weight_decay=0.05)
    for step, turn in enumerate(turns):
        done = step / len(turns)
        rate = min(1.0, done / 0.1) * (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = chosen.lr * rate
        pixels = next(loaders[turn])["images"][:, 0]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                there = stages(teacher, teacher.normalize(pixels))[1:4]
            images = F.interpolate(student.normalize(pixels), size=chosen.side, mode="area")
            end, maps = student.model.forward_intermediates(images, norm=True)
            pairs = [(rows(a), rows(b)) for a, b in alike(maps, there)]
            pairs.append((student.model.forward_head(end), there[-1].mean(dim=(2, 3))))
            losses = [error(head(a), b) for head, (a, b) in zip(heads, pairs, strict=True)]
            loss = torch.stack(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, len(turns) // 10) == 0:
            print(f"step {step}/{len(turns)}, loss {loss.item():.3f}", flush=True)


def stages(backbone: Backbone, images: Tensor) -> list[Tensor]:
    """All maps of a network, the largest first; of a transformer those behind its blocks."""
    with torch.no_grad():
        return backbone.model.forward_intermediates(images, intermediates_only=True)


def alike(maps: list[Tensor], wanted: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each wanted map that has as many cells as one of these, with the last such one."""
    found = {there.shape[-2:]: there for there in maps}
    return [(found[w.shape[-2:]], w) for w in wanted if w.shape[-2:] in found]


def rows(found: Tensor) -> Tensor:
    """A map (b, d, y, x) as one row (d,) for each of its cells."""
    return found.flatten(2).mT.flatten(0, 1)


def error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of (n, d) to what is wanted, in its standard deviations."""
    wanted = wanted.float()
    return F.mse_loss(found.float(), (wanted - wanted.mean(0)) / (wanted.std(0) + 1e-3))


if __name__ == "__main__":
    main()
