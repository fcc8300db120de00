"""Principal components."""

import torch
from jaxtyping import Float
from torch import Tensor


def principal_axes(
    points: Float[Tensor, "n d"], num_axes: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d _"]]:
    """Mean and directions of largest variance as orthonormal columns, in descending order.

    The sign of each direction is chosen such that its largest entry is positive.

    Raises:
        ValueError: There are more axes than dimensions.
    """
    width = points.shape[1]
    if not 1 <= num_axes <= width:
        raise ValueError(f"pca: {num_axes} axes of {width} dimensions; use 1 to {width}")
    mean = points.mean(dim=0)
    centred = (points - mean).to(torch.promote_types(points.dtype, torch.float32))
    _, axes = torch.linalg.eigh(centred.T @ centred / len(points))  # ascending
    axes = axes.flip(1)[:, :num_axes]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return mean, axes * largest.sign()
