"""Grad-CAM of a self-supervised loss, and scaling of maps to 0..1.

Papers: Selvaraju et al., 2017 (arXiv 1610.02391), for a class score; LCR (Shu, van den Hengel &
Liu, CVPR 2023) uses the loss instead of the score.
"""

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_SPAN = 1e-6
"""A map counts as constant if its range is below this share of its largest magnitude."""


def gradient_at(
    loss: Float[Tensor, ""], features: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """Gradient of each image's own loss with respect to its features; detached.

    The loss is the mean over `b` images, so this is `b` times its gradient, independent of the
    batch size. The backward pass covers only the graph between features and loss, which is kept for
    the training step.

    If the features h are the mean of a map A over its h x w positions, dL/dA = dL/dh / (h w) at
    each position, so the gradient at h is sufficient.

    Args:
        loss: Mean of the loss over the images.
        features: Pooled features or a map that the loss depends on.
    """
    (found,) = torch.autograd.grad(loss * len(features), features, retain_graph=True)
    return found.detach()


def gradcam(
    maps: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c #h #w"]
) -> Float[Tensor, "b h w"]:
    """relu(sum_c A_c dL/dA_c), element-wise at every position (LCR).

    Args:
        maps: `A`, a feature map.
        gradient: dL/dA; a single position is enough if all are equal.
    """
    return (maps * gradient).sum(1).relu()


def min_max(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Scale each map to 0..1; a constant map becomes 1 everywhere.

    Computed in at least float32 and for each image alone, so the result does not depend on the
    batch.
    """
    maps = maps.float() if maps.dtype in (torch.bfloat16, torch.float16) else maps
    least = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - least
    flat = span <= LEAST_SPAN * maps.abs().amax((1, 2), keepdim=True)  # rounding errors
    return torch.where(flat, 1.0, (maps - least) / torch.where(flat, 1.0, span))
