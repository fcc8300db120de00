"""The configuration of a published folder, checked before a network is built from it.

The author of the folder is not trusted: every value is checked, and no field may load weights from
another place.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from timm.models import is_model

from fg_ssl_zoo.backbones.weights.folder import (
    CONFIG,
    NO_PICKLE,
    PICKLES,
    WEIGHTS,
    check_sha256,
    hub_hash,
    pickle_hint,
)

PLACES = ("local-dir:", "hf-hub:", "hf_hub:")
"""Prefixes of timm's names of a folder and of a repository."""

_ELSEWHERE = ("url", "file", "state_dict", "source", "custom_load")
"""Fields of a `pretrained_cfg` that would load weights from another place."""

_RESERVED = ("pretrained", "checkpoint_path", "cache_dir")
_NESTED = ("trunk_options",)  # arguments of the inner network (fgssl_attentive)
_LARGEST = {
    "in_chans": 1024, "img_size": 8192,
    **dict.fromkeys(("num_classes", "num_features", "prototypes", "queue_size"), 1_000_000),
}  # fmt: skip
_LARGEST_INTEGER = 100_000  # limit of other arguments; timm's widest layers have 20,000
_LARGEST_FILE = 1_000_000  # bytes of a config.json


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a published folder, checked.

    Raises:
        ValueError: It cannot be read, or a value is refused.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is larger than 1 MB")
        config = json.loads(path.read_text(encoding="utf-8"))
        check_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no timm config ({type(error).__name__}: {error})") from error
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration with an unknown network or with invalid values.

    Args:
        config: Content of a `config.json`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: Names the key and what is wrong with it.
    """
    architecture = config["architecture"]
    if not isinstance(architecture, str) or not is_model(architecture):
        raise ValueError(f"architecture: timm knows no {architecture!r}")
    for key in ("num_classes", "num_features"):
        if config.get(key) is not None:
            _check_whole(key, config[key])
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(config.get(key, {}), Mapping):
            raise ValueError(f"{key}: {str(config[key])[:40]!r} is not a mapping")
    arguments, cfg = config.get("model_args", {}), config.get("pretrained_cfg", {})
    check_arguments("model_args", arguments)
    if "in_chans" in arguments:
        _check_whole("in_chans", arguments["in_chans"], least=1)
    _check_fields(cfg)
    _check_pixels(cfg)


def _check_whole(key: str, value: Any, least: int = 0) -> None:
    _check_value(key, value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{key}: {str(value)[:40]!r} is not a whole number of at least {least}")


def _check_fields(cfg: Mapping[str, Any]) -> None:
    """The fields of a `pretrained_cfg` that are names or switches."""
    if not isinstance(cfg.get("fixed_input_size"), bool | None):
        value = str(cfg["fixed_input_size"])[:40]
        raise ValueError(f"pretrained_cfg.fixed_input_size: {value!r} is neither true nor false")
    for key in ("first_conv", "classifier"):
        value = cfg.get(key)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise ValueError(f"pretrained_cfg.{key}: {str(value)[:40]!r} is not a layer's name")


def check_arguments(name: str, arguments: Mapping[str, Any], depth: int = 0) -> None:
    """Refuse argument names that are not allowed, and values that are not plain data.

    Args:
        name: Name of the arguments, for the error.
        arguments: Keywords.
        depth: Nesting depth of the mapping that holds them.

    Raises:
        ValueError: Names the argument.
    """
    for key, value in arguments.items():
        if not re.fullmatch(r"[a-z]\w*", key) or key.startswith(_RESERVED):
            raise ValueError(f"{name}: {key!r} is not an argument of a network")
        _check_value(key, value, depth)


def _check_value(key: str, value: Any, depth: int = 0) -> None:
    """Refuse a value that is not plain data, or too large."""
    if key in _NESTED and isinstance(value, Mapping) and depth == 0:
        check_arguments(key, value, depth + 1)
    elif isinstance(value, list | tuple) and depth < 3 and len(value) <= 256:
        for item in value:
            _check_value(key, item, depth + 1)
    elif isinstance(value, str) and len(value) <= 100:
        return
    elif value is not None and not isinstance(value, bool | int | float):
        raise ValueError(f"{key}: {str(value)[:40]!r} is neither a number, a short text nor a list")
    elif value is not None and not abs(value) <= _LARGEST.get(key, _LARGEST_INTEGER):  # nor nan
        raise ValueError(f"{key}: {value} is larger than in any network")


def check_plain_options(options: Mapping[str, Any], depth: int = 0) -> None:
    """Refuse options of a method that are not plain data, or too large.

    Args:
        options: Keywords; a value may be a mapping of its own.
        depth: Nesting depth of the mapping that holds them.

    Raises:
        ValueError: Which one.
    """
    for key, value in options.items():
        if not re.fullmatch(r"[a-z]\w*", key):
            raise ValueError(f"options: {key!r} is not the name of an option")
        if isinstance(value, Mapping) and depth < 2:
            check_plain_options(value, depth + 1)
        else:
            _check_value(key, value)


def _check_pixels(cfg: Mapping[str, Any]) -> None:
    """The fields of a `pretrained_cfg` that resize and scale images, and name other files."""
    for key in _ELSEWHERE:
        if cfg.get(key):
            raise ValueError(f"pretrained_cfg.{key}: weights lie beside {CONFIG}, nowhere else")
    name = cfg.get("hf_hub_filename") or WEIGHTS
    if (
        not isinstance(name, str)
        or Path(name).name != name
        or not name.endswith((".safetensors", *PICKLES))
    ):
        raise ValueError(f"pretrained_cfg.hf_hub_filename: {name!r} is not a weight file")
    for key in ("input_size", "mean", "std"):
        value = cfg.get(key, [1, 1, 1])
        if not isinstance(value, list) or not all(_is_number(number) for number in value):
            raise ValueError(f"pretrained_cfg.{key}: {value!r} is not a list of numbers")
        if key == "input_size" and (len(value) != 3 or not all(1 <= n <= 8192 for n in value)):
            raise ValueError(f"pretrained_cfg.{key}: {value!r} is not an image size")
    if any(value <= 0 for value in cfg.get("std", [1])):
        raise ValueError("pretrained_cfg.std: must be above 0, since pixels are divided by it")
    crop = cfg.get("crop_pct") or 1.0
    if not _is_number(crop) or not 0 < crop <= 2:
        raise ValueError(f"pretrained_cfg.crop_pct: {crop!r} is not a share of an image")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_source(source: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """Check a folder or repository before timm opens it: its configuration, and no pickles.

    timm reads `model.safetensors` if it exists, and otherwise a pickle.

    Args:
        source: `local-dir:FOLDER` or `hf-hub:OWNER/NAME[@REVISION]`; other text is accepted.
        cache_dir: Cache folder of the Hub client; its default when not given.

    Returns:
        The configuration; empty for other text, and for a folder without one.

    Raises:
        ValueError: It holds no safetensors, an invalid configuration, or weights whose hash
            differs from the Hub's.
        OSError, HfHubHTTPError: It is not available.
    """
    kind, _, place = source.partition(":")
    if f"{kind}:" not in PLACES:
        return {}
    if kind == "local-dir":
        folder = Path(place)
        config = read_config(folder) if (folder / CONFIG).is_file() else {}
        if not any(folder.glob("*.safetensors")) and any(folder.iterdir()):
            raise ValueError(f"{folder} has no {WEIGHTS}{pickle_hint(folder)}")
        return config
    repo, _, revision = place.partition("@")
    arguments: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
    config = read_config(Path(hf_hub_download(repo, CONFIG, **arguments)).parent)
    name = (config.get("pretrained_cfg") or {}).get("hf_hub_filename") or WEIGHTS
    if name.endswith(PICKLES):  # the safetensors file that timm prefers
        name = name.replace("pytorch_model", "model").partition(".")[0] + ".safetensors"
    try:
        weights = Path(hf_hub_download(repo, name, **arguments))
    except RemoteEntryNotFoundError as error:
        raise ValueError(f"{repo} has no {name}. {NO_PICKLE}") from error
    if wanted := hub_hash(weights):
        check_sha256(weights, wanted, f"Delete {weights.resolve()} and load again")
    return config
