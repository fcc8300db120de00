"""Contrastive losses as functions of tensors; at least float32, also under autocast."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fg_ssl_zoo.ops.distributed import gather, rank
from fg_ssl_zoo.ops.similarity import unit


def nt_xent(
    z0: Float[Tensor, "n d"], z1: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, ""]:
    """Normalised temperature-scaled cross entropy over all processes (SimCLR, eq. 1).

    Its value is ln(2n - 1) for equal projections, at any temperature.

    Args:
        z0: Projections of the first views of this process's images.
        z1: Projections of the second views, in the same order.
        temperature: Divides the cosine similarities.
    """
    local = unit(torch.cat([z0, z1]))
    with torch.autocast(local.device.type, enabled=False):
        logits = local @ gather(local).T / temperature  # (2n, 2n * world)
    own = torch.arange(len(local), device=local.device) + rank() * len(local)
    logits = logits.scatter(1, own[:, None], float("-inf"))  # no image is its own negative
    return F.cross_entropy(logits, own.roll(len(z0)))


def info_nce(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    negatives: Float[Tensor, "k d"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross entropy of each query's own key against `k` shared negatives (MoCo, eq. 1).

    Its value is ln(1 + k) if all vectors are equal.

    Args:
        queries: Queries of this process's images.
        keys: Keys of the same images, in the same order; without gradient in MoCo.
        negatives: The queue of unit vectors.
        temperature: Divides the cosine similarities.
    """
    return own_key_loss(info_nce_logits(queries, keys, negatives, temperature))


def info_nce_logits(
    queries: Float[Tensor, "n d"],
    keys: Float[Tensor, "n d"],
    negatives: Float[Tensor, "k d"],
    temperature: float,
) -> Float[Tensor, "n 1+k"]:
    """Cosine of each query with its own key, then with all negatives, over the temperature."""
    queries, keys = unit(queries), unit(keys)
    with torch.autocast(queries.device.type, enabled=False):
        own = (queries * keys).sum(dim=1, keepdim=True)
        return torch.cat([own, queries @ negatives.to(queries).T], dim=1) / temperature


def own_key_loss(logits: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Cross entropy of the first column, each query's own key; logits of `info_nce_logits`."""
    own = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    return F.cross_entropy(logits, own)


def own_key_accuracy(logits: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    """Share of queries that are nearer to their own key than to all negatives; no gradient."""
    logits = logits.detach()
    return (logits[:, 0] > logits[:, 1:].amax(dim=1)).float().mean()
