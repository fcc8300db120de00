"""Scores of few-shot part segmentation: predicted pixels, annotated pixels, and their overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.parts.segmenter import CHUNK, Segmenter, map_pictures
from fg_ssl_zoo.evaluation.parts.truth import (
    PartView,
    iou,
    mean_iou_values,
    occurring,
    overlaps,
    planes,
)
from fg_ssl_zoo.layers.decoder import enlarged
from fg_ssl_zoo.ops.distributed import rank, world_size


def picture_counts(
    logits: Float[Tensor, "1 c _ _"], truth: UInt8[np.ndarray, "*p h w"], *, exclusive: bool
) -> Int64[Tensor, "3 c"]:
    """`overlaps` of one image at the size of its own mask.

    Exclusive parts: the largest logit is predicted. Independent parts: each is predicted if its
    probability is above one half. The released code takes the largest logit here too, so that it
    always misses one of two overlapping parts.
    """
    found = enlarged(logits, (truth.shape[-2], truth.shape[-1]))[0]
    known = torch.from_numpy(np.ascontiguousarray(truth)).to(found.device).long()
    if exclusive:
        return overlaps(planes(found.argmax(dim=0), len(found)), planes(known, len(found)))
    return overlaps(found > 0, known > 0)


def set_counts(
    segmenter: Segmenter,
    decoders: Sequence[nn.Module],
    images: Images,
    indices: list[int],
    view: PartView,
    accelerator: Accelerator,
) -> Int64[Tensor, "r n 3 c"]:
    """`overlaps` of all images for several decoders, which read the same maps.

    Args:
        segmenter: Its backbone computes the maps; its decoder is not used.
        decoders: Decoders in evaluation mode.
        images: The data set.
        indices: Numbers of the images; each process computes a share and receives all.
        view: Crop and resolution of the images.
        accelerator: Device and precision.
    """
    mine = indices[rank() :: world_size()]
    found: list[tuple[int, Tensor]] = []
    for start in range(0, len(mine), CHUNK):
        some = mine[start : start + CHUNK]
        seen = [view(images[index]) for index in some]
        pixels = torch.from_numpy(np.stack([image for image, _ in seen]))
        maps = map_pictures(segmenter, pixels, accelerator)
        counts = [
            map_counts(decoder, maps, [truth for _, truth in seen], accelerator, view.exclusive)
            for decoder in decoders
        ]
        found += zip(some, torch.stack(counts, dim=1), strict=True)
    if world_size() > 1:
        found = gather_object(found)
    by_index = dict(found)
    return torch.stack([by_index[index] for index in indices], dim=1)


def map_counts(
    decoder: nn.Module,
    maps: Float[Tensor, "n d _ _"],
    truth: Sequence[UInt8[np.ndarray, "*p _ _"]],
    accelerator: Accelerator,
    exclusive: bool,
) -> Int64[Tensor, "n 3 c"]:
    """`overlaps` of images from stored maps, at the size of each mask, on the CPU."""
    with torch.no_grad(), accelerator.autocast():
        logits = decoder(maps.to(accelerator.device))
    counts = [
        picture_counts(row, known, exclusive=exclusive)
        for row, known in zip(logits.split(1), truth, strict=True)
    ]
    return torch.stack(counts).cpu()


# --------------------------------------------------------------------------- of a list


@dataclass(frozen=True)
class Draw:
    """The result of training on one list of images.

    Attributes:
        pictures: Names of the images.
        held_out: Number of these images that were used to choose the checkpoint.
        map_side: Side of the map that the decoder reads.
        checkpoint: Number of the scored checkpoint, from 1; 0 for the last one, or if each fold
            has its own.
        scored: For each fold, which test images are scored, and the counts of all test images. A
            single entry without folds.
    """

    pictures: list[str]
    held_out: int
    map_side: int
    checkpoint: int
    scored: list[tuple[Bool[np.ndarray, " m"], Int64[Tensor, "m 3 c"]]]

    def values(self, skip: int) -> Float64[np.ndarray, " m"]:
        """Values of the test images; their mean is the mean IoU, averaged over the folds."""
        found = np.zeros(len(self.scored[0][0]))
        for rows, counts in self.scored:
            weight = len(rows) / rows.sum() / len(self.scored)
            found[rows] += weight * mean_iou_values(counts[torch.from_numpy(rows)], skip=skip)
        return found

    def fold_values(self, skip: int) -> list[float]:
        """Mean IoU of each fold."""
        return [
            float(mean_iou_values(counts[torch.from_numpy(rows)], skip=skip).mean())
            for rows, counts in self.scored
        ]


def background_only(counts: Int64[Tensor, "m 3 c"], skip: int = 0) -> float:
    """The mean IoU if every pixel is predicted as background."""
    true = counts[:, 2].sum(dim=0)
    share = true[0] / true.sum()
    return 0.0 if skip else float(share / occurring(counts).sum())


def class_iou(draws: list[Draw], there: Bool[Tensor, " c"]) -> list[float | None]:
    """IoU of each class, mean over draws and folds; `None` if no mask contains it."""
    found = [
        iou(counts[torch.from_numpy(rows)].sum(dim=0).double())
        for draw in draws
        for rows, counts in draw.scored
    ]
    mean = torch.stack(found).nanmean(dim=0)
    return [float(value) if seen else None for value, seen in zip(mean, there, strict=True)]


def mean_over_pictures(counts: Int64[Tensor, "m 3 c"], skip: int) -> float:
    """Mean over images of the mean IoU of the classes that each image shows; first list only."""
    rows = [
        iou(picture[:, shown].double()).mean()
        for picture in counts[:, :, skip:]
        if (shown := picture[2] > 0).any()
    ]
    return float(torch.stack(rows).mean())
