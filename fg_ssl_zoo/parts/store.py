"""Stored part maps; an interrupted discovery continues from them.

    CACHE/FINGERPRINT.safetensors              all maps, when complete
    CACHE/FINGERPRINT/block_12.safetensors     maps of a block of images
    CACHE/FINGERPRINT/centres.safetensors      centres of the data set

The fingerprint covers everything that determines the maps: weights, images, options, precision.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fg_ssl_zoo.data.tensor_cache import as_text, cache_file, read_tensors, write_tensors


class PartStore:
    """Files of one discovery.

    Args:
        about: Everything that determines the maps, as plain data.
        cache: Folder of the files; by default `assets/fg_ssl_zoo` in the Hugging Face cache.
    """

    def __init__(self, about: Mapping[str, Any], cache: Path | None = None) -> None:
        self.metadata = {"about": as_text(about)}
        self.file = cache_file(about, "parts", cache)

    def read(self, name: str | None = None) -> dict[str, Tensor] | None:
        """The tensors of this name, or all maps; `None` if the file is missing or incomplete."""
        return read_tensors(self.file if name is None else self._block(name))

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Store a part of the maps."""
        write_tensors(self._block(name), tensors, self.metadata)

    def finish(self, tensors: dict[str, Tensor]) -> None:
        """Store all maps, and delete the parts."""
        write_tensors(self.file, tensors, self.metadata)
        shutil.rmtree(self.file.with_suffix(""), ignore_errors=True)

    def _block(self, name: str) -> Path:
        return self.file.with_suffix("") / f"{name}.safetensors"
