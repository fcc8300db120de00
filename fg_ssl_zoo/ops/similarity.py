"""Cosine similarity of embeddings, in at least float32 for any precision of the network."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


def unit(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows scaled to length 1; half precision is first converted to float32."""
    return F.normalize(x.float() if x.dtype in _HALF else x, dim=-1)


def mean_cosine(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean cosine between the rows of `x` and those of `y`, in -1..1."""
    return (unit(x) * unit(y)).sum(dim=-1).mean()


def cross_prediction(p: Float[Tensor, "n d"], z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """-(cos(p0, stop(z1)) + cos(p1, stop(z0))) / 2, averaged over the images (SimSiam, eq. 4).

    Its value is -1 if each prediction has the direction of the other view's projection.

    Args:
        p: Predictions of all first views, then of all second ones.
        z: Projections in the same order; they receive no gradient.
    """
    (p0, p1), (z0, z1) = p.chunk(2), z.detach().chunk(2)
    return -(mean_cosine(p0, z1) + mean_cosine(p1, z0)) / 2


@torch.no_grad()
def spread(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Standard deviation of unit rows over the batch, averaged over the dimensions.

    1 / sqrt(d) for uniformly distributed directions, 0 for equal outputs (SimSiam, section 4.1).
    """
    return unit(z).std(dim=0, correction=0).mean()
