"""PMG: train early stages on jigsaws of small tiles and the last on whole images, with labels.

Paper: Du, Chang, Bhunia, Xie, Ma, Song & Guo, 2020 (arXiv 2003.03836). The supervised reference.

    views      a random crop x, its label y, and for each n of 8, 4, 2 an order of n x n tiles
    embed      e_k(x) = max over places of block_k(feature map k of x), k = 1, 2, 3
    parts      CE(classifier_k(e_k(jigsaw of x with n_k x n_k tiles)), y): n = 8, 4, 2
    whole      2 CE(classifier([e_1(x); e_2(x); e_3(x)]), y)
    classify   the class with the largest sum of the four classifiers' logits on x

An early stage can use only the details of small tiles; later stages build on its features.

Deviations:
- one step on the sum of the four losses (`updates: together`); the paper makes four successive
  steps on each batch. `updates: in_turn` makes four steps on four batches, so one epoch contains a
  quarter of the paper's steps;
- a head, with its BatchNorm statistics, reads only the images of its own loss (official code: all
  images pass all heads);
- the crop is a square of 448/550 of the shorter side without padding (official code: the image is
  first resized to a square and padded by 8 pixels);
- each image has its own order (`per_sample`; official code: one order per batch);
- pixels are normalised with the backbone's mean and std (official code: 0.5);
- norms and biases have no weight decay.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import parameters_behind
from fg_ssl_zoo.config import Count, Positive
from fg_ssl_zoo.data.sample import Sample, Views
from fg_ssl_zoo.data.views import crop_resize
from fg_ssl_zoo.method import Batch, Classifies, Method, MethodOutput
from fg_ssl_zoo.ops import permutations

CROP = 448 / 550
"""Side of the crop as a share of the shorter side: 448 of 550 pixels in the paper."""


class PMG(Method, Classifies):
    """Progressive multi-granularity training around a backbone.

    Args:
        backbone: The network to train; gives the feature maps. Layers behind the last map (a ViT's
            norm) are frozen.
        num_classes: Number of classes; `pretrain` takes it from the data.
        grids: Number of tiles along a side of the jigsaw of each stage, first stage first.
        stages: Indices of the feature maps, in rising order, one for each grid. When not given: the
            last three of a CNN, as in the paper; for a ViT the blocks that end each third.
        hidden_size: Width of the hidden layers of blocks and classifiers.
        embedding_size: Size of the embeddings `e_k`.
        updates: `together` sums the losses in one step; `in_turn` uses one of the losses in each
            step.
        per_sample: Whether each image has a tile order of its own; otherwise all images of a
            process's batch share one.
        whole_weight: Weight of the loss on the whole image.
        backbone_rate: Learning rate of the backbone as a share of the heads' rate; 0.0002 of 0.002
            in the paper.
    """

    needs_labels = True
    papers = (
        "Du, Chang, Bhunia, Xie, Ma, Song, Guo: Fine-Grained Visual Classification via Progressive "
        "Multi-Granularity Training of Jigsaw Patches. ECCV 2020, arXiv 2003.03836.",
    )
    figures = (
        "88 % accuracy on 5 classes of cassava leaves (arXiv 2107.13973)",
        "89.6 % on CUB-200-2011 with an ImageNet start at 448 px (authors, five runs)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: Annotated[int, Ge(2)],
        grids: Annotated[tuple[Count, ...], MinLen(1)] = (8, 4, 2),
        stages: tuple[int, ...] | None = None,
        hidden_size: Count = 512,
        embedding_size: Count = 1024,
        updates: Literal["together", "in_turn"] = "together",
        per_sample: bool = True,
        whole_weight: Positive = 2.0,
        backbone_rate: Positive = 0.1,
    ) -> None:
        super().__init__(backbone)
        self.stages = _stages(backbone, len(grids), stages)
        for parameter in parameters_behind(backbone, self.stages[-1]):
            parameter.requires_grad_(False)
        widths = [backbone.model.feature_info[stage]["num_chs"] for stage in self.stages]
        self.blocks = nn.ModuleList(block(w, hidden_size, embedding_size) for w in widths)
        self.classifiers = nn.ModuleList(
            classifier(embedding_size * count, hidden_size, num_classes)
            for count in [*[1] * len(grids), len(grids)]
        )
        self.grids, self.per_sample = grids, per_sample
        self.updates, self.whole_weight = updates, whole_weight
        self.backbone_rate = backbone_rate
        self.turn: Tensor
        self.register_buffer("turn", torch.zeros((), dtype=torch.int64))

    def views(self, image_size: int) -> Views:
        """`image` (s, s, 3), `label`, and `order_8`, `order_4`, `order_2`.

        Raises:
            ValueError: A size that the tiles do not divide.
        """
        step = math.lcm(*self.grids)
        if image_size % step or image_size < step:
            fitting = max(step, round(image_size / step) * step)
            raise ValueError(
                f"data.image_size: {image_size} is not divisible into {step} tiles a side; "
                f"use {fitting}"
            )
        return LabelledPuzzle(image_size, self.grids)

    def forward(self, batch: Batch) -> MethodOutput:
        """The weighted sum of the cross entropies of this step."""
        images, labels, whole = batch["image"], batch["label"], len(self.grids)
        due = range(whole + 1) if self.updates == "together" else [int(self.turn)]
        terms, metrics = [], {}
        for turn in due:
            if turn == whole:
                seen = self.backbone.normalize(images)
                logits = self.classifiers[-1](torch.cat(self.embed(seen), dim=1))
                right = (logits.argmax(dim=1) == labels).float().mean()
                terms.append(self.whole_weight * F.cross_entropy(logits, labels))
                metrics |= {"loss/whole": terms[-1].detach(), "train/accuracy": right.detach()}
            else:
                n = self.grids[turn]
                orders = batch[f"order_{n}"]
                orders = orders if self.per_sample else orders[:1].expand_as(orders)
                seen = self.backbone.normalize(shuffle_tiles(images, orders))
                (embedding,) = self.embed(seen, turn)
                terms.append(F.cross_entropy(self.classifiers[turn](embedding), labels))
                metrics[f"loss/grid_{n}"] = terms[-1].detach()
        loss = torch.stack(terms).sum()
        if self.updates == "in_turn":  # other losses have a zero gradient, as in the paper's code
            loss = loss + 0 * sum(p.sum() for p in self.parameters() if p.requires_grad)
        return MethodOutput(loss, metrics)

    def embed(self, images: Float[Tensor, "b 3 h w"], k: int | None = None) -> list[Tensor]:
        """`e_k` (b, e) of stage `k` of normalised images, of all stages when it is not given."""
        chosen = range(len(self.stages)) if k is None else [k]
        maps = self.backbone.feature_maps(images, [self.stages[i] for i in chosen])
        return [self.blocks[i](found).amax((2, 3)) for i, found in zip(chosen, maps, strict=True)]

    def classify(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Sum of the logits of all classifiers on whole images: the paper's combined score."""
        parts = self.embed(images)
        seen = [*parts, torch.cat(parts, dim=1)]
        return torch.stack([f(e) for f, e in zip(self.classifiers, seen, strict=True)]).sum(dim=0)

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """The heads at the full learning rate, the backbone at a share of it."""
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        yield {"params": trained, "lr_scale": self.backbone_rate}
        yield {"params": [*self.blocks.parameters(), *self.classifiers.parameters()]}

    def on_step_end(self, progress: float) -> None:
        """Select the granularity of the next step."""
        self.turn.add_(1).remainder_(len(self.grids) + 1)


def _stages(backbone: Backbone, count: int, stages: tuple[int, ...] | None) -> list[int]:
    """Numbers of the feature maps, counted from the first.

    Raises:
        ValueError: Their number differs from that of the grids, they do not rise, or do not exist.
    """
    depth = len(getattr(backbone.model, "feature_info", ()))
    if stages is None and backbone.patch_size:
        stages = tuple((k + 1) * depth // count - 1 for k in range(count))
    found = list(range(-count, 0)) if stages is None else list(stages)
    if len(found) != count:
        raise ValueError(
            f"stages: {len(found)} feature maps for {count} grids; give one for each grid"
        )
    numbers = [number + depth if number < 0 else number for number in found]
    if not all(0 <= number < depth for number in numbers):
        raise ValueError(f"stages: {backbone.name} has {depth} feature maps; there is no {found}")
    if numbers != sorted(set(numbers)):
        raise ValueError(f"stages: {found} is not in rising order; {sorted(set(numbers))} is")
    return numbers


def block(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two convolutions on a feature map, each with BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(width, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Conv2d(hidden, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


def classifier(width: int, hidden: int, num_classes: int) -> nn.Sequential:
    """BatchNorm and two linear layers with BatchNorm and ELU between them."""
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Linear(width, hidden),
        nn.BatchNorm1d(hidden),
        nn.ELU(inplace=True),
        nn.Linear(hidden, num_classes),
    )


def shuffle_tiles(
    images: UInt8[Tensor, "b h w c"], orders: Int64[Tensor, "b t"]
) -> UInt8[Tensor, "b h w c"]:
    """Put tile `orders[b, i]` of each image at position i of its grid, row by row."""
    b, h, w, c = images.shape
    n = math.isqrt(orders.shape[1])
    tiles = images.reshape(b, n, h // n, n, w // n, c).transpose(2, 3).flatten(1, 2)
    rows = torch.arange(b, device=images.device)[:, None]
    grid = tiles[rows, orders].unflatten(1, (n, n))  # (b, n, n, h / n, w / n, c)
    return grid.transpose(2, 3).reshape(b, h, w, c)


@dataclass(frozen=True)
class LabelledPuzzle:
    """One random crop with its label, and an order of its tiles for every grid.

    Attributes:
        size: Side of the crop in the network, in pixels.
        grids: Tiles along a side.
    """

    size: int
    grids: tuple[int, ...]

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """The crop, label and orders of one sample."""
        assert "label" in sample  # pretrain refuses images without labels
        height, width = sample["image"].shape[:2]
        side = max(1, round(min(height, width) * CROP))
        y, x = (int(generator.integers(0, room - side + 1)) for room in (height, width))
        crop = crop_resize(sample["image"], (x, y, side, side), self.size)
        image = cv2.flip(crop, 1) if generator.random() < 0.5 else crop
        orders = {f"order_{n}": permutations.pmg(generator, n) for n in self.grids}
        return {"image": image, "label": sample["label"], **orders}
