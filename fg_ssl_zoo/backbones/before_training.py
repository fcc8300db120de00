"""The network that a model was before its training, equal to the bit, for the rows beside it."""

import logging
from dataclasses import replace

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone, open_backbone, start_of
from fg_ssl_zoo.backbones.fgssl_models import published_as, stock_of
from fg_ssl_zoo.backbones.identity import effective_options
from fg_ssl_zoo.backbones.weights.config import check_config
from fg_ssl_zoo.backbones.weights.folder import RECIPE, exported_folder
from fg_ssl_zoo.backbones.weights.locate import published_folder
from fg_ssl_zoo.backbones.weights.start import start_from
from fg_ssl_zoo.config import Recipe, home_path, load_recipe

_log = logging.getLogger(__name__)


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
            path = exported_folder(folder) / RECIPE
            return load_recipe(path) if path.is_file() else None
        if published := published_as(words):
            path = published_folder(published) / RECIPE
            return load_recipe(path if path.is_file() else published.name)
        if kind in ("hf-hub", "hf_hub"):
            repo, _, revision = place.partition("@")
            return load_recipe(hf_hub_download(repo, RECIPE, revision=revision or None))
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
