"""Principal components."""

import torch
from jaxtyping import Float
from torch import Tensor


def principal_axes(
    points: Float[Tensor, "n d"], num_axes: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d _"]]:
    """Mean, and the directions of largest variance as orthonormal columns, the largest first.

    The sign of a direction, which is free, makes its largest entry positive.

    Raises:
        ValueError: More axes than coordinates.
    """
    width = points.shape[1]
    if not 1 <= num_axes <= width:
        raise ValueError(f"pca: {num_axes} axes of {width} coordinates; 1 to {width} would do")
    mean = points.mean(dim=0)
    centred = (points - mean).to(torch.promote_types(points.dtype, torch.float32))
    _, axes = torch.linalg.eigh(centred.T @ centred / len(points))  # ascending
    axes = axes.flip(1)[:, :num_axes]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    return mean, axes * largest.sign()
