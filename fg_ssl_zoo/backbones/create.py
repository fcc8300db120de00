"""Create backbones: the text that a user writes -> `Source` -> `Backbone`.

    open_backbone     MODEL of `fgssl eval` and `load`, or a teacher
    create_backbone   `backbone`, `init` and `backbone_options` of a recipe
    start_of          the start of a whole recipe
    layers_of         its layers, without weights
    open_classifier   the classifier of a model, which a backbone leaves out

`source.py` interprets the text, `build.py` builds the network, `weights/` finds and reads its
weights. `timm.create_model("fgssl_...")` reads the same folders: see `fgssl_models.py`.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.config import resolve_data_config
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.build import Network, build, network_of, published_network, untrained
from fg_ssl_zoo.backbones.fgssl_models import stock_of
from fg_ssl_zoo.backbones.source import Source, source_of, source_of_init
from fg_ssl_zoo.backbones.weights.config import read_config
from fg_ssl_zoo.backbones.weights.folder import WEIGHTS, whole
from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError, Published, published_folder
from fg_ssl_zoo.backbones.weights.start import PARTIAL, read_weights, start_from_file
from fg_ssl_zoo.config import Recipe, home_path

_log = logging.getLogger(__name__)


def open_backbone(
    words: str, *, image_size: int | None = None, pretrained: bool = True
) -> Backbone:
    """Open a model by the text that a user writes, without its classifier.

    Args:
        words: One of

            - `runs/NAME`, the folder of a run, or the exported folder itself;
            - `hf-hub:OWNER/NAME[@REVISION]` or `local-dir:FOLDER`, as timm writes them;
            - `fgssl_resnet50_cub`, `resnet50.a1_in1k`: a name with pretrained weights;
            - `fgssl_resnet50_cub.simclr@REVISION`: a commit, tag or branch on the Hub;
            - `resnet18@scratch`, `resnet18@a1_in1k`, `resnet18@FILE.safetensors`,
              `resnet18@FILE.safetensors#partial`: an architecture and the `init` of a recipe;
            - `vit_tiny_patch16_224{depth: 6}@FILE.safetensors`: also with `backbone_options`.
        image_size: Side of the input in pixels; the model's own when not given. Images are cropped
            and resized as the model's `pretrained_cfg` says; for `ARCHITECTURE@INIT`, as in a
            recipe with this start.
        pretrained: Whether to load the weights. Otherwise timm initialises the network under
            torch's seed.

    Raises:
        ValueError: The text names no model, or the size does not fit; the message says what to
            write instead.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size: {image_size}; a number of pixels above 0 is needed")
    source = source_of(words)
    if source.architecture is None:
        return _as_published(source, image_size, pretrained)
    own = timm.get_pretrained_cfg(source.architecture)
    size = image_size or (own.input_size[-1] if own else 224)
    return _at_start(source if pretrained else _untrained(source), size)


def create_backbone(
    name: str, *, init: str = "scratch", image_size: int = 224, **options: Any
) -> Backbone:
    """Build a backbone by its timm name and load its start weights.

    Args:
        name: Any timm model name, without a tag.
        init: One of

            - `scratch`: timm's own initialisation;
            - `a1_in1k`, `dino`: a pretrained tag of that model;
            - `FILE.safetensors`, with any prefix of keys (`backbones/weights/start.py`);
              `FILE.safetensors#partial` if the file contains only a part of the weights;
            - `runs/NAME`, an exported folder, `fgssl_resnet50_cub.simclr`: a model of ours to
              continue from;
            - `hf-hub:OWNER/NAME`, `local-dir:FOLDER`: as timm reads them.

            All except a bare file define the mean and std of the pixels.
        image_size: Side of the input in pixels; a multiple of the patch size for a ViT.
        **options: Keywords of the timm constructor.

    Raises:
        ValueError: Unknown name, tag, file or option, a size that does not fit, or weights that
            do not match.
    """
    return _at_start(source_of_init(name, init, options), image_size)


def start_of(recipe: Recipe) -> Backbone:
    """The network that a recipe's training starts from; equal to the bit at every call.

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


def layers_of(recipe: Recipe) -> nn.Module:
    """The network of a recipe on the meta device.

    It is tried with an image only before weights are read, which may take a download; torch
    computes batch norms in Python there. A network without weights is tried when it is built.

    Raises:
        ValueError: Unknown name or option, or a size that does not fit.
    """
    size, options = recipe.data.image_size, recipe.backbone_options
    with torch.device("meta"):
        if recipe.init != "scratch":
            return create_backbone(recipe.backbone, image_size=size, **options).model
        source = source_of_init(recipe.backbone, "scratch", options)
        return untrained(source.architecture or "", size, source.options)


def open_classifier(words: str) -> nn.Linear | None:
    """The linear classifier of a model on its pooled features; `None` if it has none.

    Args:
        words: Text for `open_backbone`.

    Raises:
        ValueError: The text names no model.
    """
    source = source_of(words)
    if source.kind == "scratch":
        return None
    if source.kind == "file":
        return _classifier_in_file(source)
    is_folder = source.kind == "folder"
    place = f"local-dir:{whole(_folder(source).resolve())}" if is_folder else str(source.place)
    model = build(place, words, pretrained=True, num_classes=None)
    found = model.get_classifier()
    return found.eval().requires_grad_(False) if isinstance(found, nn.Linear) else None


def _classifier_in_file(source: Source) -> nn.Linear | None:
    cfg = timm.get_pretrained_cfg(source.architecture or "")
    weights = read_weights(home_path(source.words.removesuffix(PARTIAL)))
    weight, bias = (weights.get(f"{cfg and cfg.classifier}.{end}") for end in ("weight", "bias"))
    if weight is None or weight.ndim != 2:
        return None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return linear.eval().requires_grad_(False)


# --------------------------------------------------------------------------- source -> backbone


def _as_published(source: Source, image_size: int | None, pretrained: bool) -> Backbone:
    """The network of a name, folder or repository, with the preprocessing of its configuration."""
    words = source.words
    network = published_network(str(source.place), words, image_size, pretrained=pretrained)
    own = resolve_data_config(pretrained_cfg=network.cfg)
    pixels = {key: own[key] for key in ("mean", "std", "crop_pct", "interpolation", "crop_mode")}
    return _backbone(network, words if pretrained else "scratch", pixels)


def _untrained(source: Source) -> Source:
    return replace(source, words="scratch", kind="scratch", place="")


def _at_start(source: Source, image_size: int) -> Backbone:
    """The architecture of a recipe with its start weights, and their mean and std."""
    name, init = source.architecture or "", source.words
    place = str(source.place) if source.kind == "timm" else None
    network = network_of(name, image_size, source.options, init, place)
    pixels: Mapping[str, Any] = {}
    if source.kind == "timm":
        pixels = network.cfg
        _tell_resized(network, init)
    elif source.kind == "file":
        _load_file(network.model, source)
    elif source.kind == "folder":
        pixels = _load_folder(network.model, source)
    given = {key: pixels[key] for key in ("mean", "std") if key in pixels}
    return _backbone(network, init, given)


def _backbone(network: Network, init: str, pixels: Mapping[str, Any]) -> Backbone:
    model, name, image_size, options, _ = network
    return Backbone(model, name, init=init, image_size=image_size, options=options, **pixels)


def _tell_resized(network: Network, init: str) -> None:
    was, size = network.cfg["input_size"][-1], network.image_size
    if getattr(network.model, "pos_embed", None) is not None and was != size:
        _log.info("init: %s: position embeddings resized from %d to %d px", init, was, size)


def _load_file(model: nn.Module, source: Source) -> None:
    """Load a bare file.

    The file does not state mean and std, so warn if timm uses others than ImageNet's for this
    network. Wrong values matter: EfficientNet-Lite1 has 78.7 % kNN accuracy on cub100 with its own,
    70.5 % with ImageNet's.
    """
    file = source.words.removesuffix(PARTIAL)
    start_from_file(model, home_path(file), file, partial=source.words.endswith(PARTIAL))
    cfg = timm.get_pretrained_cfg(source.architecture or "")
    if cfg is not None and (cfg.mean, cfg.std) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        _log.warning(
            "init: %s states no mean and std of its pixels; ImageNet's are used, timm's %s has %s "
            "and %s. Put config.json beside it and write local-dir:FOLDER to choose",
            file, source.architecture, cfg.mean, cfg.std,
        )  # fmt: skip


def _load_folder(model: Any, source: Source) -> Mapping[str, Any]:
    """Load an exported folder of a stock architecture; returns its `pretrained_cfg`.

    Raises:
        ValueError: It is not available, or holds another network or other options.
    """
    folder, init = _folder(source), source.words
    config, wanted = read_config(folder), stock_of(source.architecture or "", model)[0]
    if config["architecture"] != wanted:
        raise ValueError(
            f"init: {init} holds a {config['architecture']}; the recipe's backbone is {wanted}"
        )
    try:
        start_from_file(model, folder / WEIGHTS, init)
    except ValueError as error:
        built = {k: v for k, v in config.get("model_args", {}).items() if k != "img_size"}
        raise ValueError(
            f"{error}; its backbone_options are {built}" if built else error
        ) from error
    return config.get("pretrained_cfg", {})


def _folder(source: Source) -> Path:
    """The exported folder; a published model is downloaded if it is not on this machine."""
    if not isinstance(source.place, Published):
        return Path(source.place)
    try:
        return published_folder(source.place)
    except PretrainedWeightsError as error:
        raise ValueError(f"init: {error}") from error
