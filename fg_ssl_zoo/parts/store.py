"""Part maps that are computed once, and go on where they were interrupted.

    CACHE/FINGERPRINT.safetensors              all maps, when all are there
    CACHE/FINGERPRINT/block_12.safetensors     maps of a block of pictures
    CACHE/FINGERPRINT/centres.safetensors      centres of the whole set

The fingerprint covers all that decides the maps: weights, pictures, options, precision.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class PartStore:
    """Files of one discovery.

    Args:
        about: All that decides the maps, as JSON takes it.
        cache: Folder of the files; `assets/fg_ssl_zoo` of the Hugging Face cache when not given.
    """

    def __init__(self, about: Mapping[str, Any], cache: Path | None = None) -> None:
        self.about = json.dumps(about, sort_keys=True)
        name = hashlib.blake2b(self.about.encode(), digest_size=12).hexdigest()
        folder = cache or cached_assets_path("fg_ssl_zoo", namespace="parts")
        self.folder = Path(folder) / name

    @property
    def file(self) -> Path:
        """Where all maps lie in the end."""
        return self.folder.with_suffix(".safetensors")

    def read(self, name: str | None = None) -> dict[str, Tensor] | None:
        """What was kept under this name, or all maps; `None` if it is not there or was cut off."""
        path = self.file if name is None else self.folder / f"{name}.safetensors"
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep a part of the work."""
        self._write(self.folder / f"{name}.safetensors", tensors)

    def finish(self, tensors: dict[str, Tensor]) -> None:
        """Keep the whole, and let go of the parts."""
        self._write(self.file, tensors)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        kept = {key: value.cpu().contiguous() for key, value in tensors.items()}
        save_file(kept, part, metadata={"about": self.about})
        part.replace(path)
