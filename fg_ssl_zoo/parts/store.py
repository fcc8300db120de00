"""Part maps that are computed once, and go on where they were interrupted.

    CACHE/FINGERPRINT.safetensors              all maps, when all are there
    CACHE/FINGERPRINT/block_12.safetensors     maps of a block of images
    CACHE/FINGERPRINT/centres.safetensors      centres of the whole set

The fingerprint covers all that decides the maps: weights, images, options, precision.
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
        about: All that decides the maps, as JSON takes it.
        cache: Folder of the files; `assets/fg_ssl_zoo` of the Hugging Face cache when not given.
    """

    def __init__(self, about: Mapping[str, Any], cache: Path | None = None) -> None:
        self.metadata = {"about": as_text(about)}
        self.file = cache_file(about, "parts", cache)

    def read(self, name: str | None = None) -> dict[str, Tensor] | None:
        """What was kept under this name, or all maps; `None` if it is not there or was cut off."""
        return read_tensors(self.file if name is None else self._block(name))

    def keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Keep a part of the work."""
        write_tensors(self._block(name), tensors, self.metadata)

    def finish(self, tensors: dict[str, Tensor]) -> None:
        """Keep the whole, and delete the parts."""
        write_tensors(self.file, tensors, self.metadata)
        shutil.rmtree(self.file.with_suffix(""), ignore_errors=True)

    def _block(self, name: str) -> Path:
        return self.file.with_suffix("") / f"{name}.safetensors"
