"""The identity of a model: models of equal identity give equal features for equal pixels.

    identity(backbone, layer)    architecture, options, weights, input size, pixels, layer
    differing(old, new)          which of these differ, for an error message

Weights alone are not enough: `global_pool`, `act_layer`, `output_stride` and others change the
features but not the weights. Options that do not change the features (a default written out,
`zero_init_last` and other initialisations, dropout) are left out, so the same network has the same
identity however it is opened.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone, weights_fingerprint
from fg_ssl_zoo.backbones.build import build, size_arguments
from fg_ssl_zoo.backbones.fgssl_models import stock_of
from fg_ssl_zoo.config import flatten

KEYS = (
    "architecture", "options", "weights", "image_size", "mean", "std", "interpolation", "crop_mode",
    "layer",
)  # fmt: skip
"""Keys of an identity, in the order of error messages."""

_ELSEWHERE = ("img_size", "num_classes")
"""Options that are left out: the identity has the input size, and no classifier."""

_NO_COMPUTATION = ("training", "fused_attn", "grad_checkpointing")
"""Attributes of modules that change speed or memory."""


def identity(backbone: Backbone, layer: int | None = None) -> dict[str, Any]:
    """Everything that determines the features of an image, as plain data for JSON.

    Args:
        backbone: Any backbone.
        layer: Feature map that is read, negative ones from the end; `None` for the pooled features.
    """
    architecture, stock_options = stock_of(backbone.name, backbone.model)
    options = {**stock_options, **backbone.options}
    count = len(getattr(backbone.model, "feature_info", ()))
    if layer is not None and -count <= layer < 0:
        layer += count
    return {
        "architecture": architecture,
        "options": effective_options(architecture, options, backbone.image_size),
        "weights": weights_fingerprint(backbone),
        "image_size": backbone.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "interpolation": backbone.interpolation,
        "crop_mode": backbone.crop_mode,
        "layer": layer,
    }


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`options.global_pool (avg there, max here)` for each thing that differs.

    A missing option has its default value.

    Args:
        old: An identity, or a mapping that holds one among other keys.
        new: The other identity.
    """
    before, after = (_leaves(found) for found in (old, new))
    return [
        f"{key} ({_shown(before, key)} there, {_shown(after, key)} here)"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]


def _shown(leaves: Mapping[str, Any], key: str) -> Any:
    return leaves.get(key, "default" if key.startswith("options.") else None)


def _leaves(found: Mapping[str, Any]) -> dict[str, Any]:
    content = {key: found.get(key) for key in KEYS}
    lists = {key: list(content[key] or ()) for key in ("mean", "std")}
    leaves = flatten({**content, **{key: str(value) for key, value in lists.items()}})
    return {key: value for key, value in leaves.items() if value not in ({}, None)}


def effective_options(
    architecture: str, options: Mapping[str, Any], image_size: int
) -> dict[str, Any]:
    """The options without those that do not change the network's computation.

    Args:
        architecture: Name of a timm architecture.
        options: Keywords of its constructor.
        image_size: Side of the input in pixels.
    """
    kept = {key: options[key] for key in sorted(options) if key not in _ELSEWHERE}
    if not kept:
        return kept
    whole = _computation(architecture, json.dumps(kept), image_size)
    for key in list(kept) if whole else ():
        without = {other: value for other, value in kept.items() if other != key}
        if _computation(architecture, json.dumps(without), image_size) == whole:
            kept = without
    return kept


@functools.lru_cache(maxsize=64)
def _computation(architecture: str, options: str, image_size: int) -> str | None:
    """Modules of a network with their settings; `None` if it cannot be built on the meta device."""
    given = json.loads(options)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            arguments = {**size_arguments(architecture, image_size), **given}
            model = build(architecture, architecture, **arguments)
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError):
        return None
    return "\n".join(
        f"{name} {type(module).__qualname__} {module.extra_repr()} {_settings(module)}"
        for name, module in model.named_modules()
        if "Drop" not in type(module).__name__
    )


def _settings(module: nn.Module) -> dict[str, Any]:
    """Plain attributes and functions, such as `num_heads` or `global_pool`."""
    found = {}
    for key, value in sorted(vars(module).items()):
        if key.startswith("_") or key in _NO_COMPUTATION or "init" in key or "drop" in key:
            continue
        if isinstance(value, bool | int | float | str | tuple):
            found[key] = value
        elif callable(value) and not isinstance(value, nn.Module):
            found[key] = getattr(value, "__qualname__", type(value).__qualname__)
    return found
