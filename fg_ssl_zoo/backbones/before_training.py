"""Open the network as it was before training, for the rows `untrained` and `start` of a table."""

import logging
from dataclasses import replace

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone, open_backbone, start_of
from fg_ssl_zoo.backbones.fgssl_models import published_as, stock_of
from fg_ssl_zoo.backbones.identity import effective_options
from fg_ssl_zoo.backbones.source import source_of
from fg_ssl_zoo.backbones.weights.config import check_config
from fg_ssl_zoo.backbones.weights.folder import RECIPE, exported_folder
from fg_ssl_zoo.backbones.weights.locate import published_folder
from fg_ssl_zoo.backbones.weights.start import start_from
from fg_ssl_zoo.config import Recipe, home_path, load_recipe

_log = logging.getLogger(__name__)


def open_start(words: str, trained: Backbone, *, seed: int) -> Backbone:
    """The network as it was before training, equal to the bit.

    It reads images in the same way as the trained network. A run, an exported folder and a model of
    ours have a recipe with seed, size and start weights. For any other model, it is the same
    architecture with random weights. `init` is `scratch` if its weights are random.

    Args:
        words: Text for `open_backbone`.
        trained: The backbone that this text opened.
        seed: Seed of random weights if there is no recipe.
    """
    recipe = _recipe_of(words)
    if recipe is not None and _is_of(recipe, trained):
        start = _at_size(_start_or_random(recipe, words), trained.image_size)
    else:
        torch.manual_seed(seed if recipe is None else recipe.seed)
        start = open_backbone(words, image_size=trained.image_size, pretrained=False)
    for key in ("crop_pct", "interpolation", "crop_mode"):  # both read the same pixels
        setattr(start, key, getattr(trained, key))
    return start


def _recipe_of(words: str) -> Recipe | None:
    """The recipe that a model was trained with; `None` if there is no readable one."""
    if source_of(words).architecture is not None:  # ARCHITECTURE@INIT, whose @ is no revision
        return None
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
        _log.info("%s has no recipe (%s)", words, error)
    return None


def _is_of(recipe: Recipe, trained: Backbone) -> bool:
    """Whether this is the recipe's network and not, for example, a discriminator."""
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
            "%s: its start weights are not available (%s); compared with random weights instead",
            words, error,
        )  # fmt: skip
        return start_of(replace(recipe, init="scratch"))


def _at_size(backbone: Backbone, image_size: int) -> Backbone:
    """The same weights for another image size; timm resizes position embeddings.

    The caller sets how images are cropped and resized.
    """
    if backbone.image_size == image_size:
        return backbone
    resized = create_backbone(backbone.name, image_size=image_size, **backbone.options)
    start_from(resized.model, backbone.model.state_dict(), backbone.init)
    resized.init, resized.mean, resized.std = backbone.init, backbone.mean, backbone.std
    return resized
