"""A backbone by whatever words a user has for it: ours or not, a folder, a Hub id, a timm name."""

import logging
import re
from dataclasses import replace
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from timm.data.config import resolve_data_config
from torch import nn

from fg_ssl_zoo.backbones.backbone import (
    Backbone,
    build,
    built_with,
    create_backbone,
    size_arguments,
)
from fg_ssl_zoo.backbones.fgssl_models import published_as, stock_of
from fg_ssl_zoo.backbones.identity import effective_options
from fg_ssl_zoo.backbones.options import check_options
from fg_ssl_zoo.backbones.published import exported_folder, whole
from fg_ssl_zoo.backbones.published_config import check_config
from fg_ssl_zoo.backbones.start_weights import PARTIAL, is_file_name, read_weights, start_from
from fg_ssl_zoo.backbones.zoo import published_folder
from fg_ssl_zoo.config import Recipe, home_path, load_recipe, nearest, read_flow, untyped

_log = logging.getLogger(__name__)

FORMS = (
    "a run folder, an exported folder, hf-hub:OWNER/NAME, local-dir:FOLDER, a timm or fgssl name, "
    "or ARCHITECTURE@INIT, where INIT is what a recipe takes: scratch, a pretrained tag, a "
    ".safetensors file, ...; 'ARCHITECTURE{depth: 6}@INIT' with options of its constructor"
)
"""The words that `open_backbone` understands."""

PLACES = ("hf-hub:", "hf_hub:", "local-dir:")


def open_backbone(
    words: str, *, image_size: int | None = None, pretrained: bool = True
) -> Backbone:
    """The backbone that these words mean, without its classifier.

    Args:
        words: One of

            - `runs/NAME`, the folder of a run, or the exported folder itself;
            - `hf-hub:OWNER/NAME[@REVISION]` or `local-dir:FOLDER`, as timm writes them;
            - `fgssl_resnet50_cub`, `resnet50.a1_in1k`: a name that has pretrained weights;
            - `fgssl_resnet50_cub.simclr@REVISION`: those of a commit, tag or branch of the Hub;
            - `resnet18@scratch`, `resnet18@a1_in1k`, `resnet18@FILE.safetensors`,
              `resnet18@FILE.safetensors#partial`: an architecture and the `init` of a recipe;
            - `vit_tiny_patch16_224{depth: 6}@FILE.safetensors`: with its `backbone_options` too.
        image_size: Side of the input in pixels; the model's own when not given. The pictures are
            brought to any size by the rest of the model's own `pretrained_cfg`; an
            `ARCHITECTURE@INIT` has that of a recipe, whose start it is.
        pretrained: Otherwise the same network as timm initialises it, under torch's seed.

    Raises:
        ValueError: Nothing is meant by these words, or the size does not fit; the message names
            what would be right.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size: {image_size} is no number of pixels")
    head, at, init = words.partition("@")
    architecture, options = _with_options(head)
    if at and not _is_pinned(words):
        own = timm.get_pretrained_cfg(architecture)
        size = image_size or (own.input_size[-1] if own else 224)
        init = init if pretrained else "scratch"
        return create_backbone(architecture, init=init, image_size=size, **options)
    source = _source(words)
    with torch.random.fork_rng(devices=[]):  # an untrained network is drawn from the caller's seed
        shape = build(source, words, pretrained=False)
    cfg: Any = shape.pretrained_cfg
    size = image_size or cfg["input_size"][-1]
    name = cfg.get("architecture") or words
    arguments: dict[str, Any] = size_arguments(name, size, shape)
    model = build(source, words, pretrained=pretrained, **arguments)
    own = resolve_data_config(pretrained_cfg=cfg)
    pixels = {key: own[key] for key in ("mean", "std", "crop_pct", "interpolation", "crop_mode")}
    init = words if pretrained else "scratch"
    return Backbone(model, name, init=init, image_size=size, options=built_with(source), **pixels)


def open_classifier(words: str) -> nn.Linear | None:
    """The linear classifier that a model of these words has behind its pooled features, if any.

    Args:
        words: As `open_backbone` takes them.

    Raises:
        ValueError: Nothing is meant by these words.
    """
    head, at, init = words.partition("@")
    name, _ = _with_options(head)
    pinned = not at or _is_pinned(words)
    if pinned or not is_file_name(init):
        source = _source(words) if pinned else f"{name}.{init}"
        model = build(source, words, pretrained=True, num_classes=None)
        found = model.get_classifier()
        return found.eval().requires_grad_(False) if isinstance(found, nn.Linear) else None
    cfg = timm.get_pretrained_cfg(name)
    weights = read_weights(home_path(init.removesuffix(PARTIAL)))
    weight, bias = (weights.get(f"{cfg and cfg.classifier}.{end}") for end in ("weight", "bias"))
    if weight is None or weight.ndim != 2:
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return linear.eval().requires_grad_(False)


# --------------------------------------------------------------------------- before training


def start_of(recipe: Recipe) -> Backbone:
    """The network that a recipe's training begins with, the same to the bit each time.

    Raises:
        ValueError: As `create_backbone`.
    """
    torch.manual_seed(recipe.seed)
    return create_backbone(
        recipe.backbone,
        init=recipe.init,
        image_size=recipe.data.image_size,
        **recipe.backbone_options,
    )


def open_start(words: str, trained: Backbone, *, seed: int) -> Backbone:
    """The network that a model was before its training, equal to the bit.

    It is shown pictures as the trained one is. A run, an exported folder and a model of ours have
    a recipe, which tells seed, size and start weights. Anything else is the same architecture with
    random weights. Its `init` is `scratch` where its weights are random.

    Args:
        words: As for `open_backbone`.
        trained: What these words opened.
        seed: Of random weights where there is no recipe.
    """
    recipe = _recipe_of(words)
    if recipe is not None and _is_of(recipe, trained):
        start = _at_size(_start_or_random(recipe, words), trained.image_size)
    else:
        torch.manual_seed(seed if recipe is None else recipe.seed)
        start = open_backbone(words, image_size=trained.image_size, pretrained=False)
    for key in ("crop_pct", "interpolation", "crop_mode"):  # both are shown the same pixels
        setattr(start, key, getattr(trained, key))
    return start


def _recipe_of(words: str) -> Recipe | None:
    """The recipe that a model was trained by, where it comes with one that can be read."""
    kind, _, place = words.partition(":")
    folder = home_path(place if kind == "local-dir" else words)
    try:
        if folder.is_dir():
            path = exported_folder(folder) / "recipe.yaml"
            return load_recipe(path) if path.is_file() else None
        if published := published_as(words):
            path = published_folder(*published) / "recipe.yaml"
            return load_recipe(path if path.is_file() else published.name)
        if kind in ("hf-hub", "hf_hub"):
            repo, _, revision = place.partition("@")
            return load_recipe(hf_hub_download(repo, "recipe.yaml", revision=revision or None))
    except (ValueError, OSError, HfHubHTTPError) as error:
        _log.info("%s comes without a recipe (%s)", words, error)
    return None


def _is_of(recipe: Recipe, trained: Backbone) -> bool:
    """Whether the recipe's network is this one: a companion, as a discriminator, is another."""
    options = recipe.backbone_options
    try:
        check_config({"architecture": recipe.backbone, "model_args": options})
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    own = effective_options(recipe.backbone, options, trained.image_size)
    architecture, stock_options = stock_of(trained.name, trained.model)
    there = {**stock_options, **trained.options}
    return recipe.backbone == architecture and own == effective_options(
        architecture, there, trained.image_size
    )


def _start_or_random(recipe: Recipe, words: str) -> Backbone:
    try:
        return start_of(recipe)
    except ValueError as error:
        if recipe.init == "scratch":
            raise
        _log.warning(
            "%s: its start weights cannot be had (%s); compared with random weights instead",
            words, error,
        )  # fmt: skip
        return start_of(replace(recipe, init="scratch"))


def _at_size(backbone: Backbone, image_size: int) -> Backbone:
    """The same weights for pictures of another size; position embeddings as timm resizes them.

    How pictures are brought to that size is the caller's to set.
    """
    if backbone.image_size == image_size:
        return backbone
    resized = create_backbone(backbone.name, image_size=image_size, **backbone.options)
    start_from(resized.model, backbone.model.state_dict(), backbone.init)
    resized.init, resized.mean, resized.std = backbone.init, backbone.mean, backbone.std
    return resized


def _with_options(words: str) -> tuple[str, dict[str, Any]]:
    """`vit_tiny_patch16_224{depth: 6}` -> name and keywords of its constructor.

    Raises:
        ValueError: What stands in braces is no YAML mapping.
    """
    match = re.fullmatch(r"([\w.]+)(\{.*\})", words)
    if match is None:
        return words, {}
    where = f"model {match[1]}"
    options = read_flow(match[2], where)
    if not all(key.isidentifier() for key in options):
        raise ValueError(
            f"model '{words}': {match[2]} is no mapping of options; {{depth: 6}} would be one"
        )
    options = untyped(options, where)
    check_options(options, where)  # before they meet other keywords
    return match[1], options


def _is_pinned(words: str) -> bool:
    """Whether the `@` stands before a revision of the Hub, or in a path, and not before an init."""
    if words.startswith(PLACES) or home_path(words).is_dir():
        return True
    return "." in words.partition("@")[0] and published_as(words) is not None


def _source(words: str) -> str:
    """What timm calls the model."""
    if words.startswith(PLACES):
        return words
    folder = home_path(words)
    if folder.is_dir():
        return f"local-dir:{whole(exported_folder(folder).resolve())}"
    name, _, tag = words.partition("@")[0].partition(".")
    if not timm.is_model(name):
        known = [*timm.list_models(), *timm.list_pretrained("fgssl*")]
        hint = ", and no such folder" if "/" in words else nearest(words, known)
        raise ValueError(f"no model '{words}'{hint}; a model is {FORMS}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if tag and tag not in tags:
        raise ValueError(f"{name} has no weights '{tag}'{nearest(tag, tags)}")
    if not tags:
        raise ValueError(f"{name} has no pretrained weights; {name}@scratch is it untrained")
    return words
