"""Attribution maps: evidence for a class at every position, and patch features as colours.

    score      s = w . h, with h the features of an image and w from a logistic regression
    evidence   e(y, x) = sum_d  ds / dA(d, y, x) * A(d, y, x)        A: a feature map

For a CNN that averages its last map this is the class activation map (Zhou et al., 2016, arXiv
1512.04150), and the evidence sums to the score. For other networks, such as vision transformers, it
is HiResCAM (Draelos & Carin, 2020, arXiv 2011.08891): Grad-CAM without averaging the gradient.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.features.extract import Read
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.ops.pca import principal_axes
from fg_ssl_zoo.ops.tokens import tokens_to_map

EVIDENCE_CELLS, COLOUR_CELLS = 6, 10
"""Smallest side of a map in cells, for evidence and for colours; the deepest such map is used."""

MAX_ITERATIONS = 500


def class_direction(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], number: int
) -> Float[Tensor, " d"]:
    """Weights of a logistic regression of one class against all others."""
    fit = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the direction has converged by then
        fit.fit(features.double().numpy(), (labels == number).numpy())
    return torch.from_numpy(fit.coef_[0]).float()


def evidence(
    backbone: Backbone,
    images: Float[Tensor, "b 3 _ _"],
    weights: Float[Tensor, "b d"],
    *,
    read: Read = Backbone.__call__,
    cells: int = EVIDENCE_CELLS,
) -> Float[Tensor, "b h w"]:
    """The contribution of each position to the score of its image.

    Args:
        backbone: Backbone without a DDP wrapper.
        images: Normalised images on the backbone's device.
        weights: `w` of each image.
        read: Function that computes the features.
        cells: Smallest side of the feature map, in cells. The deepest such map is used; if there is
            none, the largest map.

    Raises:
        ValueError: timm does not list stages of the model, or the features depend on none of them.
    """
    stages = _stages(backbone)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                outputs[name] = output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, (module, _) in stages.items()]
    try:
        with evaluating(backbone), torch.enable_grad():
            pixels = images.detach().requires_grad_()
            score = (read(backbone, pixels).float() * weights.to(images.device)).sum()
            names = list(outputs)
            found = torch.autograd.grad(score, [outputs[n] for n in names], allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    maps = []
    for name, gradient in zip(names, found, strict=True):
        if gradient is not None:
            product = (gradient * outputs[name]).detach()
            maps.append(_as_map(product, stages[name][1], backbone).sum(dim=1).float().cpu())
    return _deepest([each for each in maps if each.abs().max() > 0], cells, backbone)


def heat(evidence: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Positive evidence divided by its largest value, 0..1; negative evidence becomes 0."""
    positive = evidence.clamp(min=0)
    return positive / positive.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def patch_maps(
    backbone: Backbone, images: Float[Tensor, "b 3 _ _"], *, cells: int = COLOUR_CELLS
) -> Float[Tensor, "b d h w"]:
    """The deepest feature map with at least this many cells a side; otherwise the largest map."""
    indices = range(len(_stages(backbone)))
    with evaluating(backbone), torch.inference_mode():
        maps = backbone.feature_maps(images, indices)
    return _deepest([each.float().cpu() for each in maps], cells, backbone)


def patch_colours(maps: Float[Tensor, "b d h w"]) -> Float[np.ndarray, "b h w 3"]:
    """The three largest principal components of all patches as red, green and blue, 0..1.

    All images share one basis, so equal colours mean equal features. Each component is scaled from
    its 2nd to its 98th percentile; its largest weight is positive, so the colours are reproducible.
    """
    b, d, h, w = maps.shape
    patches = maps.movedim(1, -1).reshape(-1, d).double()
    mean, basis = principal_axes(patches, min(3, d))
    colours = ((patches - mean) @ basis).numpy()
    low, high = np.percentile(colours, [2, 98], axis=0)
    colours = ((colours - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colours = np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])))
    return colours.reshape(b, h, w, 3)


def glow(
    pixels: UInt8[np.ndarray, "s s 3"], heat: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "s s 3"]:
    """The image in pale grey under a heat map from red to yellow."""
    size = pixels.shape[0]
    soft = cv2.resize(heat.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    soft = soft.clip(0, 1)[..., None]
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    light = (1 - soft) * np.array([215.0, 40.0, 20.0]) + soft * np.array([255.0, 225.0, 70.0])
    cover = 0.75 * soft**0.7
    return ((0.65 * grey + 45) * (1 - cover) + light * cover).clip(0, 255).astype(np.uint8)


def enlarged(colours: Float[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Enlarge a map of colours; each cell becomes a square of pixels."""
    pixels = (255 * colours).round().astype(np.uint8)
    return cv2.resize(pixels, (size, size), interpolation=cv2.INTER_NEAREST)


# --------------------------------------------------------------------------- stages


def _stages(backbone: Backbone) -> dict[str, tuple[torch.nn.Module, int]]:
    """Module name -> module and number of channels, in timm's order, the deepest last."""
    listed: Any = getattr(backbone.model, "feature_info", None)
    if not listed:
        raise ValueError(f"timm lists no stages of {backbone.name}")
    entries: Sequence[Any] = getattr(listed, "info", listed)
    modules = dict(backbone.model.named_modules())
    return {
        entry["module"]: (modules[entry["module"]], entry["num_chs"])
        for entry in entries
        if entry["module"] in modules
    }


def _as_map(output: Tensor, channels: int, backbone: Backbone) -> Tensor:
    """Tokens or a channels-last map as (b, d, h, w)."""
    if output.ndim == 3:
        return tokens_to_map(output[:, getattr(backbone.model, "num_prefix_tokens", 0) :])
    return output if output.shape[1] == channels else output.movedim(-1, 1)


def _deepest(maps: list[Tensor], cells: int, backbone: Backbone) -> Tensor:
    """The last map with enough cells a side; otherwise the largest map."""
    if not maps:
        raise ValueError(f"the features of {backbone.name} depend on none of its feature maps")
    fine = [each for each in maps if min(each.shape[-2:]) >= cells]
    return fine[-1] if fine else max(maps, key=lambda each: min(each.shape[-2:]))
