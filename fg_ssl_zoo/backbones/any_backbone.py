"""A backbone by whatever words a user has for it: ours or not, a folder, a Hub id, a timm name."""

import re
from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone, build, create_backbone, size_arguments
from fg_ssl_zoo.backbones.fgssl_models import published_as
from fg_ssl_zoo.backbones.options import check_options
from fg_ssl_zoo.backbones.published import exported_folder, whole
from fg_ssl_zoo.backbones.start_weights import PARTIAL, is_file_name, read_weights
from fg_ssl_zoo.config import home_path, nearest, read_flow, untyped

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
    shape = build(source, words, pretrained=False)
    cfg: Any = shape.pretrained_cfg
    size = image_size or cfg["input_size"][-1]
    name = cfg.get("architecture") or words
    arguments: dict[str, Any] = size_arguments(name, size, shape)
    model = build(source, words, pretrained=pretrained, **arguments)
    own = resolve_data_config(pretrained_cfg=cfg)
    pixels = {key: own[key] for key in ("mean", "std", "crop_pct", "interpolation", "crop_mode")}
    return Backbone(model, name, init=words, image_size=size, **pixels)


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
