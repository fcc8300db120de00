"""A timm model that is pooled by a learned attention: `fgssl_attentive`.

Paper: LCR (Shu, van den Hengel & Liu, CVPR 2023).

    trunk      any timm model whose features are the mean over the positions of its last map A
    attention  a = max over 32 channels of ReLU(BN(conv 1x1(A))), scaled to 0..1 in each image
    pooling    the trunk's own pooling of A a / mean(a), that is, the mean of A with weights a

The trunk is an option, so one name is enough:
`timm.create_model("fgssl_attentive", trunk="resnet50")`. Import fg_ssl_zoo before opening such a
model, since stock timm does not have it. timm shows the last part of a module's name when it lists
models, hence the name of this file.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor, nn

from fg_ssl_zoo.config import nearest
from fg_ssl_zoo.ops.gradcam import min_max
from fg_ssl_zoo.ops.tokens import tokens_to_map

POOLINGS = ("attention", "avg", "")
"""Pooling by the attention, by the trunk itself, and none."""


class AttentionBranch(nn.Module):
    """The attention: a (b, h, w) map in 0..1 (the paper's GFB).

    Args:
        width: Channels of the feature map.
        channels: Number of channels of the 1x1 convolution; 32 in the paper's code.
    """

    def __init__(self, width: int, channels: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
        """Attention map; constant maps become 1 everywhere."""
        return min_max(self.norm(self.conv(maps)).relu().amax(1))


def map_of(trunk: nn.Module, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
    """The output of a timm model's `forward_features`, or its gradient, as a map (b, c, h, w).

    Args:
        trunk: Defines the position of the channels, and the number of prefix tokens of a ViT.
        features: A map, channels first or last, or tokens (b, n, c). Patches that do not form a
            square become one column.
    """
    if features.ndim == 3:
        patches = features[:, _num_prefix_tokens(trunk) :]
        side = math.isqrt(patches.shape[1])
        rows = side if side**2 == patches.shape[1] else patches.shape[1]
        return tokens_to_map(patches, rows)
    return features.movedim(-1, 1) if _channels_last(trunk) else features


def weigh(
    trunk: nn.Module, features: Float[Tensor, "b ..."], attention: Float[Tensor, "b h w"]
) -> Float[Tensor, "b ..."]:
    """Features whose plain mean over the positions is the attention-weighted mean of the input.

    Args:
        trunk: Network whose `forward_features` computed them.
        features: Multiplied by attention / mean(attention); prefix tokens are not changed.
        attention: Weights for `map_of(trunk, features)`; not negative, and not zero everywhere.
    """
    factor = (attention / attention.mean((1, 2), keepdim=True)).to(features.dtype)
    if features.ndim == 3:
        start = _num_prefix_tokens(trunk)
        patches = features[:, start:] * factor.flatten(1)[..., None]
        return torch.cat([features[:, :start], patches], dim=1)
    return features * (factor[..., None] if _channels_last(trunk) else factor[:, None])


def check_pooling(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse a timm model whose features are not the mean over the positions of its last map.

    Attention cannot weight such features, and the loss of a ViT that is pooled by its class token
    has no gradient at the patches.

    Raises:
        ValueError: Such a backbone, or images so small that the map has only one position.
    """
    twin: Any = copy.deepcopy(model).eval()
    side = image_size
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        device = next(twin.parameters()).device
        found = twin.forward_features(torch.zeros(1, 3, side, side, device=device))
        if not isinstance(found, Tensor):
            raise ValueError(f"{name} has several last maps; attention needs one; use a resnet50")
        height, width = map_of(twin, found).shape[2:]
        if height * width == 1:
            raise ValueError(
                f"data.image_size: with {side} pixels the last map of {name} has one position; "
                f"use {2 * side}"
            )
        varied = 10 * torch.randn(found.shape, generator=generator).to(found)
        attention = torch.rand((1, height, width), generator=generator).to(found)
        own, of_mean, weighed = (
            twin.forward_head(x)
            for x in (varied, _evened(twin, varied), weigh(twin, varied, attention))
        )
    if torch.allclose(own, weighed) or not torch.allclose(own, of_mean, rtol=1e-3, atol=1e-4):
        how = (
            "{global_pool: avg, fc_norm: false}"
            if hasattr(model, "patch_embed")
            else "{global_pool: avg}"
        )
        raise ValueError(
            f"{name}: its features are not the mean over the positions of its last map, which "
            f"attention needs; use backbone_options={how} or a resnet50"
        )


def _evened(trunk: nn.Module, features: Tensor) -> Tensor:
    """Features in which every position has the mean of the map."""
    if features.ndim == 3:
        first, patches = features.tensor_split([_num_prefix_tokens(trunk)], dim=1)
        return torch.cat([first, patches.mean(1, keepdim=True).expand_as(patches)], dim=1)
    axes = (1, 2) if _channels_last(trunk) else (2, 3)
    return features.mean(axes, keepdim=True).expand_as(features)


def _num_prefix_tokens(trunk: nn.Module) -> int:
    return int(getattr(trunk, "num_prefix_tokens", 0))


def _channels_last(trunk: nn.Module) -> bool:
    return getattr(trunk, "output_fmt", "NCHW") == "NHWC"


class Attentive(nn.Module):
    """A trunk, its attention, and a classifier if one is asked for.

    Args:
        trunk: Name of a timm model that averages its last map.
        trunk_options: Keywords of its constructor.
        attention_channels: Number of channels of the branch; 32 in the paper's code.
        num_classes: 0 for no classifier.
        in_chans: Channels of the image.
        global_pool: `attention`, `avg` for the trunk's own pooling, or '' for its last features.
        drop_rate: Dropout before the classifier.

    Raises:
        ValueError: Unknown trunk or pooling.
    """

    def __init__(
        self,
        trunk: str = "resnet50",
        trunk_options: Mapping[str, Any] | None = None,
        attention_channels: int = 32,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "attention",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not timm.is_model(trunk):
            raise ValueError(f"trunk: unknown '{trunk}'{nearest(trunk, timm.list_models())}")
        options = {**(trunk_options or {}), "num_classes": 0, "in_chans": in_chans}
        self.trunk: Any = timm.create_model(trunk, **options)
        self.num_features: int = self.trunk.num_features
        self.head_hidden_size: int = getattr(self.trunk, "head_hidden_size", self.num_features)
        self.attention: nn.Module = AttentionBranch(self.num_features, attention_channels)
        stages = getattr(self.trunk, "feature_info", [])
        self.feature_info = [
            {**stage, "module": f"trunk.{stage['module']}"}
            for stage in getattr(stages, "info", stages)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self._set_head(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """The trunk's last features: its map, or the tokens of a ViT."""
        return self.trunk.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features, or logits if there is a classifier."""
        if self.global_pool == "attention":
            x = weigh(self.trunk, x, self.attention(map_of(self.trunk, x)))
        x = self.trunk.forward_head(x) if self.global_pool else x
        x = self.head_drop(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(b, num_classes), or (b, head_hidden_size) without a classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The trunk's feature maps, as in timm."""
        return self.trunk.forward_intermediates(x, *args, **kwargs)

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Remove the attention, the head, and the layers that no selected map needs."""
        self.attention = nn.Identity()
        self._set_head(0, "")
        return self.trunk.prune_intermediate_layers(*args, **kwargs)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes for none; `global_pool` as in the constructor."""
        self._set_head(num_classes, self.global_pool if global_pool is None else global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Passed to the trunk."""
        self.trunk.set_grad_checkpointing(enable)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        if global_pool not in POOLINGS or (num_classes and not global_pool):
            raise ValueError(
                f"global_pool: '{global_pool}' with {num_classes} classes; use attention or avg, "
                "or '' without classes"
            )
        self.num_classes, self.global_pool = num_classes, global_pool
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()


# --------------------------------------------------------------------------- registration

__all__: list[str] = []  # timm appends every name it registers
default_cfgs = generate_default_cfgs({
    "fgssl_attentive": {
        "input_size": (3, 224, 224), "interpolation": "bicubic", "classifier": "fc",
    },
})  # fmt: skip


@register_model
def fgssl_attentive(pretrained: bool = False, trunk: str = "resnet50", **kwargs: Any) -> nn.Module:
    """A trunk pooled by its attention; selected by `trunk` and `trunk_options`."""
    stock = get_pretrained_cfg(trunk)
    first = stock.first_conv if stock else None
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if isinstance(first, str):
        overlay.setdefault("first_conv", f"trunk.{first}")
    return build_model_with_cfg(
        Attentive, "fgssl_attentive", pretrained, feature_cfg={
            "out_indices": 3, "feature_cls": "getter",
        }, trunk=trunk, pretrained_cfg_overlay=overlay, **kwargs,
    )  # fmt: skip
