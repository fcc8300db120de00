"""Part discovery: cluster the features of pixels, for each image or for the whole data set.

Paper: Saha & Maji, 2023 (PARTICLE, arXiv 2309.13822), section on part discovery.

    features    hypercolumns of a CNN, keys of a ViT (`backbones/hypercolumns.py`)
    foreground  (ViT) clusters with high attention of the class token (`parts/foreground.py`)
    centres     k-means on the (foreground) features of an image, or of a sample of the data set
    maps        the part with the nearest centre, after distances were resized to the map

Images are read in fixed blocks (`parts/pixels.py`), and process r computes the blocks r, r + world,
..., so the maps are equal to the bit for any number of processes. Random draws are seeded by the
seed and the name of the image.

Deviations from the release:
- k-means has fewer restarts, and the same draws in every run;
- a clustering of the data set reads a sample of each image instead of chunks of 30 in folder order;
- saliency comes from the same forward pass as the keys;
- a cluster needs votes of the images that contain it, not of all images;
- if no cluster has enough votes, the most salient one is the object;
- a majority filter replaces the dense CRF.
"""

import logging
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from jaxtyping import Float, UInt8
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.data.datasets import file_state, fingerprint
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.ops.clustering import kmeans, squared_distances
from fg_ssl_zoo.ops.distributed import rank, world_size
from fg_ssl_zoo.ops.label_maps import majority
from fg_ssl_zoo.ops.pca import principal_axes
from fg_ssl_zoo.parts.foreground import split_foreground
from fg_ssl_zoo.parts.options import Discovery
from fg_ssl_zoo.parts.pixels import BLOCK, Block, Pixels
from fg_ssl_zoo.parts.store import PartStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Centres:
    """Cluster centres that pixels are compared with.

    Attributes:
        parts: (k, d) centres of parts.
        background: (j, d) centres of the background; j may be 0.
        mean, axes: (d0,), (d0, d) of the principal components, if they are used.
    """

    parts: Tensor
    background: Tensor
    mean: Tensor | None = None
    axes: Tensor | None = None


def discover_parts(
    backbone: Backbone,
    images: Images,
    accelerator: Accelerator,
    how: Discovery | None = None,
    *,
    learn_from: Images | None = None,
    num_workers: int = 0,
    cache: Path | None = None,
) -> UInt8[Tensor, "n m m"]:
    """Part maps of all images, one row per image, equal on all processes.

    A map covers the whole image, resized to a square. Without `foreground`, parts are 0 to
    num_parts - 1; with it, they are 1 to num_parts, and 0 is the background. The map is zero for an
    image of a single colour, and for an unreadable image, which the loader replaces.

    Args:
        backbone: Backbone without a DDP wrapper; reads images of its own size.
        images: n images.
        accelerator: Its device and precision are used.
        how: Options; the defaults of `Discovery` when not given.
        learn_from: Other images from which the clusters are computed, so that a number means the
            same part in both data sets (scope `dataset` only); the images themselves when not
            given.
        num_workers: Number of loader processes.
        cache: Folder of stored maps, by a fingerprint of weights, images and options; by default
            `assets/fg_ssl_zoo` in the Hugging Face cache. An interrupted discovery continues there.

    Raises:
        ValueError: There are more parts than features of an image, the network does not have a
            layer or option, or features are not finite.
    """
    how = how or Discovery()
    if how.foreground and backbone.patch_size is None:
        raise ValueError(f"foreground: {backbone.name} has no attention; use foreground=False")
    if learn_from is not None and how.scope != "dataset":
        raise ValueError(f"scope: '{how.scope}' cannot use clusters of other images; use dataset")
    others = None if learn_from is images else learn_from
    work = _Work(backbone, images, accelerator, how, num_workers, cache, others)
    accelerator.wait_for_everyone()
    kept = work.store.read()
    if all(gather_object([kept is not None])):  # no process writes before all have looked
        assert kept is not None
        return kept["maps"]
    began = time.perf_counter()
    with evaluating(backbone), torch.no_grad():
        centres = work.source.centres() if how.scope == "dataset" else None
        mine = work.maps(centres)
    blocks: dict[int, Tensor] = {}
    for share in gather_object([mine]):
        blocks |= share
    empty = torch.zeros(0, how.size, how.size, dtype=torch.uint8)
    parts = torch.cat([empty, *(blocks[block] for block in sorted(blocks))])
    if accelerator.is_main_process:
        work.store.finish({"maps": parts, **(work.store.read("centres") or {})})
        seconds = time.perf_counter() - began
        _log.info("parts     %d images in %.0f s (scope %s)", len(parts), seconds, how.scope)
    accelerator.wait_for_everyone()
    return parts


@dataclass(frozen=True)
class _Sample:
    """Some pixels of n images.

    Attributes:
        features: (n, p, d), on the CPU like the others.
        saliency: (n, p), if the foreground is separated.
        images: (n,) numbers of the images.
    """

    features: Tensor
    saliency: Tensor | None
    images: Tensor

    def first(self, count: int) -> "_Sample":
        """The sample of the first `count` images."""
        salient = None if self.saliency is None else self.saliency[:count]
        return _Sample(self.features[:count], salient, self.images[:count])


def _state(images: Images) -> list[str]:
    return [fingerprint(images), file_state(images)]


@dataclass(eq=False)
class _Work(Pixels):
    """One discovery: its images, this process's blocks and its files."""

    cache: Path | None
    learn_from: Images | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.mine = range(rank(), self.num_blocks, world_size())
        about = {
            **identity(self.backbone),
            "pictures": _state(self.images),
            "how": {**asdict(self.how), "layers": self.layers},
            "precision": self.accelerator.mixed_precision,
            "format": 3,
        }
        self.source = self
        if self.learn_from is not None:
            self.source = replace(self, images=self.learn_from, learn_from=None)
            about["learnt_from"] = _state(self.learn_from)
        self.store = PartStore(about, self.cache)

    # ----------------------------------------------------------------------- centres

    def centres(self) -> Centres:
        """Centres for the whole data set, from a sample of pixels; equal on every process."""
        kept = self.store.read("centres") or self._centres_of_finished()
        if all(gather_object([kept is not None])):
            assert kept is not None
            return Centres(**self._to_device(kept))
        features, saliency, images = self._sample()
        found = vars(self._cluster(features, saliency, images))
        tensors: dict[str, Tensor] = {
            key: value for key, value in found.items() if value is not None
        }
        if world_size() > 1:  # rank 0's copy, since rounding can differ
            tensors = {key: self._of_first(value) for key, value in tensors.items()}
        if self.accelerator.is_main_process:
            self.store.keep("centres", tensors)
        return Centres(**tensors)

    def _centres_of_finished(self) -> dict[str, Tensor] | None:
        """The centres stored beside complete maps, if any."""
        whole = self.store.read() or {}
        return {key: whole[key] for key in whole.keys() - {"maps"}} or None

    def _sample(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Features (s, d), saliency (s,) and image (s,) of some pixels of every image."""
        gathered: list[_Sample] = [one for one in gather_object([self._own_sample()]) if one]
        if not gathered:
            raise ValueError(f"{self.images.name}: none of the images can be decoded")
        images, order = torch.cat([one.images for one in gathered]).sort()
        device, pixels = self.accelerator.device, gathered[0].features.shape[1]
        features = torch.cat([one.features for one in gathered])[order].flatten(0, 1).to(device)
        salient = [one.saliency for one in gathered if one.saliency is not None]
        saliency = torch.cat(salient)[order].flatten().to(device) if salient else None
        return features, saliency, images.repeat_interleave(pixels)

    def _own_sample(self) -> "_Sample | None":
        """The sample of this process's images; `None` if none is readable.

        It is written into preallocated tensors. Small tensors between the large ones of the blocks
        would fragment the memory (22 GB for a ResNet-50's layer3).
        """
        each = -(-self.how.sample // max(len(self.images), 1))
        most = sum(len(self.indices(block)) for block in self.mine)
        found: _Sample | None = None
        done = 0
        for block in self.read(self.mine):
            count, width = block.features.shape[1:]
            for row, index in enumerate(block.indices):
                if found is None:
                    shape, shown = (most, min(each, count)), block.saliency is not None
                    found = _Sample(
                        torch.empty(*shape, width),
                        torch.empty(shape) if shown else None,
                        torch.empty(most, dtype=torch.int64),
                    )
                generator = torch.Generator().manual_seed(self.seed(index))
                chosen = torch.randperm(count, generator=generator)[:each]
                chosen = chosen.to(block.features.device)
                found.features[done] = block.features[row, chosen]
                if found.saliency is not None and block.saliency is not None:
                    found.saliency[done] = block.saliency[row, chosen]
                found.images[done] = index
                done += 1
        return found and found.first(done)

    def _cluster(self, features: Tensor, saliency: Tensor | None, images: Tensor) -> Centres:
        mean = axes = None
        if self.how.pca is not None:
            mean, axes = principal_axes(features, self.how.pca)
            features = (features - mean) @ axes
        if self.how.num_parts > len(features):
            raise ValueError(
                f"num_parts: {self.how.num_parts} parts of a sample of {len(features)} pixels; "
                f"use sample={self.how.num_parts * 100}"
            )
        parts, background = self._parts_and_background(
            features, saliency, images, self.how.seed, self.how.restarts
        )
        return Centres(parts, background, mean, axes)

    def _parts_and_background(
        self, features: Tensor, saliency: Tensor | None, images: Tensor, seed: int, restarts: int
    ) -> tuple[Tensor, Tensor]:
        """Centres of parts (k, d), fewer for a small object, and of the background (j, d)."""
        background = features[:0]
        if saliency is not None:
            how = self.how
            split = split_foreground(
                features, saliency, images, seed, threshold=how.threshold, votes=how.votes
            )
            features, background = features[split.foreground], split.background
        num_parts = min(self.how.num_parts, len(features))
        found = kmeans(features[None], num_parts, [seed], restarts=restarts)
        return found.centres[0], background

    @staticmethod
    def _of_first(tensor: Tensor) -> Tensor:
        found = broadcast(tensor.contiguous())
        assert isinstance(found, Tensor)
        return found

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.accelerator.device) for key, value in tensors.items()}

    # ----------------------------------------------------------------------- maps

    def maps(self, centres: Centres | None) -> dict[int, Tensor]:
        """Maps (b, m, m) uint8 of this process's blocks, read from files or computed."""
        side = self.how.size
        empty = torch.zeros(len(self.mine), BLOCK, side, side, dtype=torch.uint8)  # made once
        kept = {block: self.store.read(f"block_{block}") for block in self.mine}
        maps = {block: found["maps"] for block, found in kept.items() if found}
        for block in self.read([block for block in self.mine if block not in maps]):
            rows = self.indices(block.number)
            parts = empty[self.mine.index(block.number), : len(rows)]
            if block.indices:
                found = self._maps(block, centres).to("cpu", torch.uint8)
                parts[torch.tensor(block.indices) - rows.start] = found
            self.store.keep(f"block_{block.number}", {"maps": parts})
            maps[block.number] = parts
        return maps

    def _maps(self, block: Block, centres: Centres | None) -> Tensor:
        features, saliency, indices = block.features, block.saliency, block.indices
        if centres is not None:
            if centres.mean is not None and centres.axes is not None:
                features = (features - centres.mean) @ centres.axes
            found = self._nearest(features, centres.parts[None], centres.background[None])
        elif saliency is None:
            seeds = [self.seed(index) for index in indices]
            clusters = kmeans(
                features, self.how.num_parts, seeds, coarse=4, restarts=self.how.restarts
            )
            found = self._nearest(features, clusters.centres, clusters.centres[:, :0])
        else:  # the number of centres differs between images
            found = torch.cat(
                [
                    self._map_of_one(features[row], saliency[row], self.seed(index))
                    for row, index in enumerate(indices)
                ]
            )
        found[block.flat] = 0  # such features differ only by position and distance to the border
        return majority(found, self.how.smooth) if self.how.smooth > 1 else found

    def _map_of_one(self, features: Tensor, saliency: Tensor, seed: int) -> Tensor:
        images = torch.zeros(len(features), dtype=torch.int64)
        parts, background = self._parts_and_background(
            features, saliency, images, seed, self.how.restarts
        )
        return self._nearest(features[None], parts[None], background[None])

    def _nearest(
        self,
        features: Float[Tensor, "b n d"],
        parts: Float[Tensor, "#b k d"],
        background: Float[Tensor, "#b j d"],
    ) -> Tensor:
        """Number of the nearest centre at the size of the map; 0 is the background, if any."""
        distances = squared_distances(features, parts)  # (b, k, n)
        if self.how.foreground:
            away = distances.amax(dim=1, keepdim=True) + 1  # no background
            if background.shape[1]:
                away = squared_distances(features, background).amin(dim=1, keepdim=True)
            distances = torch.cat([away, distances], dim=1)
        side = round(distances.shape[2] ** 0.5)
        found = distances.unflatten(2, (side, side))
        if side != self.how.size:
            found = F.interpolate(found, size=(self.how.size,) * 2, mode="bilinear")
        return found.argmin(dim=1)
