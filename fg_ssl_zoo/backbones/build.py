"""Build a timm network with checked options; errors are one line.

network_of          an architecture with options, for an image size
published_network   the network of a name with weights, a folder or a repository
build               timm's constructor, which both call
check_options       checks the constructor keywords of a recipe
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from torch import nn

from fg_ssl_zoo.backbones.backbone import WrongSize, failure_at, patch_size_of
from fg_ssl_zoo.backbones.fgssl_models import stock_of
from fg_ssl_zoo.backbones.weights.config import PLACES, check_arguments, check_source
from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError, explain
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
"""Option that a recipe may not contain -> the reason, or the key that sets it."""

UNFIT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError,
)  # fmt: skip
"""Errors that constructors raise for options or weights that do not fit."""


def check_options(options: Mapping[str, Any], where: str = "backbone_options") -> None:
    """Refuse options that are not allowed for any backbone.

    Args:
        options: Keywords of the constructor.
        where: Their path, for the error.

    Raises:
        ValueError: Names the first such option and what to use instead.
    """
    for key, value in options.items():
        path = below(where, key)
        if key in RESERVED:
            raise ValueError(f"{path}: {RESERVED[key]}; remove this option")
        if key == "in_chans" and value != 3:
            raise ValueError(f"{path}: images have 3 channels, got {value!a}")
        if key.endswith("_rate") and not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{path}: a number from 0 to below 1 is needed, got {value!a}")
    try:
        check_arguments(where, options)
    except ValueError as error:
        raise ValueError(f"{where}: {printable(str(error).removeprefix(f'{where}: '))}") from None


# --------------------------------------------------------------------------- the network


class Network(NamedTuple):
    """A timm model and how it was built.

    Fields:
        model: The model without its classifier.
        name: Name of its architecture.
        image_size: Side of its images in pixels.
        options: Keywords of its constructor that an export must contain.
        cfg: timm's `pretrained_cfg` of the weights, or of the architecture if there are none.
    """

    model: Any
    name: str
    image_size: int
    options: dict[str, Any]
    cfg: Mapping[str, Any]


def network_of(
    name: str,
    image_size: int,
    options: Mapping[str, Any],
    init: str = "scratch",
    place: str | None = None,
) -> Network:
    """An architecture with options, for an image size; with weights if timm loads them.

    Args:
        name: Name of a timm architecture.
        image_size: Side of its images in pixels.
        options: Keywords of its constructor.
        init: The user's name of the weights, for errors.
        place: timm's name of the weights, as for `build`; `None` for random initialisation.

    Raises:
        ValueError: An option or size that does not fit; weights that are not available or belong
            to another network; or an output that is not one row of features per image.
    """
    check_options(options)
    options = dict(options)
    arguments = {**size_arguments(name, image_size), **options}
    if place is None:
        model = untrained(name, image_size, options)
    else:
        _check_patch_size_first(name, image_size, options)
        words = init if place.startswith(PLACES) else place
        config = checked_config(place, words)
        model = build(place, words, config, pretrained=True, **arguments)
        _refuse_another(model, name, init, arguments)
        options = {**_built_with(config), **options}  # an export must contain both
    if options:
        try:
            check_features(model, name, options, image_size)
        except ValueError:
            plain = build(name, name, **size_arguments(name, image_size))
            check_image_size(plain, name, image_size)  # which may be at fault, not the options
            raise
    else:
        check_image_size(model, name, image_size)
    return Network(model, name, image_size, options, getattr(model, "pretrained_cfg", {}))


def untrained(name: str, image_size: int, options: Mapping[str, Any]) -> Any:
    """A network with random weights; refuses an image size that the patches of a ViT do not divide.

    The patch size is read off the network itself, since a second network for that takes a fifth of
    the time of the first. That of a hybrid is wrong if the size was: it follows from both.
    """
    try:
        model = build(name, name, **{**size_arguments(name, image_size), **options})
    except Exception:
        _check_patch_size_first(name, image_size, options)  # the size may be at fault
        raise
    if hasattr(getattr(model, "patch_embed", None), "feature_ratio"):
        _check_patch_size_first(name, image_size, options)
    else:
        check_patch_size(model, name, image_size)
    return model


def _check_patch_size_first(name: str, image_size: int, options: Mapping[str, Any]) -> None:
    """Refuse a size that does not fit, without the network: before weights are downloaded."""
    if size_arguments(name, image_size):
        with torch.device("meta"):
            shape = build(name, name, **options)
        check_patch_size(shape, name, image_size)


def _refuse_another(model: Any, name: str, init: str, arguments: Mapping[str, Any]) -> None:
    """Refuse weights of another architecture, or built with other options, than the recipe's."""
    found = model.pretrained_cfg.get("architecture") or name
    if found not in (name, stock_of(name, model)[0]):
        raise ValueError(f"init: {init} holds a {found}; the recipe's backbone is {name}")
    with torch.device("meta"):
        wanted = build(name, name, **arguments).state_dict()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if shapes != {key: value.shape for key, value in wanted.items()}:
        raise ValueError(f"init: {init} was built with other backbone_options than the recipe's")


def published_network(
    place: str, words: str, image_size: int | None, *, pretrained: bool = True
) -> Network:
    """The network of a name with weights, a folder or a repository.

    Args and errors as for `build`; without `image_size` the network keeps its own size.
    """
    config = checked_config(place, words)
    with torch.random.fork_rng(devices=[]):  # an untrained network depends on the caller's seed
        found = build(place, words, config, pretrained=pretrained)
    cfg: Any = found.pretrained_cfg  # of a name, known only once its weights are located
    size = image_size or cfg["input_size"][-1]
    name = cfg.get("architecture") or words
    arguments: dict[str, Any] = size_arguments(name, size)
    check_patch_size(found, name, size)
    at_own_size = size == cfg["input_size"][-1] or not arguments
    if not (pretrained and at_own_size):
        try:
            found = build(place, words, config, pretrained=pretrained, **arguments)
        except ValueError:
            plain = build(place, words, config, pretrained=False, **arguments)
            check_image_size(plain, name, size)  # which may be at fault, not the weights
            raise
    check_image_size(found, name, size)
    return Network(found, name, size, _built_with(config), cfg)


def _built_with(config: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor keywords in the configuration, without size and classifier."""
    arguments = config.get("model_args") or {}
    return {key: arguments[key] for key in arguments if key not in ("img_size", "num_classes")}


def build(
    place: str, words: str, config: Mapping[str, Any] | None = None, /, **arguments: Any
) -> Any:
    """Create the timm model; every error is one line that quotes the user's text.

    Args:
        place: timm's name of the model: an architecture, a name with a tag, `local-dir:FOLDER`,
            `hf-hub:OWNER/NAME`.
        words: The user's text, for the error.
        config: The configuration there, if `checked_config` has already returned it.
        **arguments: Keywords of the constructor: options of the recipe, and our own.

    Raises:
        ValueError: An option that the network does not accept, or weights or a configuration that
            are not available.
    """
    if config is None:
        config = checked_config(place, words, arguments.get("cache_dir"))
    ours = ("img_size", "pretrained", "cache_dir")
    options = {key: value for key, value in arguments.items() if key not in ours}

    def create() -> Any:
        return timm.create_model(place, **{"num_classes": 0, **arguments})

    try:
        with _weights_in_one_line(place, words):
            return _options_in_one_line(create, words, options) if options else create()
    except UNFIT as error:
        if not place.startswith(PLACES):
            raise
        raise ValueError(f"{words}: {_misfit(config, error)}") from error


def checked_config(
    place: str, words: str, cache_dir: str | Path | None = None
) -> Mapping[str, Any]:
    """Checked configuration of a folder or repository; empty for a timm name.

    Args and errors as for `build`.
    """
    if not place.startswith(PLACES):
        return {}
    with _weights_in_one_line(place, words):
        return check_source(place, cache_dir)


@contextmanager
def _weights_in_one_line(place: str, words: str) -> Iterator[None]:
    try:
        yield
    except (OSError, HfHubHTTPError, SafetensorError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        reason = line if place.startswith("local-dir:") else explain(error)
        raise ValueError(f"no weights for {words}: {reason}") from error
    except PretrainedWeightsError as error:
        raise ValueError(str(error)) from error


def _misfit(config: Mapping[str, Any], error: Exception) -> str:
    """The error of timm or torch for weights or arguments that do not fit, on one line.

    torch lists missing, unexpected and misshapen tensors after the first line.
    """
    arguments = config.get("model_args") or {}
    texts = ", ".join(f"{k}: {v!r}" for k, v in arguments.items() if isinstance(v, str))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[1:3] or lines or ["no reason given"])
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    hint = f"; texts among its model_args: {texts}" if texts else ""
    return f"its weights do not fit its config.json ({type(error).__name__}: {said}){hint}"


def size_arguments(name: str, image_size: int) -> dict[str, int]:
    """`img_size` for architectures whose weights depend on it; empty for all others."""
    config = timm.get_pretrained_cfg(name)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def check_patch_size(model: nn.Module, name: str, image_size: int) -> None:
    """Refuse a size that is not a multiple of the patch size, if weights depend on the size.

    Args:
        model: timm model, built for any image size.
        name: Name of its architecture.
        image_size: Side of an image in pixels.

    Raises:
        WrongSize: It is not; the message names the next sizes that are.
    """
    patch = patch_size_of(model) or 1
    if image_size % patch and size_arguments(name, image_size):
        lower, upper = image_size // patch * patch, (image_size // patch + 1) * patch
        fitting = f"{lower} or {upper}" if lower else str(upper)
        raise WrongSize(
            f"data.image_size: {image_size} is not divisible by the patch size {patch} of {name}; "
            f"use {fitting}"
        )


def _options_in_one_line(create: Callable[[], Any], words: str, options: Mapping[str, Any]) -> Any:
    """Call `create`; its errors about the options become one line."""
    try:
        return create()
    except (ValueError, OSError) as error:
        if type(error) is not ValueError:  # an error about weights has its own message
            raise
        raise _refused(words, options, error) from error
    except UNFIT as error:
        raise _refused(words, options, error) from error


def check_features(model: nn.Module, name: str, options: Mapping[str, Any], size: int) -> None:
    """Refuse options with which the network does not return one row of features per image.

    Args:
        model: Model that is run on two empty images in evaluation mode.
        name: Name of the architecture.
        options: Keywords that it was built with.
        size: Side of an image in pixels.

    Raises:
        ValueError: The network fails, or returns something else.
    """
    if empty := [key for key, value in model.named_parameters() if not value.numel()]:
        raise ValueError(
            f"backbone_options: {name} with {_shown(options)} has an empty tensor {empty[0]}"
        )
    device = next(model.parameters()).device
    pictures = torch.zeros(2, 3, size, size, device=device)
    with evaluating(model), torch.no_grad():
        found = _options_in_one_line(lambda: model(pictures), name, options)
    if getattr(found, "ndim", 0) != 2:
        shape = tuple(getattr(found, "shape", ())) or type(found).__name__
        raise ValueError(
            f"backbone_options: {name} with {_shown(options)} returns {shape} for 2 images of "
            f"{size} px instead of 2 rows of features; global_pool=avg pools a feature map"
        )


def check_image_size(model: Any, name: str, size: int) -> None:
    """Refuse images that the network cannot read; its own size is not tried.

    Args:
        model: timm model.
        name: Name of its architecture.
        size: Side of an image in pixels.

    Raises:
        WrongSize: The network fails; the message names the size that timm gives it.
    """
    own = getattr(model, "pretrained_cfg", {}).get("input_size", (size,))[-1]
    if size != own and (reason := failure_at(model, size)):
        raise WrongSize(
            f"data.image_size: {name} cannot read images of {size} pixels ({reason}); "
            f"{own}, its own size, works"
        )


def _refused(words: str, options: Mapping[str, Any], error: Exception) -> ValueError:
    line = next(iter(str(error).splitlines()), "") or "no reason given"
    if "unexpected keyword" in line:
        return ValueError(
            f"backbone_options: {words} does not accept all of them ({printable(line)}); "
            "backbone_options={} works"
        )
    reason = f"{type(error).__name__}: {line}"[:200]
    return ValueError(
        f"backbone_options: {words} cannot be built with {_shown(options)} ({printable(reason)}); "
        "backbone_options={} works"
    )


def _shown(options: Mapping[str, Any]) -> str:
    return printable(", ".join(f"{key}={value!r}" for key, value in options.items()))[:200]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
