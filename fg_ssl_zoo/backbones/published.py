"""A published folder: what it must hold before anything of it is built or loaded.

    config.json                         architecture, its arguments, the pixels it wants
    model.safetensors                   timm's own keys
    model-00001-of-00002.safetensors    or the same in parts, with model.safetensors.index.json

Whoever wrote the folder may be a stranger. Weights are safetensors and nothing else, as a pickle
may run code when it is opened; the configuration is checked value by value before a network is
built of it; file names that it mentions stay inside the folder; weights are compared with the
sha256 that whoever loads them knows.
"""

import functools
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import is_model
from torch import Tensor

from fg_ssl_zoo.backbones.start_weights import PICKLES

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
RECIPE = "recipe.yaml"
INDEX = "model.safetensors.index.json"

SAFE_NAME = re.compile(r"[A-Za-z0-9](?:[\w-]|\.(?!\.))*", re.ASCII)
"""A model's name: it becomes the name of a folder, of a repository and of a file."""

SHA256 = re.compile(r"[0-9a-f]{64}")

_ELSEWHERE = ("url", "file", "state_dict", "source", "custom_load")
"""Fields of a `pretrained_cfg` that would fetch weights from a place that nobody named."""

_GIT_LFS = b"version https://git-lfs"
_RESERVED = ("pretrained", "checkpoint_path", "cache_dir")
_NESTED = ("trunk_options",)  # arguments of the network inside ours (fgssl_attentive)
_LARGEST = {
    "in_chans": 1024, "img_size": 8192,
    **dict.fromkeys(("num_classes", "num_features", "prototypes", "queue_size"), 1_000_000),
}  # fmt: skip
_LARGEST_INTEGER = 100_000  # of any other argument; the widest of timm's layers have 20,000
_LARGEST_FILE = 1_000_000  # bytes of a config.json


# --------------------------------------------------------------------------- configuration


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a published folder, checked.

    Raises:
        ValueError: It cannot be read, or holds what no network should be built of.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is larger than a megabyte")
        config = json.loads(path.read_text(encoding="utf-8"))
        check_config(config)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no timm config ({type(error).__name__}: {error})") from error
    return config


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration with an unknown network, or with values of no network.

    Args:
        config: What a `config.json` holds.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: What is wrong with which key.
    """
    architecture = config["architecture"]
    if not isinstance(architecture, str) or not is_model(architecture):
        raise ValueError(f"architecture: timm knows no {architecture!r}")
    for key in ("num_classes", "num_features"):
        _check_value(key, config.get(key, 0))
    check_arguments("model_args", config.get("model_args") or {})
    _check_pixels(config.get("pretrained_cfg") or {})


def check_arguments(name: str, arguments: Mapping[str, Any], depth: int = 0) -> None:
    """Refuse names that no constructor may have, and values that are not plain.

    Args:
        name: Of the arguments, for the error.
        arguments: Keywords.
        depth: Of the mapping they stand in.

    Raises:
        ValueError: Which one.
    """
    for key, value in arguments.items():
        if not re.fullmatch(r"[a-z]\w*", key) or key.startswith(_RESERVED):
            raise ValueError(f"{name}: {key!r} is no argument of a network")
        _check_value(key, value, depth)


def _check_value(key: str, value: Any, depth: int = 0) -> None:
    """Plain and of a size that a network has."""
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
    """Refuse options of a method that are not plain, or larger than any method's.

    Args:
        options: Keywords; a value may be a mapping of its own.
        depth: Of the mapping they stand in.

    Raises:
        ValueError: Which one.
    """
    for key, value in options.items():
        if not re.fullmatch(r"[a-z]\w*", key):
            raise ValueError(f"options: {key!r} is no name of an option")
        if isinstance(value, Mapping) and depth < 2:
            check_plain_options(value, depth + 1)
        else:
            _check_value(key, value)


def _check_pixels(cfg: Mapping[str, Any]) -> None:
    """The fields of a `pretrained_cfg` that resize and scale pictures, and name other files."""
    for key in _ELSEWHERE:
        if cfg.get(key):
            raise ValueError(f"pretrained_cfg.{key}: weights lie beside {CONFIG}, nowhere else")
    name = cfg.get("hf_hub_filename") or WEIGHTS
    if Path(name).name != name or not name.endswith((".safetensors", *PICKLES)):
        raise ValueError(f"pretrained_cfg.hf_hub_filename: {name!r} is no file of weights")
    for key in ("input_size", "mean", "std"):
        value = cfg.get(key, [1, 1, 1])
        if not isinstance(value, list) or not all(_is_number(number) for number in value):
            raise ValueError(f"pretrained_cfg.{key}: {value!r} is no list of numbers")
        if key == "input_size" and (len(value) != 3 or not all(1 <= n <= 8192 for n in value)):
            raise ValueError(f"pretrained_cfg.{key}: {value!r} is no size of pictures")
    if any(value <= 0 for value in cfg.get("std", [1])):
        raise ValueError("pretrained_cfg.std: pixels are divided by it; larger than 0")
    crop = cfg.get("crop_pct") or 1.0
    if not _is_number(crop) or not 0 < crop <= 2:
        raise ValueError(f"pretrained_cfg.crop_pct: {crop!r} is no share of a picture")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_source(source: str, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """Refuse a folder or repository before timm opens it: its configuration, and pickles.

    timm takes `model.safetensors` where there is one, and a pickle where there is none.

    Args:
        source: `local-dir:FOLDER` or `hf-hub:OWNER/NAME[@REVISION]`; other words pass.
        cache_dir: Of the Hub's client; its own choice when not given.

    Returns:
        The configuration; empty for other words, and for a folder without one.

    Raises:
        ValueError: It holds no safetensors, a configuration that no network should be built of, or
            weights with another hash than the Hub states.
        OSError, HfHubHTTPError: It cannot be had.
    """
    kind, _, place = source.partition(":")
    if kind == "local-dir":
        folder = Path(place)
        config = read_config(folder) if (folder / CONFIG).is_file() else {}
        if not any(folder.glob("*.safetensors")) and any(folder.iterdir()):
            raise ValueError(f"{folder} has no {WEIGHTS}{pickle_hint(folder)}")
        return config
    if kind in ("hf-hub", "hf_hub"):
        repo, _, revision = place.partition("@")
        arguments: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
        config = read_config(Path(hf_hub_download(repo, CONFIG, **arguments)).parent)
        name = (config.get("pretrained_cfg") or {}).get("hf_hub_filename") or WEIGHTS
        if name.endswith(PICKLES):  # the safe file that timm looks for beside it
            name = name.replace("pytorch_model", "model").partition(".")[0] + ".safetensors"
        try:
            weights = Path(hf_hub_download(repo, name, **arguments))
        except RemoteEntryNotFoundError as error:
            raise ValueError(f"{repo} has no {name}. {NO_PICKLE}") from error
        if wanted := hub_hash(weights):
            check_sha256(weights, wanted, f"Delete {weights.resolve()} and load again")
        return config
    return {}


NO_PICKLE = (
    "Only safetensors are opened, as a .bin or .pth may run code. If you trust whoever wrote it, "
    "convert it once (docs/publishing.md)"
)


def pickle_hint(folder: Path) -> str:
    """What to say of a folder that holds a pickle in the place of weights; nothing otherwise."""
    found = sorted(path.name for path in folder.glob("*") if path.name.endswith(PICKLES))
    return f", but {found[0]}. {NO_PICKLE}" if found else ""


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


# --------------------------------------------------------------------------- weights


def has_weights(folder: Path) -> bool:
    """Whether the folder holds safetensors, whole or in parts."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def weight_files(folder: Path) -> list[Path]:
    """`model.safetensors`, or its parts.

    Raises:
        ValueError: The index names a file outside of the folder, or one that is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / INDEX} is no index of parts") from error
    for name in sorted(names, key=str):
        if not isinstance(name, str) or not re.fullmatch(r"model-\d{5}-of-\d{5}.safetensors", name):
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no part of a model")
        if not (folder / name).is_file():
            raise ValueError(f"{folder} lacks {name}")
    return [folder / name for name in sorted(names)]


def read_state(folder: Path) -> dict[str, Tensor]:
    """All tensors of a published folder.

    Raises:
        ValueError: A part is missing, named wrongly or broken.
    """
    return {key: value for path in weight_files(folder) for key, value in _read(path).items()}


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    check_readable(path)
    return load_file(path)


def check_readable(path: Path) -> None:
    """Refuse half a file, and what git leaves in the place of a large one; only its head is read.

    Raises:
        ValueError: Which it is.
    """
    try:
        with safe_open(path, framework="pt"):
            return
    except SafetensorError as error:
        reason = f"is broken ({error}); copy or download it again"
        with path.open("rb") as file:
            if file.read(len(_GIT_LFS)) == _GIT_LFS:
                reason = "is a pointer of git-lfs; `git lfs pull` brings the file itself"
        raise ValueError(f"{path} {reason}") from error


def sha256_of(path: Path) -> str:
    """Hash of a file's content; remembered until the file changes."""
    about = path.stat()
    return _sha256(str(path), about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, changed: int, size: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, wanted: str, remedy: str) -> None:
    """Refuse a file with another content.

    Args:
        path: Weights.
        wanted: 64 hexadecimal digits.
        remedy: What to do about it.

    Raises:
        ValueError: Both hashes and the remedy.
    """
    found = sha256_of(path)
    if found != wanted:
        raise ValueError(
            f"{path} is not what was published: its sha256 is {found[:12]}..., and "
            f"{wanted[:12]}... was expected. {remedy}"
        )


def whole(folder: Path) -> Path:
    """The folder with its weights in one file, which is what timm opens.

    Parts are joined once into a folder of the cache; without a cache that can be written, into a
    temporary one.

    Raises:
        ValueError: Parts are missing or named wrongly, or the file is broken.
    """
    if not (folder / INDEX).is_file() or (folder / WEIGHTS).is_file():
        if (folder / WEIGHTS).is_file():
            check_readable(folder / WEIGHTS)
        return folder
    parts = weight_files(folder)
    stamp = hashlib.sha256("".join(sha256_of(path) for path in parts).encode()).hexdigest()[:16]
    try:
        root = Path(cached_assets_path("fg_ssl_zoo", "joined", f"{folder.name}-{stamp}"))
        writable = os.access(root, os.W_OK)
    except OSError:
        root, writable = Path(), False
    if not writable:
        root = Path(tempfile.mkdtemp(prefix="fg_ssl_zoo_"))
    if not (root / WEIGHTS).is_file():
        join(folder, root / WEIGHTS)
    shutil.copyfile(folder / CONFIG, root / CONFIG)
    return root


def join(folder: Path, target: Path) -> None:
    """Write the parts of a folder as the one file that they were split from, bit by bit."""
    part = target.with_name(f".{target.name}.{os.getpid()}")
    write_state(read_state(folder), part)
    part.replace(target)


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors; the same tensors become the same bytes.

    A second entry of metadata would make the order of both, and with it the hash, a matter of luck.
    """
    from safetensors.torch import save_file

    save_file(dict(state), path, metadata={"format": "pt"})


def hub_hash(path: Path) -> str | None:
    """The sha256 by which the Hub knows a downloaded file: the client names its copy after it."""
    name = path.resolve().name
    return name if SHA256.fullmatch(name) else None
