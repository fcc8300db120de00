"""Contrast of regions instead of whole images (DetCon, PARTICLE).

    vote_cells       region numbers of pixels -> the most frequent one in every cell of a map
    sample_regions   draws the regions of two views that are compared
    pool_regions     mean feature of each region
    region_contrast  the same region in the other view against all others
    num_compared     number of different regions, for the log

The first two work on arrays in the data path, where random draws depend only on the image and the
epoch; the others work on tensors.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Integer, UInt8
from torch import Tensor

from fg_ssl_zoo.ops.distributed import gather, rank
from fg_ssl_zoo.ops.similarity import unit

MOST_REGIONS = 256
"""Largest number of regions in an image; their numbers are 0..255."""

_OUT = -1e9
"""Logit of excluded keys; finite, since a row may have no other keys."""


def vote_cells(mask: UInt8[np.ndarray, "m m"], cells: int) -> UInt8[np.ndarray, "c c"]:
    """The most frequent region in each of cells x cells squares; ties go to the lower number.

    As in google-deepmind/detcon, which average-pools 256 binary masks and takes the argmax.

    Args:
        mask: Region of every pixel; `cells` need not divide its side.
        cells: Side of the feature map.
    """
    square = np.arange(len(mask)) * cells // len(mask)
    place = square[:, None] * cells + square
    votes = np.bincount((place * MOST_REGIONS + mask).ravel(), minlength=cells**2 * MOST_REGIONS)
    return votes.reshape(cells, cells, MOST_REGIONS).argmax(axis=-1).astype(np.uint8)


def sample_regions(
    first: UInt8[np.ndarray, "c c"],
    second: UInt8[np.ndarray, "c c"],
    num_samples: int,
    generator: np.random.Generator,
) -> Int64[np.ndarray, "2 s"]:
    """Draw regions to compare, uniformly and with replacement, the same ones for both views.

    Only regions that both views show are drawn. If there are none, each view draws from its own
    regions; these have no positive and thus no weight in `region_contrast`, but are negatives.

    Args:
        first: Region of every cell of the first view.
        second: Region of every cell of the second view.
        num_samples: Number of draws; 16 in DetCon, 10 in PARTICLE.
        generator: Always consumes `num_samples` random numbers.
    """
    common = np.intersect1d(first, second)
    pools = (common, common) if len(common) else (np.unique(first), np.unique(second))
    drawn = generator.random(num_samples)
    return np.stack([pool[(drawn * len(pool)).astype(int)] for pool in pools]).astype(np.int64)


def pool_regions(
    features: Float[Tensor, "b d h w"], masks: Integer[Tensor, "b h w"], ids: Integer[Tensor, "b s"]
) -> Float[Tensor, "b s d"]:
    """Mean feature of each drawn region; zero for a region without cells.

    Args:
        features: Last feature map of the backbone.
        masks: Region of every cell.
        ids: Drawn regions.
    """
    member = (masks.flatten(1)[:, None] == ids[..., None]).to(features.dtype)  # (b, s, h w)
    share = member / member.sum(dim=-1, keepdim=True).clamp_min(1)
    return share @ features.flatten(2).transpose(1, 2)


def region_contrast(
    predictions: Float[Tensor, "2 b s d"],
    targets: Float[Tensor, "2 b s d"],
    ids: Integer[Tensor, "2 b s"],
    temperature: float,
    *,
    weights: Float[Tensor, " b"] | None = None,
    local_negatives: bool = True,
    gather_targets: bool = True,
) -> Float[Tensor, ""]:
    """Cross entropy of each region with itself in the other view (DetCon, eq. 3), both ways.

    For the direction v -> u, the logits of a prediction are its cosine similarities to the targets
    of both views, except its own region in its own view v. Its positives are the targets of its own
    region in u. The mean of -log softmax over the positives is divided by how often the region was
    drawn in v, and is 0 if u has no positive.

    Its value is 2 ln(2 b s - 1) if all vectors are equal and the s regions of an image differ.
    Computed in at least float32.

    Args:
        predictions: Predictions of the student, by view, image of this process and drawn region.
        targets: Targets of the teacher, without gradient.
        ids: Drawn regions; numbers are compared within an image only.
        temperature: Divides the cosine similarities.
        weights: Weights of the images; 1 by default.
        local_negatives: Whether other regions of the same image are negatives.
        gather_targets: Whether the targets of all processes are used, or only those of this one.
    """
    q, t = unit(predictions), unit(targets)
    everyones = [view.flatten(0, 1) for view in t]  # (b s, d)
    before = 0
    if gather_targets:
        everyones = [gather(view) for view in everyones]  # (b s * world, d)
        before = rank() * q.shape[1]
    with torch.autocast(q.device.type, enabled=False):  # products of half precision are too coarse
        there, back = (
            _one_way(
                q[view], torch.cat([everyones[1 - view], everyones[view]]), ids[view],
                ids[1 - view], temperature, local_negatives, before,
            )
            for view in (0, 1)
        )  # fmt: skip
    both = there + back
    return (both if weights is None else both * weights[:, None]).mean()


def _one_way(
    queries: Float[Tensor, "b s d"],
    keys: Float[Tensor, "m d"],
    ids: Integer[Tensor, "b s"],
    other_ids: Integer[Tensor, "b s"],
    temperature: float,
    local_negatives: bool,
    before: int,
) -> Float[Tensor, "b s"]:
    """Weighted cross entropy of every query; keys are those of the other view, then of its own.

    The keys start with `before` images of other processes.
    """
    b, s, _ = queries.shape
    logits = (queries.flatten(0, 1) @ keys.T / temperature).view(b, s, 2, -1, s)
    picture = torch.arange(b, device=ids.device)
    own = picture + before
    positive, twin = _equal(ids, other_ids), _equal(ids, ids)
    across, within = logits[picture, :, 0, own], logits[picture, :, 1, own]  # (b, s, s)
    if not local_negatives:
        logits[picture, :, 0, own] = across.masked_fill(~positive, _OUT)
    left_out = twin if local_negatives else torch.ones_like(twin)
    logits[picture, :, 1, own] = within.masked_fill(left_out, _OUT)
    closeness = (across * positive).sum(dim=-1) / positive.sum(dim=-1).clamp_min(1)
    entropy = logits.flatten(2).logsumexp(dim=-1) - closeness
    return positive.any(dim=-1) * entropy / twin.sum(dim=-1)


def _equal(a: Integer[Tensor, "b s"], b: Integer[Tensor, "b s"]) -> Bool[Tensor, "b s s"]:
    return a[:, :, None] == b[:, None]


def num_compared(ids: Int64[Tensor, "2 b s"], weights: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean number of different regions that an image contributes; 0 if its views share none.

    Args:
        ids: Result of `sample_regions`: the same regions in both views, or none in common.
        weights: Weights of the images.
    """
    first, second = ids.sort(dim=-1).values
    different = 1 + (first.diff(dim=-1) != 0).sum(dim=-1)
    return (weights * (first == second).all(dim=-1) * different).mean()
