"""Helpers for methods that read feature maps: other image sizes, parameters without gradient."""

import copy

import torch
from timm.layers.format import Format
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone, WrongSize, failure_at
from fg_ssl_zoo.config import reason_of


def accept_size(backbone: Backbone, side: int) -> None:
    """Let a network read images of `side` pixels besides its own size.

    A ViT interpolates its position embeddings, like timm's `dynamic_img_size=True` but after
    building; weights and the native size do not change. Most networks without patches accept every
    size anyway.

    Args:
        backbone: The network.
        side: Side of a square image in pixels.

    Raises:
        WrongSize: The network cannot read this size.
    """
    model = backbone.model
    if backbone.patch_size is not None and not getattr(model, "dynamic_img_size", True):
        model.dynamic_img_size = True
        model.patch_embed.strict_img_size = False
        model.patch_embed.flatten = False
        model.patch_embed.output_fmt = Format.NHWC
    if reason := failure_at(model, side):
        raise _unreadable(backbone, side, reason)


def _unreadable(backbone: Backbone, side: int, reason: str) -> WrongSize:
    return WrongSize(
        f"{backbone.name} at {backbone.image_size} pixels cannot read images of {side} "
        f"({reason}), as this method needs; use another size, or a resnet50"
    )


def parameters_behind(backbone: Backbone, index: int) -> list[nn.Parameter]:
    """Parameters that a feature map does not depend on.

    For map -2: the last stage of a CNN, or the last block and the norm of a ViT. For map -1: the
    last norm of a ViT, which its feature maps leave out.
    """
    return _reach(backbone, index, backbone.image_size)[1]


def train_up_to_last_map(backbone: Backbone, side: int, *, norm: bool = False) -> tuple[int, int]:
    """Freeze parameters that the last feature map does not depend on; returns its width and side.

    A method that reads only the map gives no gradient to later parameters, such as the last norm of
    a ViT, and a parameter without gradient stops data-parallel training.

    Args:
        backbone: Its `requires_grad` flags are changed, nothing else.
        side: Side of the method's input images in pixels.
        norm: Whether a ViT's map is taken after its last norm (`map_and_features`).

    Returns:
        Number of channels and height of the map.

    Raises:
        ValueError: Images of this side are too small for the network.
    """
    try:
        last, behind = _reach(backbone, -1, side, norm=norm)
    except (AssertionError, RuntimeError) as error:
        raise _unreadable(backbone, side, reason_of(error)) from error
    for parameter in behind:
        parameter.requires_grad_(False)
    return last.shape[1], last.shape[2]


def _reach(
    backbone: Backbone, index: int, side: int, *, norm: bool = False
) -> tuple[Tensor, list[nn.Parameter]]:
    """A feature map of an empty image, and the parameters that have no gradient from it."""
    twin = copy.deepcopy(backbone).eval().requires_grad_(True)
    parameters = list(twin.parameters())
    with torch.enable_grad():
        image = torch.zeros(1, 3, side, side, device=parameters[0].device)
        found = twin.map_and_features(image)[0] if norm else twin.feature_maps(image, [index])[0]
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    pairs = zip(backbone.parameters(), gradients, strict=True)
    return found.detach(), [parameter for parameter, gradient in pairs if gradient is None]
