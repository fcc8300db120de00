"""Keywords of a timm constructor that a recipe may set, and what the network then has to return."""

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from torch import nn

from fg_ssl_zoo.backbones.published_config import check_arguments
from fg_ssl_zoo.config import below, printable
from fg_ssl_zoo.layers.modes import evaluating

RESERVED = {
    "num_classes": "a backbone has no classifier",
    "features_only": "a backbone returns pooled features; feature maps are read without it",
    "img_size": "data.image_size sets it",
    "image_size": "data.image_size sets it",
    "name": "`backbone` names the network",
    "model_name": "`backbone` names the network",
    "init": "`init` names the start weights",
    "pretrained": "`init` names the start weights",
    "pretrained_cfg": "`init` names the start weights",
    "pretrained_cfg_overlay": "`init` names the start weights",
    "checkpoint_path": "`init` names the start weights",
    "cache_dir": "HF_HOME names the cache",
    "kwargs": "each option has a name of its own",
}
"""Options that something else decides, and what."""


def check_options(options: Mapping[str, Any], where: str = "backbone_options") -> None:
    """Refuse options that no backbone may have, whatever the network.

    Args:
        options: Keywords of the constructor.
        where: Their path, for the error.

    Raises:
        ValueError: The first one, and what would be right.
    """
    for key, value in options.items():
        path = below(where, key)
        if key in RESERVED:
            raise ValueError(f"{path}: {RESERVED[key]}; remove this option")
        if key == "in_chans" and value != 3:
            raise ValueError(f"{path}: pictures are read with 3 channels, got {value!a}")
        if key.endswith("_rate") and not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{path}: should be a number from 0 to below 1, got {value!a}")
    try:
        check_arguments(where, options)
    except ValueError as error:
        raise ValueError(f"{where}: {printable(str(error).removeprefix(f'{where}: '))}") from None


def create_model(source: str, words: str, arguments: Mapping[str, Any]) -> Any:
    """The timm model; what it cannot do with options of the recipe is one line.

    Args:
        source: What timm calls the model.
        words: What the user calls it, for the error.
        arguments: Keywords of the constructor, options of the recipe and ours.

    Raises:
        ValueError: It cannot be built with these options.
    """
    ours = ("img_size", "pretrained", "cache_dir")
    options = {key: value for key, value in arguments.items() if key not in ours}

    def create() -> Any:
        return timm.create_model(source, **{"num_classes": 0, **arguments})

    return _with(create, words, options) if options else create()


def _with(create: Callable[[], Any], words: str, options: Mapping[str, Any]) -> Any:
    """What `create` returns; whatever it raises about the options becomes one line."""
    try:
        return create()
    except (ValueError, OSError) as error:
        if type(error) is not ValueError:  # of weights, which has its own line
            raise
        raise _refused(words, options, error) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError,
            RuntimeError) as error:  # fmt: skip
        raise _refused(words, options, error) from error


def check_features(model: nn.Module, name: str, options: Mapping[str, Any], size: int) -> None:
    """Refuse options with which the network does not return a row of features for each picture.

    Args:
        model: Runs on two empty pictures, in evaluation mode.
        name: Of the architecture.
        options: Keywords that it was built with.
        size: Side of a picture in pixels.

    Raises:
        ValueError: It cannot run, or returns something else.
    """
    if empty := [key for key, value in model.named_parameters() if not value.numel()]:
        raise ValueError(
            f"backbone_options: {name} with {_shown(options)} has no numbers in {empty[0]}"
        )
    device = next(model.parameters()).device
    pictures = torch.zeros(2, 3, size, size, device=device)
    with evaluating(model), torch.no_grad():
        found = _with(lambda: model(pictures), name, options)
    if getattr(found, "ndim", 0) != 2:
        shape = tuple(getattr(found, "shape", ())) or type(found).__name__
        raise ValueError(
            f"backbone_options: {name} with {_shown(options)} returns {shape} for 2 pictures of "
            f"{size} px, and not 2 rows of features; global_pool=avg pools a feature map"
        )


def _refused(words: str, options: Mapping[str, Any], error: Exception) -> ValueError:
    line = next(iter(str(error).splitlines()), "") or "no reason given"
    if "unexpected keyword" in line:
        return ValueError(
            f"backbone_options: {words} does not take them all ({printable(line)}); "
            "backbone_options={} does"
        )
    reason = f"{type(error).__name__}: {line}"[:200]
    return ValueError(
        f"backbone_options: {words} cannot be built with {_shown(options)} ({printable(reason)}); "
        "backbone_options={} can"
    )


def _shown(options: Mapping[str, Any]) -> str:
    return printable(", ".join(f"{key}={value!r}" for key, value in options.items()))[:200]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
