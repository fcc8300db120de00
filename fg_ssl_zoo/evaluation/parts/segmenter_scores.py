"""How the network of few-shot part segmentation is judged: pixels found, true, and both."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.parts.segmenter import CHUNK, Segmenter, map_pictures
from fg_ssl_zoo.evaluation.parts.truth import PartView, overlaps, planes
from fg_ssl_zoo.layers.decoder import enlarged
from fg_ssl_zoo.ops.distributed import rank, world_size


def picture_counts(
    logits: Float[Tensor, "1 c _ _"], truth: UInt8[np.ndarray, "*p h w"], *, exclusive: bool
) -> Int64[Tensor, "3 c"]:
    """`overlaps` of one picture at the size of its own mask.

    Exclusive parts are the largest logit's; independent ones are found above probability one half,
    each by itself. The released test takes the largest logit there too, so that of two parts which
    overlap one is always missed.
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
    """`overlaps` of all pictures for several decoders, which share the maps of each picture.

    Args:
        segmenter: Its backbone is read, its own decoder is not.
        decoders: In evaluation mode.
        images: The set.
        indices: Which of them; each process takes a share, every process gets all.
        view: How they are seen.
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
    """`overlaps` of pictures whose maps are known, at the size of each mask, on the CPU."""
    with torch.no_grad(), accelerator.autocast():
        logits = decoder(maps.to(accelerator.device))
    counts = [
        picture_counts(row, known, exclusive=exclusive)
        for row, known in zip(logits.split(1), truth, strict=True)
    ]
    return torch.stack(counts).cpu()
