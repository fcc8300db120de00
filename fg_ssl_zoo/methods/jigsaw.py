"""Jigsaw: classify the order in which the nine tiles of an image are shown.

Paper: Breiki, Ridzuan & Grandhe, 2021 (arXiv 2107.13973), after Noroozi & Favaro, 2016 (arXiv
1603.09246).

    views      the centre of the image as 3 x 3 tiles, each cropped at random inside its cell and
               made darker or brighter, in the order p of a fixed set
    features   f(tile), the same backbone for all tiles
    loss       cross entropy of W [f(t_p(1)); ...; f(t_p(9))] against the number of p

The gaps between tiles and the brightness changes prevent the network from matching edges and
shades.

Deviations: the orders are chosen greedily to maximise the smallest Hamming distance (the official
code only requires that successive orders differ in every place). Dropout is off in evaluation
(official code: on). Pixels are normalised with the mean and std of later use (official code: not).
"""

from dataclasses import dataclass
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import accept_size, train_up_to_last_map
from fg_ssl_zoo.config import Share
from fg_ssl_zoo.data.sample import Sample, Views
from fg_ssl_zoo.data.views import crop_resize
from fg_ssl_zoo.method import Batch, Method, MethodOutput
from fg_ssl_zoo.ops.permutations import split_tiles, stored_permutations

GRID = 3
TILE = 64 / 75
"""Side of a tile as a share of its cell's: 64 of 75 pixels in the paper's code."""

CENTRE = 225 / 256
"""Share of the shorter side that is cut into tiles."""


class Jigsaw(Method):
    """Permutation classification around a backbone.

    Args:
        backbone: The network to train; computes the features of one tile at a time.
        num_permutations: Number of tile orders to classify; 100 in the paper, 200 in the code it is
            based on.
        pool: Side of the grid to which the last feature map is averaged; 2 in the paper's code for
            a ResNet-18. 0 takes the pooled features, as a ViT always does.
        dropout: Dropout before the classifier.
        brightness: Half-width of the brightness change: each tile is multiplied by a factor drawn
            from 1 - b to 1 + b.
        tile_norm: Whether each tile is scaled to mean 0 and std 1 per channel, so that colour
            cannot be used as a shortcut.
    """

    papers = (
        "Breiki, Ridzuan, Grandhe: Self-Supervised Learning for Fine-Grained Image Classification. "
        "arXiv 2107.13973, 2021.",
        "Noroozi, Favaro: Unsupervised Learning of Visual Representations by Solving Jigsaw "
        "Puzzles. ECCV 2016, arXiv 1603.09246.",
    )
    figures = (
        "about 68 % accuracy on 5 classes of cassava leaves, ResNet-18, fine-tuned "
        "(arXiv 2107.13973)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_permutations: Annotated[int, Ge(2)] = 100,
        pool: Annotated[int, Ge(0)] = 2,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
        brightness: Share = 0.5,
        tile_norm: bool = False,
    ) -> None:
        super().__init__(backbone)
        side = self.side_of_tiles(backbone.image_size)
        accept_size(backbone, side)
        self.orders = stored_permutations(num_permutations)
        self.pool = 0 if backbone.patch_size else pool
        self.brightness, self.tile_norm = brightness, tile_norm
        width = backbone.num_features
        if self.pool:
            channels, _ = train_up_to_last_map(backbone, side)
            width = channels * self.pool**2
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(GRID**2 * width, num_permutations)

    def side_of_tiles(self, image_size: int) -> int:
        """Side of a tile in pixels.

        Raises:
            ValueError: A size that three tiles do not divide, or tiles smaller than a patch.
        """
        if image_size % GRID or image_size < GRID:
            fitting = max(GRID, round(image_size / GRID) * GRID)
            raise ValueError(
                f"data.image_size: {image_size} is not a multiple of {GRID}; {fitting} is"
            )
        patch = self.backbone.patch_size or 1
        tile = round(image_size // GRID * TILE) // patch * patch
        if not tile:
            raise ValueError(
                f"data.image_size: with {image_size} pixels, a tile is smaller than a patch of "
                f"{patch} pixels; use {GRID * int(np.ceil(patch / TILE))}"
            )
        return tile

    def views(self, image_size: int) -> Views:
        """`tiles` (9, t, t, 3) in the order that `permutation` names; errors of `side_of_tiles`."""
        return Tiles(image_size, self.side_of_tiles(image_size), self.orders, self.brightness)

    def forward(self, batch: Batch) -> MethodOutput:
        """Cross entropy over the orders; all tiles of the batch take one pass."""
        tiles = self.backbone.normalize(batch["tiles"].flatten(0, 1))  # (b * 9, 3, t, t)
        features = self.tile_features(standardised(tiles) if self.tile_norm else tiles)
        logits = self.classifier(self.dropout(features.reshape(len(batch["tiles"]), -1)))
        right = (logits.argmax(dim=1) == batch["permutation"]).float().mean()
        loss = F.cross_entropy(logits, batch["permutation"])
        return MethodOutput(loss, {"train/accuracy": right.detach()})

    def tile_features(self, tiles: Float[Tensor, "n 3 t t"]) -> Float[Tensor, "n d"]:
        """Pooled features, or the last map averaged to a grid."""
        if not self.pool:
            return self.backbone(tiles)
        (last,) = self.backbone.feature_maps(tiles, [-1])
        return F.adaptive_avg_pool2d(last, self.pool).flatten(1)


def standardised(tiles: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Mean 0 and std 1 of every channel of every tile."""
    std, mean = torch.std_mean(tiles, dim=(2, 3), keepdim=True)
    return (tiles - mean) / (std + 1e-5)


@dataclass(frozen=True)
class Tiles:
    """Cuts an image into tiles and shows them in a random order of a set.

    Attributes:
        size: Side of the square that is cut, in pixels.
        tile: Side of a tile.
        orders: (p, 9); tile `orders[y][i]` is shown at place i.
        brightness: Factors are drawn from 1 +- this.
    """

    size: int
    tile: int
    orders: np.ndarray
    brightness: float

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """`tiles` (9, t, t, 3) and `permutation`, the number of their order."""
        height, width = sample["image"].shape[:2]
        side = round(min(height, width) * CENTRE)
        box = ((width - side) // 2, (height - side) // 2, side, side)
        cells = split_tiles(crop_resize(sample["image"], box, self.size), GRID)
        room = cells.shape[1] - self.tile
        places = generator.integers(0, room + 1, size=(GRID**2, 2)).tolist()
        factors = generator.uniform(1 - self.brightness, 1 + self.brightness, GRID**2).tolist()
        tiles = [
            cv2.convertScaleAbs(cell[y : y + self.tile, x : x + self.tile], alpha=factor)
            for cell, (y, x), factor in zip(cells, places, factors, strict=True)
        ]
        number = int(generator.integers(len(self.orders)))
        return {"tiles": np.stack(tiles)[self.orders[number]], "permutation": number}
