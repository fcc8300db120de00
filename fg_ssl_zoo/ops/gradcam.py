"""Where a loss looks: Grad-CAM of a self-supervised loss, and maps stretched to 0..1.

Papers: Selvaraju et al., 2017 (arXiv 1610.02391), for the score of a class; with the loss in the
place of the score, LCR (Shu, van den Hengel & Liu, CVPR 2023).
"""

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_SPAN = 1e-6
"""Share of a map's largest magnitude that its values must span, or it counts as constant."""


def gradient_at(
    loss: Float[Tensor, ""], features: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """Gradient of every image's own term of a mean loss, at its features; a constant.

    The loss is the mean over `b` images, so this is `b` times its gradient: the size of a batch
    does not show. Only what lies between features and loss is passed backward, and that graph is
    kept for the training step.

    For features h that are the mean of a map A over its h x w positions, dL/dA = dL/dh / (h w) at
    each of them: then the gradient at h tells all that the one at A does.

    Args:
        loss: Mean over the images.
        features: Pooled ones or a map, on the way to the loss.
    """
    (found,) = torch.autograd.grad(loss * len(features), features, retain_graph=True)
    return found.detach()


def gradcam(
    maps: Float[Tensor, "b c h w"], gradient: Float[Tensor, "b c #h #w"]
) -> Float[Tensor, "b h w"]:
    """relu(sum_c A_c dL/dA_c), element-wise at every position (LCR).

    Args:
        maps: `A`, a feature map.
        gradient: dL/dA; one position will do where all are equal.
    """
    return (maps * gradient).sum(1).relu()


def min_max(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Each map stretched to 0..1 by itself; one everywhere where a map is constant.

    In float32 or better, and without a look at the other images, so that what is made of an image
    does not depend on its batch.
    """
    maps = maps.float() if maps.dtype in (torch.bfloat16, torch.float16) else maps
    least = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - least
    flat = span <= LEAST_SPAN * maps.abs().amax((1, 2), keepdim=True)  # rounding is no structure
    return torch.where(flat, 1.0, (maps - least) / torch.where(flat, 1.0, span))
