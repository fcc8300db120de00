"""Separate object and background by the attention of a ViT's class token.

Source: Amir et al., 2021 (co-segmentation by deep ViT features), as in the release of PARTICLE.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from fg_ssl_zoo.ops.clustering import Clusters, kmeans


@dataclass(frozen=True)
class Split:
    """The result of the separation.

    Attributes:
        foreground: (n,) bool, whether each point belongs to the object.
        background: (j, d) centres of the other clusters; j may be 0.
    """

    foreground: Tensor
    background: Tensor


def split_foreground(
    features: Float[Tensor, "n d"],
    saliency: Float[Tensor, " n"],
    images: Integer[Tensor, " n"],
    seed: int,
    *,
    threshold: float,
    votes: float,
) -> Split:
    """Cluster the points; clusters that are salient in most images are the foreground.

    Args:
        features: Points of one or many images.
        saliency: Saliency of each point, in 0..1.
        images: Number of the image of each point.
        seed: Seed of k-means.
        threshold: A cluster is salient in an image if the mean saliency of its points is above
            this.
        votes: Share of the images with points of the cluster in which it must be salient.
    """
    found = elbow(features, seed)
    labels, num_clusters = found.labels[0].cpu(), found.centres.shape[1]
    salient = salient_clusters(
        labels, saliency.cpu(), images.cpu(), num_clusters, threshold=threshold, votes=votes
    ).to(features.device)
    return Split(salient[found.labels[0]], found.centres[0][~salient])


def salient_clusters(
    labels: Integer[Tensor, " n"],
    saliency: Float[Tensor, " n"],
    images: Integer[Tensor, " n"],
    num_clusters: int,
    *,
    threshold: float,
    votes: float,
) -> Bool[Tensor, " k"]:
    """Clusters that are salient in enough images; if there are none, the most salient one."""
    num_images = int(images.max()) + 1
    cells = images * num_clusters + labels
    zeros = torch.zeros(num_images * num_clusters, dtype=torch.float64)
    counts = zeros.index_add(0, cells, torch.ones_like(saliency, dtype=torch.float64))
    sums = zeros.index_add(0, cells, saliency.double())
    counts, sums = counts.view(num_images, -1), sums.view(num_images, -1)
    present = counts > 0
    agree = (sums / counts.clamp(min=1) > threshold) & present
    share = agree.sum(dim=0) / present.sum(dim=0).clamp(min=1)
    salient = (share >= votes) & present.any(dim=0)
    if not bool(salient.any()):
        mean = sums.sum(dim=0) / counts.sum(dim=0).clamp(min=1)
        salient[mean.argmax()] = True
    return salient


def saliency_of(
    attention: Float[Tensor, "b heads h w"], heads: tuple[int, ...] | None
) -> Float[Tensor, "b _"]:
    """Mean attention of the chosen heads, from 0 to 1 within each image: (b, h * w).

    Raises:
        ValueError: The network does not have such a head.
    """
    count = attention.shape[1]
    wrong = [head for head in heads or () if not 0 <= head < count]
    if wrong:
        raise ValueError(f"heads: there is no head {wrong[0]}; use 0 to {count - 1}")
    chosen = attention if heads is None else attention[:, list(heads)]
    mean = chosen.mean(dim=1).flatten(1)
    low, high = mean.amin(dim=1, keepdim=True), mean.amax(dim=1, keepdim=True)
    return (mean - low) / (high - low).clamp(min=1e-12)


def elbow(
    features: Float[Tensor, "n d"],
    seed: int,
    *,
    most: int = 14,
    ratio: float = 0.975,
    restarts: int = 1,
) -> Clusters:
    """k-means with k = 1, 2, ... until another cluster hardly lowers the inertia; one set (b = 1).

    Args:
        features: n points.
        seed: As for `kmeans`.
        most: Largest k; 14 in the released PARTICLE.
        ratio: Stop at the first k whose inertia is more than this share of the previous one; that
            k is used; 0.975 in the released PARTICLE.
        restarts: As for `kmeans`.
    """
    found = kmeans(features[None], 1, [seed])
    for num_clusters in range(2, min(most, len(features)) + 1):
        before = float(found.inertia)
        found = kmeans(features[None], num_clusters, [seed], restarts=restarts)
        if float(found.inertia) > ratio * before or before == 0:
            break
    return found
