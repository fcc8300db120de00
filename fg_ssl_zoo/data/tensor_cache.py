"""Files of tensors, whole or not there; caches under the fingerprint of what decides them.

Nothing else is trusted, and nothing is unpickled: a file is read only under the same fingerprint,
and one that was cut off while it was written counts as missing.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def cache_file(about: Mapping[str, Any], namespace: str, cache: Path | None = None) -> Path:
    """Where tensors with this description are kept: `FOLDER/FINGERPRINT.safetensors`.

    Args:
        about: All that decides the content, as JSON takes it.
        namespace: Folder below `assets/fg_ssl_zoo` of the Hugging Face cache.
        cache: Another folder.
    """
    folder = cache or cached_assets_path("fg_ssl_zoo", namespace=namespace)
    name = hashlib.blake2b(as_text(about).encode(), digest_size=12).hexdigest()
    return Path(folder) / f"{name}.safetensors"


def as_text(about: Mapping[str, Any]) -> str:
    """The description that is hashed, and kept as `about` in the metadata of each file."""
    return json.dumps(about, sort_keys=True)


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; `None` if it is not there or was cut off."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return None


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.part")  # another run may write the same file
    kept = {key: value.cpu().contiguous() for key, value in tensors.items()}
    save_file(kept, partial, dict(metadata) if metadata else None)
    partial.replace(path)
