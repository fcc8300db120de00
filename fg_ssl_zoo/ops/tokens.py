"""Tokens of a transformer as a feature map."""

import math

from jaxtyping import Shaped
from torch import Tensor


def tokens_to_map(
    tokens: Shaped[Tensor, "b n d"], height: int | None = None
) -> Shaped[Tensor, "b d h w"]:
    """Patch tokens, row by row, as (b, d, h, w).

    Args:
        tokens: Patch tokens, without class or register tokens.
        height: Number of rows of patches; a square map when not given.
    """
    rows = math.isqrt(tokens.shape[1]) if height is None else height
    return tokens.mT.unflatten(2, (rows, -1))
