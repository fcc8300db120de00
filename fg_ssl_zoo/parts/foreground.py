"""Which clusters are the object: those that the class token of a ViT looks at.

Source: Amir et al., 2021 (co-segmentation by deep ViT features), as the released PARTICLE uses it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from fg_ssl_zoo.ops.clustering import Clusters, kmeans


@dataclass(frozen=True)
class Split:
    """Points of the object, and where the rest lies.

    Attributes:
        foreground: (n,) bool.
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
    """Cluster the points and call those clusters foreground that are salient in most images.

    Args:
        features: Points of one or many images.
        saliency: Saliency of each point, in 0..1.
        images: Which image each point is of.
        seed: Seed of k-means.
        threshold: A cluster is salient in an image when its points' mean saliency there is above.
        votes: Share of the images in which it has points that must find it salient.
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
    """Clusters that enough images find salient; where none is, the most salient one."""
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
        ValueError: A head that the network does not have.
    """
    count = attention.shape[1]
    wrong = [head for head in heads or () if not 0 <= head < count]
    if wrong:
        raise ValueError(f"heads: there is no {wrong[0]}; 0 to {count - 1} are there")
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
    """k-means with k = 1, 2, ... until one more cluster is hardly worth it; of one set, as b = 1.

    Args:
        features: n points.
        seed: As for `kmeans`.
        most: Largest k; 14 in the released PARTICLE.
        ratio: The first k that leaves more than this share of the inertia before it is the last
            (and is taken); 0.975 in the released PARTICLE.
        restarts: As for `kmeans`.
    """
    found = kmeans(features[None], 1, [seed])
    for num_clusters in range(2, min(most, len(features)) + 1):
        before = float(found.inertia)
        found = kmeans(features[None], num_clusters, [seed], restarts=restarts)
        if float(found.inertia) > ratio * before or before == 0:
            break
    return found
