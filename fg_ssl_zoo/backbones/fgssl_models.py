"""The `fgssl_*` names of timm: every recipe in `hub_configs/` is a model name.

Every exported folder in FG_SSL_ZOO_DIR (at import) is a name too.

    hub_configs/fgssl_resnet50_cub.simclr.yaml
                architecture       tag     -> timm.create_model("fgssl_resnet50_cub.simclr")

Without a tag, an architecture means its released model (`hub.sha256` in the recipe). If several are
released, those that another one starts from (`init`) come last. Of several, or of none, it means
the `simclr` model, or the first by name if there is no such model.

timm's own function builds the recipe's `backbone` with its `backbone_options`; keywords of the
caller take precedence. `pretrained=True` searches only the places of `weights/locate.py`, unless
the caller passes a source (`pretrained_cfg_overlay=dict(file=...)`, or
`dict(hf_hub_id="OWNER/NAME@REVISION")` for another repository). `NAME@REVISION` is a revision on
the Hub.

timm shows the last part of a module's name when it lists models, hence the name of this file.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    PretrainedCfg,
    generate_default_cfgs,
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    is_model,
    is_model_in_modules,
    list_models,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from fg_ssl_zoo.backbones import networks
from fg_ssl_zoo.backbones.weights.config import PLACES, read_config
from fg_ssl_zoo.backbones.weights.folder import CONFIG, RECIPE, SHA256, WEIGHTS
from fg_ssl_zoo.backbones.weights.locate import Published, published_folder
from fg_ssl_zoo.config import CROP_PCT, Data, Hub, Recipe, nearest, read_yaml, recipe_files

ORGANISATION = "fg-ssl-zoo"
"""Owner of the models on the Hub, unless the environment variable FG_SSL_ZOO_ORG is set."""

DEFAULT_TAG = "simclr"

_SOURCE = ("url", "file", "state_dict", "hf_hub_filename", "source")
_PUBLISHED = ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes")

_ARCHITECTURES = {name for module in networks.modules() for name in module.default_cfgs}
"""Names of our own networks, which no recipe may have."""

_LEFT_OUT = "%s is left out of timm's models: %s"

_log = logging.getLogger(__name__)


class Stock(NamedTuple):
    """The stock timm model behind one of our names.

    Fields:
        architecture: Architecture that all its tags share.
        options: Tag -> keywords of the constructor.
        sha256: Tag -> hash of the released weights, if there is one.
    """

    architecture: str
    options: dict[str, dict[str, Any]]
    sha256: dict[str, str]


# --------------------------------------------------------------------------- recipes -> timm


def timm_cfg(
    backbone: str,
    image_size: int,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    crop_pct: float | None = None,
    license: str | None = Hub.license,
) -> dict[str, Any]:
    """A `pretrained_cfg` for timm; fields that depend on the architecture come from timm.

    Args:
        backbone: A stock timm architecture.
        image_size: Side of the input in pixels.
        mean: Mean per channel, of pixels in 0..1.
        std: Standard deviation per channel, of pixels in 0..1.
        crop_pct: 0.875, the default, resizes the shorter side to 256 for a crop of 224.
        license: SPDX name of the weights' licence, if known.
    """
    stock = get_pretrained_cfg(backbone) or PretrainedCfg()
    input_size = (3, image_size, image_size)
    return {
        "num_classes": 0,
        "input_size": input_size,
        "fixed_input_size": stock.fixed_input_size,
        "pool_size": stock.pool_size if tuple(stock.input_size) == input_size else None,
        "first_conv": stock.first_conv,
        "classifier": stock.classifier,
        "interpolation": "bicubic",
        "crop_pct": crop_pct or CROP_PCT,
        "mean": tuple(mean),
        "std": tuple(std),
        "license": license,
    }


def stock_of(name: str, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The stock architecture behind `name`, and the options that our name adds."""
    stock = STOCK.get(name, Stock(name, {}, {}))
    cfg: Any = model.pretrained_cfg
    return stock.architecture, stock.options.get(cfg.get("tag", ""), {})


def is_stock(architecture: str) -> bool:
    """Whether timm has this architecture without our package."""
    return not model_entrypoint(architecture).__module__.startswith(f"{__package__}.")


def hub_repo(name: str, repo: str | None = None) -> str:
    """`OWNER/NAME` of a model on the Hub: the recipe's `hub.repo`, or by the organisation."""
    return repo or f"{os.environ.get('FG_SSL_ZOO_ORG') or ORGANISATION}/{name}"


def own_recipes() -> dict[str, Path]:
    """Recipes of exported folders in FG_SSL_ZOO_DIR that have no recipe in the package.

    Each such folder is a timm name too, such as `fgssl_resnet18_garden.simclr/` with `recipe.yaml`.
    """
    root = os.environ.get("FG_SSL_ZOO_DIR")
    folders = sorted(Path(root).expanduser().glob(f"fgssl_*/{CONFIG}")) if root else []
    found = {folder.parent.name: folder.parent / RECIPE for folder in folders}
    known = recipe_files()
    return {name: path for name, path in found.items() if name not in known and path.is_file()}


class _Read(NamedTuple):
    """The fields of a recipe that define a timm name.

    Fields:
        backbone: Stock architecture.
        options: Keywords of its constructor.
        init: Its start weights, as written.
        sha256: SHA-256 of the released weights, if there are any.
        cfg: timm's pretrained configuration.
    """

    backbone: str
    options: dict[str, Any]
    init: str
    sha256: str | None
    cfg: PretrainedCfg


def _read(name: str, path: Path) -> _Read:
    """Read the recipe of a name; only the needed keys are checked.

    Raises:
        ValueError: The file name or one of these keys is invalid.
    """
    if not re.fullmatch(r"fgssl_\w+\.\w+", name):
        raise ValueError(f"the name {name} is not of the form fgssl_BACKBONE_DATA.METHOD")
    content = read_yaml(path)
    backbone, init = content.get("backbone"), content.get("init", Recipe.init)
    if not isinstance(backbone, str) or "." in backbone or not is_model(backbone):
        raise ValueError(f"unknown backbone '{backbone}'{nearest(str(backbone), list_models())}")
    data, hub = _section(content, "data"), _section(content, "hub")
    size = data.get("image_size", Data.image_size)
    if not isinstance(size, int):
        raise ValueError(f"data.image_size: an integer is needed, got {size!r}")
    started_as = get_arch_pretrained_cfgs(backbone).get(f"{backbone}.{init}")
    if str(init).startswith(PLACES):  # an exported folder, most likely of timm's weights
        started_as = get_pretrained_cfg(backbone)
    started_as = started_as or PretrainedCfg()
    cfg = timm_cfg(
        backbone,
        size,
        mean=started_as.mean,
        std=started_as.std,
        crop_pct=data.get("crop_pct"),
        license=hub.get("license", Hub.license),
    )
    repo = hub.get("repo") or f"{ORGANISATION}/{name}"
    options = dict(_section(content, "backbone_options"))
    sha256 = hub.get("sha256")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256)):
        raise ValueError(f"hub.sha256: 64 hexadecimal digits are needed, got {sha256!r}")
    made = PretrainedCfg(**cfg, hf_hub_id=repo, hf_hub_filename=WEIGHTS)
    return _Read(backbone, options, str(init), sha256, made)


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise ValueError(f"{key}: a mapping is needed, got {section!r}")
    return section


def _read_all(files: Mapping[str, Path]) -> tuple[dict[str, Stock], dict[str, PretrainedCfg]]:
    """Our architecture -> stock model; model -> `pretrained_cfg`, with the default tags first.

    A recipe that cannot be read is logged and has no timm name; the import does not fail.
    """
    stocks: dict[str, Stock] = {}
    cfgs: dict[str, PretrainedCfg] = {}
    read: dict[str, _Read] = {}
    for name, path in sorted(files.items()):
        try:
            read[name] = _read(name, path)
        except (ValueError, OSError) as error:
            _log.warning(_LEFT_OUT, path, error)
    starts = {recipe.init for recipe in read.values() if recipe.sha256}
    for name in sorted(read, key=lambda name: _default_first(name, read[name].sha256, starts)):
        backbone, options, _, sha256, cfg = read[name]
        architecture, _, tag = name.partition(".")
        try:
            if architecture in _ARCHITECTURES:
                raise ValueError(f"{architecture} is an architecture; add _DATA to the file's name")
            stock = stocks.setdefault(architecture, Stock(backbone, {}, {}))
            if stock.architecture != backbone:
                raise ValueError(
                    f"its backbone is {backbone}; another recipe of that name has "
                    f"{stock.architecture}"
                )
        except ValueError as error:
            _log.warning(_LEFT_OUT, files[name], error)
        else:
            stock.options[tag] = options
            if sha256:
                stock.sha256[tag] = sha256
            cfgs[name] = cfg
    return stocks, cfgs


def _default_first(
    name: str, sha256: str | None, starts: Collection[str]
) -> tuple[str, bool, bool, bool, str]:
    """Sort key of names; the first name of an architecture is its default without a tag.

    Args:
        name: Name with its tag.
        sha256: SHA-256 of its released weights.
        starts: `init` of all released models.
    """
    architecture, _, tag = name.partition(".")
    return architecture, sha256 is None, name in starts, tag != DEFAULT_TAG, tag


# --------------------------------------------------------------------------- a name -> weights


def _published_cfg(folder: Path, backbone: str, name: str) -> dict[str, Any]:
    """Fields of timm's `pretrained_cfg` that a published folder sets.

    Raises:
        ValueError: The folder holds another architecture, or its config cannot be read.
    """
    config = read_config(folder)
    if config["architecture"] != backbone:
        raise ValueError(
            f"{folder / CONFIG} describes a {config['architecture']}; {name} is a {backbone}"
        )
    cfg = {**config.get("pretrained_cfg", {}), "num_classes": config.get("num_classes", 0)}
    return {key: _tupled(cfg[key]) for key in _PUBLISHED if key in cfg}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _locate(
    cfg: PretrainedCfg, backbone: str, revision: str | None, cache_dir: str | Path | None
) -> PretrainedCfg:
    """Add the folder of the weights to the cfg; sources and fields of the caller are kept."""
    name = f"{cfg.architecture}.{cfg.tag}"
    registered = get_pretrained_cfg(name)
    if registered is None or _differs(cfg, registered, _SOURCE):
        return cfg
    if cfg.hf_hub_id != registered.hf_hub_id:
        repo, _, at = (cfg.hf_hub_id or "").partition("@")
        published = Published(name, repo, revision or at or "main")
    else:
        published = _published(name, registered, revision)
    folder = published_folder(published, cache_dir)
    found = _published_cfg(folder, backbone, name)
    news = {key: v for key, v in found.items() if not _differs(cfg, registered, [key])}
    return dataclasses.replace(
        cfg, **news, hf_hub_id=published.repo, source="local-dir", file=str(folder)
    )


def _published(name: str, registered: PretrainedCfg, revision: str | None) -> Published:
    """`OWNER/NAME` from its recipe, otherwise by the current organisation."""
    repo = registered.hf_hub_id or ""
    architecture, _, tag = name.partition(".")
    stock = STOCK.get(architecture)
    sha256 = stock.sha256.get(tag) if stock and not revision else None
    if repo == f"{ORGANISATION}/{name}" and hub_repo(name) != repo:
        return Published(name, hub_repo(name), revision)  # somebody else's model of that name
    return Published(name, repo, revision, sha256)


def published_as(words: str) -> Published | None:
    """Where one of our models is published; `None` if the text is not one of our names.

    Args:
        words: `fgssl_resnet50_cub.simclr`, optionally without the tag, or with `@REVISION`.
    """
    words, _, revision = words.partition("@")
    architecture, _, tag = words.partition(".")
    if not is_model_in_modules(architecture, {__name__.rpartition(".")[2]}):
        return None
    default: Any = get_pretrained_cfg(architecture)
    name = f"{architecture}.{tag or default.tag}"
    cfg = get_arch_pretrained_cfgs(architecture).get(name)
    return _published(name, cfg, revision or None) if cfg else None


def _keep_norm(
    backbone: str, options: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Options that keep the trained last norm of a ViT if it is pooled otherwise than in training.

    timm applies that norm before or after the pooling, depending on its kind, under another key.
    """
    if "global_pool" not in arguments or not is_model_in_modules(backbone, {"vision_transformer"}):
        return {}
    with torch.device("meta"):
        stock = model_entrypoint(backbone)(num_classes=0, **options)
    return {"fc_norm": not isinstance(stock.fc_norm, nn.Identity)}


def _differs(cfg: PretrainedCfg, other: PretrainedCfg, fields: Iterable[str]) -> bool:
    return any(_tupled(getattr(cfg, f)) != _tupled(getattr(other, f)) for f in fields)


# --------------------------------------------------------------------------- registration


def _register(name: str, stock: Stock) -> None:
    """Register `name` with timm: it builds a stock architecture with our `pretrained_cfg`."""
    backbone = stock.architecture

    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> nn.Module:
        revision = None
        if isinstance(pretrained_cfg, str):  # the tag
            pretrained_cfg, _, revision = pretrained_cfg.partition("@")
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        options = stock.options.get(cfg.tag or "", {})
        if pretrained:
            cfg = _locate(cfg, backbone, revision or None, arguments.get("cache_dir"))
            arguments = {**_keep_norm(backbone, options, arguments), **arguments}
        build = model_entrypoint(backbone)
        arguments = {**options, **arguments}
        return build(pretrained=pretrained, pretrained_cfg=cfg.to_dict(), **arguments)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"A {backbone}; tags are the methods it was pretrained with."
    globals()[name] = register_model(entry)


__all__: list[str] = []  # timm appends every name it registers
STOCK, _cfgs = _read_all({**recipe_files(), **own_recipes()})  # architecture of ours -> stock model
default_cfgs = generate_default_cfgs({**_cfgs})  # register_model reads it, under this name
for _name in default_cfgs:
    _register(_name, STOCK[_name])
