"""A vision transformer on the feature map of any timm CNN: `fgssl_hybrid`.

Paper: Dosovitskiy et al., 2021 (ViT, arXiv 2010.11929), section 3.1, "Hybrid Architecture".

    stem     a CNN up to one of its stages: ResNet-18's third, stride 16
    tokens   every position of that map, projected to the width of the transformer
    blocks   timm's `VisionTransformer`

On a few thousand images, a transformer from scratch learns poor patch features; a pretrained CNN
stem provides them from the start. timm has hybrids of four CNNs. Here, stem and widths are options:
`timm.create_model("fgssl_hybrid", stem="resnet18", depth=6)`. `init=FILE#partial` with the weights
of the CNN alone fills the stem. Import fg_ssl_zoo before opening such a model, since stock timm
does not have it.
"""

from functools import partial
from typing import Any

import timm
from timm.layers.hybrid_embed import HybridEmbed
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from fg_ssl_zoo.config import nearest

TINY: dict[str, Any] = {"embed_dim": 192, "depth": 6, "num_heads": 3}
"""ViT-Ti (DeiT, arXiv 2012.12877) with half of its blocks."""


def stem_of(name: str, stage: int, in_chans: int = 3) -> nn.Module:
    """A timm CNN up to one of its stages; its output is a list of one map.

    Args:
        name: Name of a timm model with feature maps (b, c, h, w).
        stage: Number of the feature map in `features_only`; map 3 has stride 16 for most CNNs.
        in_chans: Channels of the image.

    Raises:
        ValueError: No such model, or no such map.
    """
    if not timm.is_model(name):
        raise ValueError(f"stem: unknown '{name}'{nearest(name, timm.list_models())}")
    try:
        stem: Any = timm.create_model(
            name, features_only=True, out_indices=(stage,), in_chans=in_chans
        )
    except (AssertionError, IndexError, RuntimeError, AttributeError) as error:
        raise ValueError(f"stem_stage: {name} gives no feature map {stage} ({error})") from error
    if getattr(stem, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(f"stem: the maps of {name} are not (b, c, h, w); resnet18 works")
    return stem


__all__: list[str] = []  # timm appends every name it registers
default_cfgs = generate_default_cfgs({
    "fgssl_hybrid": {
        "input_size": (3, 224, 224), "fixed_input_size": True, "interpolation": "bicubic",
        "first_conv": "patch_embed.backbone.conv1", "classifier": "head",
    },
})  # fmt: skip


@register_model
def fgssl_hybrid(
    pretrained: bool = False, stem: str = "resnet18", stem_stage: int = 3, **kwargs: Any
) -> nn.Module:
    """A `VisionTransformer` whose tokens are the positions of a CNN's map; `stem` is the CNN."""
    below = stem_of(stem, stem_stage, kwargs.get("in_chans", 3))
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    stock = get_pretrained_cfg(stem)
    if stock and isinstance(stock.first_conv, str):
        overlay.setdefault("first_conv", f"patch_embed.backbone.{stock.first_conv}")
    return build_model_with_cfg(
        VisionTransformer, "fgssl_hybrid", pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        embed_layer=partial(HybridEmbed, backbone=below), patch_size=1,
        pretrained_cfg_overlay=overlay, **{**TINY, **kwargs},
    )  # fmt: skip
