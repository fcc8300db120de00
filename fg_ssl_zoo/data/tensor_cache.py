"""Cached files of tensors, named by a fingerprint of everything that determines them.

Nothing is unpickled. An incomplete file, or one whose content does not have the stored hash, counts
as missing.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fg_ssl_zoo.config import whole_file

HASH = "content"
"""Key of the hash in a file's metadata."""


def cache_file(about: Mapping[str, Any], namespace: str, cache: Path | None = None) -> Path:
    """Where tensors with this description are kept: `FOLDER/FINGERPRINT.safetensors`.

    Args:
        about: All that decides the content, as JSON takes it.
        namespace: Folder below `assets/fg_ssl_zoo` of the Hugging Face cache.
        cache: Another folder.
    """
    name = hashlib.blake2b(as_text(about).encode(), digest_size=12).hexdigest()
    return _folder(namespace, cache) / f"{name}.safetensors"


def is_empty(namespace: str, cache: Path | None = None) -> bool:
    """Whether no such file can be there; arguments as for `cache_file`."""
    try:
        return not any(_folder(namespace, cache).iterdir())
    except OSError:
        return True


def _folder(namespace: str, cache: Path | None) -> Path:
    return cache or cached_assets_path("fg_ssl_zoo", namespace=namespace)


def as_text(about: Mapping[str, Any]) -> str:
    """The description that is hashed, and kept as `about` in the metadata of each file."""
    return json.dumps(about, sort_keys=True)


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; `None` if it is not there, was cut off or is damaged."""
    try:
        return load_tensors(path) if path.is_file() else None
    except (ValueError, OSError):
        return None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, as they were written; an older file has no hash to compare.

    Raises:
        ValueError: It was cut off, or its content has another hash than when it was written.
        OSError: It is not there.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            wanted = (file.metadata() or {}).get(HASH)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if wanted and _digest(tensors) != wanted:
        raise ValueError("its content has another hash than when it was written")
    return tensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file with a hash of its tensors, whole or not at all; makes its folder.

    Raises:
        OSError: The older file stands as it was; the error has the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {key: value.cpu().contiguous() for key, value in tensors.items()}
    with whole_file(path) as partial:
        save_file(kept, partial, {**(metadata or {}), HASH: _digest(kept)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(tensors):
        value = tensors[key]
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
