"""Features of every pixel: several maps of a network, resized to one size and stacked.

    layer3, maxpool     the output of a module of a CNN, by its name in timm
    2, -1               a stage of a CNN (`feature_maps`), or the tokens after a block of a ViT
    keys, keys:9        keys of a ViT's last block, or of block 9, all heads concatenated; those of
                        rotary embeddings before the rotation
    attention           attention of a ViT's class token in its last block, one channel per head;
                        of timm's plain attention only

Sources: Hariharan et al., 2015 (hypercolumns); Saha & Maji, 2023 (PARTICLE: which layers, each of
length one); Amir et al., 2021 (keys of a ViT as dense descriptors, overlapping patches).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention
from timm.layers.format import Format
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.ops.tokens import tokens_to_map

RESNET_LAYERS = ("layer3", "layer2", "layer1", "maxpool")
"""PARTICLE's hypercolumn: 1,024 + 512 + 256 + 64 channels of a ResNet-50."""

MapName = int | str
"""Number or name of a map; see the module docstring."""


def default_layers(backbone: Backbone) -> tuple[MapName, ...]:
    """PARTICLE's layers for a ResNet, keys for a ViT, else the three stages before the last."""
    if backbone.patch_size is not None:
        return ("keys",)
    if all(hasattr(backbone.model, name) for name in RESNET_LAYERS):
        return RESNET_LAYERS
    last = len(getattr(backbone.model, "feature_info", ())) - 1
    return tuple(range(last - 1, max(last - 4, -1), -1)) or (-1,)


def hypercolumns(
    backbone: Backbone,
    images: Float[Tensor, "b 3 h w"],
    layers: Sequence[MapName],
    size: int | None = None,
    *,
    normalize: bool = True,
    stride: int | None = None,
) -> Float[Tensor, "b _ _ _"]:
    """Maps of these layers at one resolution, stacked: (b, d, s, s) float32, channels last.

    Args:
        backbone: Backbone in evaluation mode.
        images: Normalised images.
        layers: Layers in the order of the stack.
        size: Side `s`, by bilinear interpolation; that of the largest map when not given.
        normalize: Whether each map is scaled to unit length over its channels after resizing, as
            in the first commit of PARTICLE.
        stride: As for `maps_of`.

    Raises:
        ValueError: As `maps_of`.
    """
    return stacked(maps_of(backbone, images, layers, stride=stride), size, normalize=normalize)


def stacked(
    maps: Sequence[Float[Tensor, "b _ _ _"]], size: int | None = None, *, normalize: bool = True
) -> Float[Tensor, "b _ _ _"]:
    """Stack maps at one resolution; arguments as for `hypercolumns`."""
    side = size or max(found.shape[-1] for found in maps)
    columns = []
    for found in maps:
        column = found.float().contiguous(memory_format=torch.channels_last)
        if column.shape[-2:] != (side, side):
            column = F.interpolate(column, size=(side, side), mode="bilinear")
        columns.append(F.normalize(column, dim=1) if normalize else column)
    return torch.cat(columns, dim=1)


def maps_of(
    backbone: Backbone,
    images: Float[Tensor, "b 3 h w"],
    layers: Sequence[MapName],
    *,
    stride: int | None = None,
) -> list[Float[Tensor, "b _ _ _"]]:
    """The maps of these layers, each at its own resolution, from one forward pass.

    Args:
        backbone: Any timm CNN, or a timm `VisionTransformer`.
        images: Normalised images.
        layers: See the module docstring.
        stride: Step of a ViT's patches in pixels; less than the patch size makes them overlap and
            the map larger, with position embeddings interpolated.

    Raises:
        ValueError: A layer or a stride that the network does not have.
    """
    if backbone.patch_size is not None:
        return _vit_maps(backbone, images, layers, stride)
    if stride is not None:
        raise ValueError(f"stride: {backbone.name} has no patches; leave it out")
    modules = dict(backbone.model.named_modules())
    found: dict[MapName, Tensor] = {}
    numbers = [layer for layer in layers if isinstance(layer, int)]
    with ExitStack() as hooks:
        for layer in layers:
            if isinstance(layer, str):
                module = modules.get(layer)
                if module is None:
                    raise ValueError(f"layers: {backbone.name} has no layer '{layer}'")
                hooks.callback(module.register_forward_hook(_Keep(found, layer)).remove)
        if numbers:
            count = len(getattr(backbone.model, "feature_info", ())) or 1
            ordered = sorted(set(numbers), key=lambda number: number % count)  # timm's error
            found |= zip(ordered, backbone.feature_maps(images, ordered), strict=True)
        else:
            backbone.model.forward_features(images)
    flat = [layer for layer in layers if layer not in found or found[layer].dim() != 4]
    if flat:
        raise ValueError(f"layers: '{flat[0]}' of {backbone.name} has no map as output")
    return [found[layer] for layer in layers]


class _Keep:
    """A forward hook that copies a module's output, since the next layer may modify it in place."""

    def __init__(self, found: dict[Any, Tensor], name: Any) -> None:
        self.found, self.name = found, name

    def __call__(self, module: Any, inputs: Any, output: Tensor) -> None:
        """Called by torch."""
        self.found[self.name] = output.clone()


# --------------------------------------------------------------------------- ViT


def _vit_maps(
    backbone: Backbone, images: Tensor, layers: Sequence[MapName], stride: int | None
) -> list[Tensor]:
    model = backbone.model
    blocks = getattr(model, "blocks", None)
    if blocks is None or not hasattr(model, "num_prefix_tokens"):
        raise ValueError(f"layers: the tokens of {backbone.name} cannot be read; use a plain ViT")
    found: dict[Any, Tensor] = {}
    with ExitStack() as stack:
        if stride is not None:
            stack.enter_context(overlapping_patches(backbone, stride))
        for layer in layers:
            module = _vit_module(backbone, layer)
            stack.callback(module.register_forward_hook(_Keep(found, layer)).remove)
        patches = model.patch_embed.proj.register_forward_hook(_Keep(found, "grid"))
        stack.callback(patches.remove)
        model.forward_features(images)
    for layer in layers:
        if layer not in found:  # EVA multiplies by the weights of `qkv` without calling it
            raise _unread(backbone, layer)
    height, width = found["grid"].shape[-2:]
    return [_as_map(model, layer, found[layer].float(), (height, width)) for layer in layers]


def _vit_module(backbone: Backbone, layer: MapName) -> Any:
    """The module whose output contains this layer's map."""
    blocks, (word, number) = backbone.model.blocks, _word(layer)
    if word is None:
        raise ValueError(
            f"layers: {backbone.name} has no '{layer}'; the layers of a ViT are a block's number, "
            "keys, keys:9 and attention"
        )
    if not -len(blocks) <= number < len(blocks):
        raise ValueError(f"layers: {backbone.name} has {len(blocks)} blocks; there is no {layer}")
    if word == "block":
        return blocks[number]
    attention: Any = getattr(blocks[number], "attn", None)
    parts = [getattr(attention, part, None) for part in ("qkv", "q_norm", "k_norm")]
    if None in parts or (word == "attention" and type(attention) is not Attention):
        raise _unread(backbone, layer)
    return attention.qkv


def _unread(backbone: Backbone, layer: MapName) -> ValueError:
    return ValueError(
        f"layers: the {_word(layer)[0]} of {backbone.name} cannot be read; use the tokens of its "
        "last block, layers=[-1]"
    )


def _word(layer: MapName) -> tuple[str | None, int]:
    """Kind (`None` for tokens, `keys` or `attention`) and number of the block."""
    if isinstance(layer, int):
        return "block", layer
    match = re.fullmatch(r"(keys|attention)(?::(-?\d+))?", layer)
    return (match[1], int(match[2] or -1)) if match else (None, -1)


def _as_map(model: Any, layer: MapName, output: Tensor, grid: tuple[int, int]) -> Tensor:
    """The patches of a block's output; prefix tokens stand before them, if they are there yet."""
    word, number = _word(layer)
    if word != "block":
        attention = model.blocks[number].attn
        q, k, _ = output.unflatten(2, (3, attention.num_heads, -1)).unbind(2)  # (b, t, heads, e)
        q, k = attention.q_norm(q), attention.k_norm(k)
        output = k.flatten(2) if word == "keys" else _class_attention(model, q * attention.scale, k)
    height, width = grid
    return tokens_to_map(output[:, -height * width :], height)


def _class_attention(model: Any, q: Tensor, k: Tensor) -> Tensor:
    """Attention of the class token, (b, t, heads); the mean over all tokens if there is none."""
    q = q if getattr(model, "cls_token", None) is None else q[:, :1]
    return torch.einsum("bqhe,bthe->bhqt", q, k).softmax(dim=-1).mean(dim=2).mT


@contextmanager
def overlapping_patches(backbone: Backbone, stride: int) -> Iterator[None]:
    """Inside the context, a ViT takes patches at this stride; weights do not change.

    There are (side - patch) // stride + 1 patches per side; position embeddings are interpolated.
    Source: Amir et al., 2021, who use a stride of 4 for patches of 8.

    Raises:
        ValueError: A stride out of range, or a transformer with a fixed grid of patches.
    """
    model, patch = backbone.model, backbone.patch_size
    if patch is None or not 1 <= stride <= patch:
        raise ValueError(f"stride: {stride} is not between 1 and the patch size {patch}")
    if not hasattr(model, "dynamic_img_size") or not hasattr(model.patch_embed, "output_fmt"):
        raise ValueError(f"stride: {backbone.name} reads one grid of patches; leave it out")
    embed = model.patch_embed
    if getattr(embed, "feature_ratio", None):
        raise ValueError(
            f"stride: the patches of {backbone.name} lie on the map of its stem; leave it out"
        )
    changes = [
        (model, "dynamic_img_size", True),
        (embed, "strict_img_size", False),
        (embed, "flatten", False),
        (embed, "output_fmt", Format.NHWC),
        (embed.proj, "stride", (stride, stride)),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
