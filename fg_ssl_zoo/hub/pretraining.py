"""`pretraining/` of an exported folder: the whole method, to continue its training.

    pretraining/config.json         the method, all of its options, and the network
    pretraining/model.safetensors   its state: backbone, heads, teachers, queues, under `method.`

transformers opens it (`hf_pretraining.py`). timm and users of features read the folder above, which
does not depend on it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor

from fg_ssl_zoo.backbones.fgssl_models import published_as
from fg_ssl_zoo.backbones.weights.config import check_config, check_plain_options
from fg_ssl_zoo.backbones.weights.folder import (
    CONFIG,
    WEIGHTS,
    exported_folder,
    has_weights,
    read_state,
    write_network,
)
from fg_ssl_zoo.backbones.weights.locate import check_download, explain, local_place
from fg_ssl_zoo.config import home_path

FOLDER = "pretraining"
FILES = frozenset({CONFIG, WEIGHTS})

MODEL_TYPE = "fg_ssl"
"""The `model_type` in transformers."""

PREFIX = "method."
"""Prefix of every key of the state: the attribute of the transformers class."""

_BACKBONE = f"{PREFIX}backbone.model."
_LARGEST_FILE = 1_000_000  # bytes of a config.json


@dataclass(frozen=True)
class Pretraining:
    """A method at the end of its training.

    Attributes:
        method: A key of `METHODS`.
        options: All keyword arguments of its constructor, as plain data.
        state: Its state dict.
    """

    method: str
    options: Mapping[str, Any]
    state: Mapping[str, Tensor]


def write_pretraining(folder: Path, network: Mapping[str, Any], found: Pretraining) -> None:
    """Write `folder/pretraining/`.

    Args:
        folder: Folder of an export that is being written.
        network: Content of its `config.json`.
        found: The method; tensors of its state may not share memory, which safetensors refuses.
    """
    config = {
        "model_type": MODEL_TYPE,
        "architectures": ["FgSslForPreTraining"],
        "dtype": "float32",
        "method": found.method,
        "options": dict(found.options),
        "network": dict(network),
    }
    target = folder / FOLDER
    target.mkdir()
    state = {f"{PREFIX}{k}": v.detach().cpu().contiguous() for k, v in found.state.items()}
    write_network(target, config, state)


def check_pretraining_config(config: Mapping[str, Any]) -> None:
    """Refuse an invalid configuration before a method is built from it.

    Whether the method exists and accepts these options is checked by `hf_pretraining`.

    Args:
        config: Content of a `pretraining/config.json`.

    Raises:
        ValueError: Names the key and what is wrong with it.
    """
    try:
        if not re.fullmatch(r"[a-z]\w*", config["method"]):
            raise ValueError(f"method: {config['method']!r} is not the name of a method")
        check_plain_options(config.get("options") or {})
        check_config(config["network"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_pretraining_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder `pretraining/`, checked.

    Raises:
        ValueError: It cannot be read, or is not ours.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is larger than 1 MB")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE:
            raise ValueError(f"its model_type is not {MODEL_TYPE}")
        check_pretraining_config(config)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a method of ours ({error})") from error
    return config


def check_belongs(folder: Path, network: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse a `pretraining/` that does not belong to the backbone in the folder above.

    Args:
        folder: Folder that contains `pretraining/`.
        network: Content of its `config.json`.
        weights: Its weights under timm's keys.

    Raises:
        ValueError: Another network, other weights, or values that are not finite.
    """
    config, state = read_pretraining_config(folder / FOLDER), read_state(folder / FOLDER)
    for key in ("architecture", "model_args"):
        if config["network"].get(key) != network.get(key):
            raise ValueError(f"{folder / FOLDER / CONFIG}: network.{key} is not that of {CONFIG}")
    own = {k.removeprefix(_BACKBONE): v for k, v in state.items() if k.startswith(_BACKBONE)}
    if own.keys() != weights.keys() or any(not own[k].equal(v) for k, v in weights.items()):
        raise ValueError(
            f"{folder / FOLDER} holds another backbone than {folder}; export both again, or "
            f"delete {FOLDER}/"
        )
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{folder / FOLDER}: {broken[0]} has values that are not finite")


# --------------------------------------------------------------------------- going on with it


def saved_state(words: str) -> dict[str, Tensor]:
    """State of the method that trained these weights, under the method's own keys.

    Args:
        words: Weights of ours as in a recipe's `init`: `runs/NAME`, an exported folder,
            `local-dir:FOLDER`, `fgssl_BACKBONE_DATA.METHOD`, `hf-hub:OWNER/NAME[@REVISION]`.

    Raises:
        ValueError: They have no `pretraining/`, or it is not available.
    """
    folder = _saved_folder(words)
    read_pretraining_config(folder)
    return {key.removeprefix(PREFIX): value for key, value in read_state(folder).items()}


def _saved_folder(words: str) -> Path:
    place = home_path(words.removeprefix("local-dir:"))
    if place.is_dir():
        found = exported_folder(place) / FOLDER
        if not has_weights(found):
            raise ValueError(f"init: {found.parent} has no {FOLDER}/ to inherit from")
        return found
    repo, _, revision = words.removeprefix("hf-hub:").partition("@")
    if published := published_as(words):
        local, _ = local_place(published.name)
        if local and not published.revision and has_weights(local.path / FOLDER):
            return local.path / FOLDER
        repo, revision = published.repo, published.revision or ""
    elif not words.startswith("hf-hub:"):
        raise ValueError(f"init: {words} has no {FOLDER}/ to inherit from")
    try:
        paths = [
            Path(hf_hub_download(repo, file, subfolder=FOLDER, revision=revision or None))
            for file in (CONFIG, WEIGHTS)
        ]
    except (OSError, HfHubHTTPError) as error:
        raise ValueError(
            f"init: no {FOLDER}/ of {repo} to inherit from: {explain(error)}"
        ) from error
    check_download(paths[-1].parent)
    return paths[-1].parent
