"""Features of the pixels of many images, read in fixed blocks."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.hypercolumns import maps_of, stacked
from fg_ssl_zoo.data.datasets import image_name
from fg_ssl_zoo.data.fixed_views import WholeView
from fg_ssl_zoo.data.loader import image_loader
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.parts.foreground import saliency_of
from fg_ssl_zoo.parts.options import Discovery

BLOCK = 16
"""Number of images read and clustered together; hypercolumns of a ResNet-50 then need 0.5 GB."""


@dataclass(frozen=True)
class Block:
    """Features of a block of images.

    Attributes:
        number: Number of the block.
        indices: Numbers of its b readable images.
        features: (b, n, d) float32.
        saliency: (b, n) in 0..1, if the foreground is separated.
        flat: (b,) whether all pixels of an image have the same colour.
    """

    number: int
    indices: list[int]
    features: Tensor
    saliency: Tensor | None
    flat: Tensor


@dataclass(eq=False)
class Pixels:
    """Reads the images of a discovery; arguments as for `discover_parts`."""

    backbone: Backbone
    images: Images
    accelerator: Accelerator
    how: Discovery
    num_workers: int

    def __post_init__(self) -> None:
        self.layers = self.how.layers_of(self.backbone)
        self.num_blocks = -(-len(self.images) // BLOCK)

    def indices(self, block: int) -> range:
        """Images of a block."""
        return range(block * BLOCK, min((block + 1) * BLOCK, len(self.images)))

    def seed(self, index: int) -> int:
        """Seed of an image: a hash of its name and the seed."""
        text = f"{self.how.seed} {image_name(self.images, index)}"
        digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=7)
        return int.from_bytes(digest.digest())

    def read(self, blocks: Sequence[int]) -> Iterator[Block]:
        """Read these blocks in ascending order, with one loader."""
        loader = image_loader(
            self.images,
            WholeView(self.backbone.image_size, self.backbone.interpolation),
            [index for block in blocks for index in self.indices(block)],
            batch_size=BLOCK,  # all blocks except the last one are full
            num_workers=self.num_workers,
            title="parts",
        )
        for block, batch in zip(blocks, loader, strict=True):
            if not batch:
                yield Block(block, [], torch.zeros(0, 0, 0), None, torch.zeros(0, dtype=torch.bool))
                continue
            pixels = batch["image"].to(self.accelerator.device, non_blocking=True)
            with self.accelerator.autocast():
                found, saliency = self._features(self.backbone.normalize(pixels))
            features = found.flatten(2).mT.contiguous()
            indices = batch["index"].tolist()
            self._check(features, indices)
            flat = (pixels == pixels[:, :1, :1]).flatten(1).all(dim=1)
            yield Block(block, indices, features, saliency, flat)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        how = self.how
        wanted = (*self.layers, "attention") if how.foreground else self.layers
        maps = maps_of(self.backbone, images, wanted, stride=how.stride)
        saliency = saliency_of(maps.pop(), how.heads) if how.foreground else None
        size = how.size if self.backbone.patch_size is None else None
        return stacked(maps, size, normalize=how.normalize), saliency

    def _check(self, features: Tensor, indices: Sequence[int]) -> None:
        bad = (~features.isfinite().all(dim=2).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            names = ", ".join(image_name(self.images, indices[row]) for row in bad[:5])
            raise ValueError(
                f"{self.backbone.init}: the features of {names} are not finite; "
                "try speed.precision=fp32, or check the weights"
            )
        count = features.shape[1]
        if self.how.num_parts > count:
            raise ValueError(
                f"num_parts: {self.how.num_parts} parts of the {count} features that "
                f"{self.backbone.name} has of an image; use 1 to {count}"
            )
