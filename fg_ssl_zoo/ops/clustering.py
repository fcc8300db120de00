"""k-means for many sets of points at once, such as the pixels of each image of a batch.

Sources: Lloyd, 1982; Arthur & Vassilvitskii, 2007 (k-means++), with as many trials of each draw as
scikit-learn's `KMeans`. On the pixels of an image it is two to three times faster
(`benchmarks/clustering.py`): most steps use a part of the points, and a set stops when its inertia
hardly falls, while scikit-learn waits until the centres do not move.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor


@dataclass(frozen=True)
class Clusters:
    """The result of k-means for each of b sets.

    Attributes:
        labels: (b, n) int64 number of each point's cluster, 0 to k - 1.
        centres: (b, k, d) float32.
        inertia: (b,) sum of squared distances to the centres.
    """

    labels: Tensor
    centres: Tensor
    inertia: Tensor


def kmeans(
    features: Float[Tensor, "b n d"],
    num_clusters: int,
    seeds: Sequence[int],
    *,
    cosine: bool = False,
    coarse: int = 1,
    restarts: int = 1,
    max_iterations: int = 300,
    tolerance: float = 3e-4,
) -> Clusters:
    """Cluster each set of a batch independently; the result of a set does not depend on the others.

    A cluster that loses its last point keeps its centre, so there may be fewer labels than
    clusters, and the inertia never rises. Sums are computed in float32.

    Args:
        features: b sets of n points; one large set is a batch of one. The tensor is copied.
        num_clusters: `k`.
        seeds: One seed for each set, the only source of randomness.
        cosine: Whether points and centres are scaled to unit length (spherical k-means).
        coarse: First cluster every `coarse`-th point, then continue with all points. Neighbouring
            pixels are similar, so few steps on all points remain. Ignored if too few points would
            be left.
        restarts: Number of starts, of which the best is kept; compared on the coarse points.
        max_iterations: Largest number of iterations of each stage; 300 in scikit-learn.
        tolerance: A set stops when a step lowers its inertia by at most this share. With 3e-4 the
            inertia is within 0.5 % of scikit-learn's.

    Raises:
        ValueError: There are more clusters than points.
    """
    count = features.shape[1]
    if not 1 <= num_clusters <= count:
        raise ValueError(
            f"num_clusters: {num_clusters} clusters of {count} points; use 1 to {count}"
        )
    how = (num_clusters, cosine, coarse, restarts, max_iterations, tolerance)
    if features.device.type != "cpu":
        return _kmeans(features, seeds, *how)
    sets = zip(features, seeds, strict=True)  # one by one, so that no set waits for a slower one
    alone = [_kmeans(points[None], [seed], *how) for points, seed in sets]
    return Clusters(*(torch.cat([getattr(one, key) for one in alone]) for key in vars(alone[0])))


def _kmeans(
    features: Tensor,
    seeds: Sequence[int],
    num_clusters: int,
    cosine: bool,
    coarse: int,
    restarts: int,
    max_iterations: int,
    tolerance: float,
) -> Clusters:
    origin = torch.zeros_like(features[:, :1], dtype=torch.float32)
    points = features.float()
    if cosine:
        points = F.normalize(points, dim=-1)
    else:  # far from the origin, distances would lose precision
        origin = points.mean(dim=1, keepdim=True)
        points = points - origin
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    few = points[:, ::coarse].contiguous()
    few = few if few.shape[1] >= 2 * num_clusters else points
    how = (cosine, max_iterations, tolerance)
    starts = (plus_plus(few, num_clusters, generators) for _ in range(restarts))
    best = functools.reduce(_better, (lloyd(few, start, *how) for start in starts))
    if few.shape[1] < points.shape[1]:
        best = lloyd(points, best.centres, *how)
    return Clusters(best.labels, best.centres + origin, best.inertia)


def lloyd(
    points: Float[Tensor, "b n d"],
    start: Float[Tensor, "b k d"],
    cosine: bool = False,
    max_iterations: int = 300,
    tolerance: float = 3e-4,
) -> Clusters:
    """Alternate assignment and averaging until every set stops; stopped sets do not change."""
    centres, squares = start, points.square().sum(dim=2)
    labels, inertia = _assign(points, squares, centres)
    done = torch.zeros_like(inertia, dtype=torch.bool)
    for _ in range(max_iterations):
        moved = means(points, labels, centres)
        moved = F.normalize(moved, dim=-1) if cosine else moved
        centres = torch.where(done[:, None, None], centres, moved)
        labels, now = _assign(points, squares, centres)
        done = done | (inertia - now <= tolerance * now)
        inertia = now
        if bool(done.all()):
            break
    return Clusters(labels, centres, inertia)


def means(
    points: Float[Tensor, "b n d"],
    labels: Integer[Tensor, "b n"],
    centres: Float[Tensor, "b k d"],
) -> Float[Tensor, "b k d"]:
    """Mean of every cluster's points; an empty cluster keeps its centre."""
    members = F.one_hot(labels, centres.shape[1]).to(points.dtype)  # (b, n, k)
    sizes = members.sum(dim=1)[:, :, None]
    if points.device.type == "cpu":  # six times faster; on GPUs its order is not fixed
        pairs = zip(labels, points, strict=True)
        empty = torch.zeros_like(centres[0])
        sums = torch.stack([empty.index_add(0, which, rows) for which, rows in pairs])
    else:
        sums = members.mT @ points
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)


def squared_distances(
    points: Float[Tensor, "b n d"], centres: Float[Tensor, "#b k d"]
) -> Float[Tensor, "b k n"]:
    """Squared distance of every point to every centre."""
    centres = centres.expand(len(points), -1, -1)
    return (_relative(points, centres) + points.square().sum(dim=2)[:, None]).clamp(min=0)


def plus_plus(
    points: Float[Tensor, "b n d"], num_clusters: int, generators: Sequence[torch.Generator]
) -> Float[Tensor, "b k d"]:
    """Starting centres by k-means++: a point is drawn with probability d(x)^2 / sum of d^2.

    d is the distance to the nearest centre so far. Of 2 + ln k candidates, the one with the
    smallest remaining sum is kept. With e ~ Exp(1), the smallest e / w belongs to x with
    probability w / sum w. This needs no cumulative sums, which differ between devices.
    """
    rows = torch.arange(len(points), device=points.device)
    trials = 2 + int(math.log(num_clusters))
    first = _race(points, 1, generators).argmin(dim=2)  # (b, 1)
    centres = [points[rows, first[:, 0]]]
    nearest = squared_distances(points, centres[0][:, None])  # (b, 1, n)
    for _ in range(1, num_clusters):
        drawn = (_race(points, trials, generators) / nearest).argmin(dim=2)  # (b, t)
        candidates = points[rows[:, None], drawn]  # (b, t, d)
        left = torch.minimum(nearest, squared_distances(points, candidates))
        best = left.sum(dim=2).argmin(dim=1)  # (b,)
        centres.append(candidates[rows, best])
        nearest = left[rows, best][:, None]
    return torch.stack(centres, dim=1)


def _race(points: Tensor, trials: int, generators: Sequence[torch.Generator]) -> Tensor:
    """(b, trials, n) of Exp(1), each set's from its own generator, the same on every device."""
    drawn = [
        torch.empty(trials, points.shape[1]).exponential_(generator=generator)
        for generator in generators
    ]
    return torch.stack(drawn).to(points.device)


def _assign(points: Tensor, squares: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Number of each point's nearest centre (b, n), and the inertia (b,)."""
    found = _relative(points, centres).min(dim=1)
    return found.indices, (found.values + squares).clamp(min=0).sum(dim=1)


def _relative(points: Tensor, centres: Tensor) -> Tensor:
    """|c|^2 - 2 c x, which is |x - c|^2 - |x|^2: (b, k, n)."""
    return torch.baddbmm(centres.square().sum(dim=2)[:, :, None], centres, points.mT, alpha=-2)


def _better(one: Clusters, other: Clusters) -> Clusters:
    """For each set, the result of lower inertia."""
    wins = other.inertia < one.inertia
    return Clusters(
        torch.where(wins[:, None], other.labels, one.labels),
        torch.where(wins[:, None, None], other.centres, one.centres),
        torch.where(wins, other.inertia, one.inertia),
    )
