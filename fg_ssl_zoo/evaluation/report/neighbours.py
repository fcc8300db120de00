"""The nearest pictures of some queries: what a kNN classifier sees."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def nearest(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "n d"],
    count: int,
    own: Int64[Tensor, " q"] | None = None,
) -> tuple[Int64[Tensor, "q k"], Float[Tensor, "q k"]]:
    """Rows of the gallery by falling cosine similarity, and the similarity.

    Args:
        queries: Features.
        gallery: Features to search.
        count: Neighbours; lowered to what the gallery has.
        own: Row of each query in the gallery, which is no neighbour of itself.
    """
    similarity = F.normalize(queries, dim=-1) @ F.normalize(gallery, dim=-1).T
    if own is not None:
        similarity[torch.arange(len(queries)), own] = -torch.inf
    count = min(count, len(gallery) - (own is not None))
    found = similarity.sort(dim=1, descending=True, stable=True)
    return found.indices[:, :count], found.values[:, :count]


def choose_queries(
    right: Bool[np.ndarray, " m"] | None, length: int, count: int, seed: int
) -> list[int]:
    """Rows drawn at random: half of them wrong where there are as many, the wrong ones first.

    Args:
        right: Whether the class of each picture is recognised; `None` without labels.
        length: Pictures there are.
        count: Rows to draw.
        seed: Of the draw.
    """
    order = np.random.default_rng([seed, length]).permutation(length)
    if right is None:
        return order[:count].tolist()
    wrong, good = order[~right[order]], order[right[order]]
    num_wrong = min(len(wrong), max(count // 2, count - len(good)))
    return [*wrong[:num_wrong].tolist(), *good[: count - num_wrong].tolist()]
