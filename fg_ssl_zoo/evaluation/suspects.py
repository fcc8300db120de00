"""Images that may have a wrong label, because their neighbours have another one.

    p_i(c) = sum of exp(cos(x_i, x_j) / T) over the k nearest j != i with label c, divided by the
             sum over all k nearest j                                            (k = 20, T = 0.07)
    suspicion = p_i(best other class) - p_i(own class); an image is listed if it is above 0

The vote is that of the kNN protocol without the image itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07


@dataclass(frozen=True)
class Suspect:
    """An image whose neighbours disagree with its label.

    Attributes:
        row: Its row in the features.
        label: Its label, a class number.
        suggested: Class number of most of its neighbours.
        suspicion: 0..1; 1 if all neighbours have the same other class.
        neighbours: Rows of the nearest images, nearest first.
    """

    row: int
    label: int
    suggested: int
    suspicion: float
    neighbours: tuple[int, ...]


def find_suspects(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> list[Suspect]:
    """The images whose neighbours vote for another class, most suspicious first.

    Args:
        features: Feature vectors of any length; they are normalised here.
        labels: Class numbers.
        k: Number of neighbours that vote; at most n - 1.
        temperature: Temperature of the votes' weights.
        chunk: Number of rows compared at a time.

    Raises:
        ValueError: There are fewer than two images.
    """
    if len(features) < 2:
        raise ValueError("the data set has one image; at least 2 are needed")
    x, num_classes = F.normalize(features.float(), dim=1), int(labels.max()) + 1
    found = []
    for start in range(0, len(x), chunk):
        rows = torch.arange(start, min(start + chunk, len(x)))
        cosine = x[rows] @ x.T
        cosine[torch.arange(len(rows)), rows] = -torch.inf  # an image is not its own neighbour
        nearest, which = cosine.topk(min(k, len(x) - 1), dim=1)
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = torch.zeros(len(rows), num_classes).scatter_add_(1, labels[which], weights)
        votes /= votes.sum(dim=1, keepdim=True)
        own = votes.gather(1, labels[rows, None])[:, 0]
        others = votes.scatter(1, labels[rows, None], -1.0)
        best, suggested = others.max(dim=1)
        for i in (best > own).nonzero()[:, 0].tolist():
            row = int(rows[i])
            found.append(
                Suspect(
                    row, int(labels[row]), int(suggested[i]), float(best[i] - own[i]),
                    tuple(which[i].tolist()),
                )
            )  # fmt: skip
    return sorted(found, key=lambda suspect: -suspect.suspicion)


def swapped(labels: Int64[Tensor, " n"], share: float, seed: int) -> Int64[Tensor, " n"]:
    """Replace a share of the labels by another class, drawn uniformly from the other classes.

    Args:
        labels: Class numbers of two or more classes.
        share: 0..1; at least one label is replaced.
        seed: Seed of the draw.
    """
    generator = np.random.default_rng([seed, len(labels)])
    rows = generator.choice(len(labels), max(1, round(share * len(labels))), replace=False)
    classes = labels.unique().numpy()
    wrong = labels.clone()
    for row in rows:
        wrong[row] = int(generator.choice(classes[classes != int(labels[row])]))
    return wrong


@dataclass(frozen=True)
class Check:
    """How many labels that were swapped on purpose are listed.

    Attributes:
        swapped: Number of swapped labels.
        listed: Number of listed images.
        first: Number of images at the beginning of the list, for `precision`: 50, or all.
        precision: Share of the first images whose label was swapped.
        recall: Share of the swapped labels that are listed.
        recall_first: Share of the swapped labels among the first `swapped` images of the list.
    """

    swapped: int
    listed: int
    first: int
    precision: float
    recall: float
    recall_first: float


def check_on_swapped(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    *,
    share: float,
    seed: int = 0,
    first: int = 50,
) -> Check:
    """Swap a share of the labels, list suspects and compare; the given labels count as correct.

    Arguments as for `find_suspects` and `swapped`.
    """
    wrong = swapped(labels, share, seed)
    hidden = set((wrong != labels).nonzero()[:, 0].tolist())
    rows = [suspect.row for suspect in find_suspects(features, wrong)]
    first = min(first, len(rows))
    return Check(
        swapped=len(hidden),
        listed=len(rows),
        first=first,
        precision=len(hidden & {*rows[:first]}) / max(first, 1),
        recall=len(hidden & {*rows}) / len(hidden),
        recall_first=len(hidden & {*rows[: len(hidden)]}) / len(hidden),
    )
