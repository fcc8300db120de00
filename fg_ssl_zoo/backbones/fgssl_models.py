"""The `fgssl_*` names of timm: every recipe in `hub_configs/` is a model, nothing is listed here.

    hub_configs/fgssl_resnet50_cub.simclr.yaml
                architecture       tag     -> timm.create_model("fgssl_resnet50_cub.simclr")

Without a tag, an architecture means its `simclr` model, or the first by name where there is none.

What is built is the recipe's `backbone` with its `backbone_options`, by timm's own function; the
caller's keywords come before those. `pretrained=True` then looks for a
published folder (`config.json`, `model.safetensors`) in

    1. FG_SSL_ZOO_DIR/NAME, without any request
    2. the Hub: the recipe's `hub.repo`, else FG_SSL_ZOO_ORG/NAME, else fg-ssl-zoo/NAME

and nowhere else; a source that the caller names (`pretrained_cfg_overlay=dict(file=...)`) is left
alone. timm lists models under the last part of a module's name, hence this file's.
"""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError
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

from fg_ssl_zoo.backbones import srgan_models
from fg_ssl_zoo.config import Data, Hub, Recipe, nearest, read_yaml, recipe_files

ORGANISATION = "fg-ssl-zoo"
"""Owner of the models on the Hub; the environment variable FG_SSL_ZOO_ORG replaces it."""

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

DEFAULT_TAG = "simclr"

HUB_PATIENCE = 5.0
"""Seconds to wait for the Hub's first answer; HF_HUB_ETAG_TIMEOUT replaces it.

The client alone would repeat the question for 23 s where nothing listens, and for minutes where no
one answers.
"""

_SOURCE = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")
_PUBLISHED = ("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes")

_log = logging.getLogger(__name__)


class Stock(NamedTuple):
    """What a name of ours is in stock timm.

    Fields:
        architecture: Of all its tags.
        options: Keywords of the constructor, for every tag.
    """

    architecture: str
    options: dict[str, dict[str, Any]]


class PretrainedWeightsError(RuntimeError):
    """No place holds the weights; the message names all that were tried."""


# --------------------------------------------------------------------------- recipes -> timm


def timm_cfg(
    backbone: str,
    image_size: int,
    *,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    crop_pct: float = Data.crop_pct,
    license: str = Hub.license,
) -> dict[str, Any]:
    """What timm keeps in a `pretrained_cfg`; what depends on the architecture is asked of timm.

    Args:
        backbone: A stock timm architecture.
        image_size: Side of the input, in pixels.
        mean: Per channel, of pixels in 0..1.
        std: Per channel, of pixels in 0..1.
        crop_pct: 0.875 resizes the shorter side to 256 for a crop of 224.
        license: SPDX name of the weights.
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
        "crop_pct": crop_pct,
        "mean": tuple(mean),
        "std": tuple(std),
        "license": license,
    }


def stock_of(name: str, model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The stock architecture of a model built by `name`, and the options that our names bring."""
    stock = STOCK.get(name, Stock(name, {}))
    cfg: Any = model.pretrained_cfg
    return stock.architecture, stock.options.get(cfg.get("tag", ""), {})


def is_stock(architecture: str) -> bool:
    """Whether timm has it without us."""
    return not model_entrypoint(architecture).__module__.startswith(f"{__package__}.")


def hub_repo(name: str, repo: str | None = None) -> str:
    """`OWNER/NAME` of a model on the Hub: what its recipe says, else the organisation's."""
    return repo or f"{os.environ.get('FG_SSL_ZOO_ORG') or ORGANISATION}/{name}"


def _read(path: Path) -> tuple[str, dict[str, Any], PretrainedCfg]:
    """Stock architecture, its options and `pretrained_cfg`; only the keys needed are checked.

    Raises:
        ValueError: The file's name or one of those keys is not what it should be.
    """
    if not re.fullmatch(r"fgssl_\w+\.\w+", path.stem):
        raise ValueError("the file's name is not of the form fgssl_BACKBONE_DATA.METHOD.yaml")
    content = read_yaml(path)
    backbone, init = content.get("backbone"), content.get("init", Recipe.init)
    if not isinstance(backbone, str) or "." in backbone or not is_model(backbone):
        raise ValueError(f"unknown backbone '{backbone}'{nearest(str(backbone), list_models())}")
    data, hub = _section(content, "data"), _section(content, "hub")
    size = data.get("image_size", Data.image_size)
    if not isinstance(size, int):
        raise ValueError(f"data.image_size: an integer is needed, got {size!r}")
    started_as = get_arch_pretrained_cfgs(backbone).get(f"{backbone}.{init}") or PretrainedCfg()
    cfg = timm_cfg(
        backbone,
        size,
        mean=started_as.mean,
        std=started_as.std,
        crop_pct=data.get("crop_pct", Data.crop_pct),
        license=hub.get("license", Hub.license),
    )
    repo = hub.get("repo") or f"{ORGANISATION}/{path.stem}"
    options = dict(_section(content, "backbone_options"))
    return backbone, options, PretrainedCfg(**cfg, hf_hub_id=repo, hf_hub_filename=WEIGHTS)


def _section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = content.get(key) or {}
    if not isinstance(section, Mapping):
        raise ValueError(f"{key}: a mapping is needed, got {section!r}")
    return section


def _read_all(files: Mapping[str, Path]) -> tuple[dict[str, Stock], dict[str, PretrainedCfg]]:
    """Stock model of each of ours, and `pretrained_cfg` of every model, defaults first.

    A recipe that cannot be read costs its own name and a line in the log, never the import.
    """
    stocks: dict[str, Stock] = {}
    cfgs: dict[str, PretrainedCfg] = {}
    for name, path in sorted(files.items(), key=lambda f: _default_first(f[0])):
        try:
            backbone, options, cfg = _read(path)
            architecture, _, tag = name.partition(".")
            if architecture in srgan_models.default_cfgs:
                raise ValueError(f"{architecture} is an architecture; add _DATA to the file's name")
            stock = stocks.setdefault(architecture, Stock(backbone, {}))
            if stock.architecture != backbone:
                raise ValueError(
                    f"its backbone is {backbone}; another recipe of that name has "
                    f"{stock.architecture}"
                )
        except (ValueError, OSError) as error:
            _log.warning("%s is left out of timm's models: %s", path, error)
        else:
            stock.options[tag] = options
            cfgs[name] = cfg
    return stocks, cfgs


def _default_first(name: str) -> tuple[str, bool, str]:
    architecture, _, tag = name.partition(".")
    return architecture, tag != DEFAULT_TAG, tag


# --------------------------------------------------------------------------- a name -> weights


def published_folder(name: str, repo: str, cache_dir: str | Path | None = None) -> Path:
    """The folder with a model's `config.json` and weights, downloaded where no local one has them.

    Args:
        name: `fgssl_BACKBONE_DATA.METHOD`, the folder's name below FG_SSL_ZOO_DIR.
        repo: `OWNER/NAME` on the Hub.
        cache_dir: Of the Hub's client; its own choice when not given.

    Raises:
        PretrainedWeightsError: No place has them; names each one tried, and why it failed.
    """
    tried = []
    if root := os.environ.get("FG_SSL_ZOO_DIR"):
        folder = Path(root).expanduser() / name
        missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
        if not missing:
            return folder
        tried.append(f"{folder} (no {' and no '.join(missing)})")
    else:
        tried.append("FG_SSL_ZOO_DIR (not set)")
    try:
        return _download(repo, cache_dir)
    except Exception as error:  # the client raises those of its HTTP library too
        reason = next(iter(str(error).splitlines()), "")
        tried.append(f"{constants.ENDPOINT}/{repo} ({type(error).__name__}: {reason})")
        raise PretrainedWeightsError(
            f"no weights for {name}: tried {', then '.join(tried)}. Set FG_SSL_ZOO_DIR to a folder "
            f"that holds {name}/, FG_SSL_ZOO_ORG to an owner who publishes it, or pass "
            "pretrained=False."
        ) from error


def _download(repo: str, cache_dir: str | Path | None) -> Path:
    """Snapshot folder of a repository; the cached one if the Hub has no answer to one question."""
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or HUB_PATIENCE)
    try:
        get_hf_file_metadata(hf_hub_url(repo, CONFIG), timeout=patience)
    except Exception as no_answer:
        try:
            return _snapshot(repo, cache_dir, local_files_only=True)
        except LocalEntryNotFoundError:
            raise no_answer from None
    return _snapshot(repo, cache_dir, local_files_only=False)


def _snapshot(repo: str, cache_dir: str | Path | None, *, local_files_only: bool) -> Path:
    files = [
        hf_hub_download(repo, file, cache_dir=cache_dir, local_files_only=local_files_only)
        for file in (CONFIG, WEIGHTS)
    ]
    return Path(files[-1]).parent


def _published_cfg(folder: Path, backbone: str, name: str) -> dict[str, Any]:
    """Fields of timm's `pretrained_cfg` that a published folder decides.

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


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a published folder.

    Raises:
        ValueError: It cannot be read, or names no architecture.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        config["architecture"], config.get("pretrained_cfg")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no timm config ({type(error).__name__}: {error})") from error
    return config


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _locate(cfg: PretrainedCfg, backbone: str, cache_dir: str | Path | None) -> PretrainedCfg:
    """The cfg with the folder of its weights; a source or field that the caller gave is kept."""
    name = f"{cfg.architecture}.{cfg.tag}"
    registered = get_pretrained_cfg(name)
    if registered is None or _differs(cfg, registered, _SOURCE):
        return cfg
    repo = _repo_of(name, registered)
    folder = published_folder(name, repo, cache_dir)
    published = _published_cfg(folder, backbone, name)
    news = {key: v for key, v in published.items() if not _differs(cfg, registered, [key])}
    return dataclasses.replace(cfg, **news, hf_hub_id=repo, source="local-dir", file=str(folder))


def _repo_of(name: str, registered: PretrainedCfg) -> str:
    """`OWNER/NAME`: of its recipe, else of the organisation that is asked for now."""
    repo = registered.hf_hub_id or ""
    return hub_repo(name) if repo == f"{ORGANISATION}/{name}" else repo


def published_as(words: str) -> tuple[str, str] | None:
    """Full name and Hub repository of one of our models; `None` for other words.

    Args:
        words: `fgssl_resnet50_cub.simclr`, or without the tag for the default one.
    """
    architecture, _, tag = words.partition(".")
    if not is_model_in_modules(architecture, {__name__.rpartition(".")[2]}):
        return None
    default: Any = get_pretrained_cfg(architecture)
    name = f"{architecture}.{tag or default.tag}"
    cfg = get_arch_pretrained_cfgs(architecture).get(name)
    return (name, _repo_of(name, cfg)) if cfg else None


def exported_folder(folder: Path) -> Path:
    """The exported folder itself: this one, or the one inside a run's.

    Raises:
        ValueError: Neither holds an export.
    """
    for place in (folder, folder / "export"):
        if (place / CONFIG).is_file():
            return place
    raise ValueError(
        f"neither {folder} nor {folder / 'export'} holds a {CONFIG}; a run exports when it ends"
    )


def _keep_norm(
    backbone: str, options: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """A ViT that is pooled otherwise than in training keeps its trained last norm in its place.

    timm puts that norm before or behind the pooling, by the kind of pooling, under another key.
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
    """Give timm a function `name` that builds a stock architecture with our `pretrained_cfg`."""
    backbone = stock.architecture

    def entry(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> nn.Module:
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        options = stock.options.get(cfg.tag or "", {})
        if pretrained:
            cfg = _locate(cfg, backbone, arguments.get("cache_dir"))
            arguments = {**_keep_norm(backbone, options, arguments), **arguments}
        build = model_entrypoint(backbone)
        arguments = {**options, **arguments}
        return build(pretrained=pretrained, pretrained_cfg=cfg.to_dict(), **arguments)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"A {backbone}; tags are the methods it was pretrained with."
    globals()[name] = register_model(entry)


__all__: list[str] = []  # timm appends every name it registers
STOCK, _cfgs = _read_all(recipe_files())  # architecture of ours -> stock model
default_cfgs = generate_default_cfgs({**_cfgs})  # register_model reads it, under this name
for _name in default_cfgs:
    _register(_name, STOCK[_name])
