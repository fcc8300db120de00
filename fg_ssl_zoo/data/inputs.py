"""Images that a caller hands over: files, Pillow images, arrays, or a whole folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fg_ssl_zoo.config import home_path
from fg_ssl_zoo.data.decode import decode, from_pil, read_file
from fg_ssl_zoo.data.listing import existing_folder, list_images
from fg_ssl_zoo.data.sample import Sample

WANTED = "a file, a folder, a Pillow image, or a uint8 array (h, w, 3) or (h, w)"


class GivenImages:
    """Images in the order they were given; a folder stands for all images below it.

    Args:
        images: One image, or several; for a folder all images, `9.jpg` before `10.jpg`.

    Attributes:
        items: What is decoded when it is asked for.

    Raises:
        ValueError: No such file or folder, a folder without images, or no image at all.
    """

    def __init__(self, pictures: Any) -> None:
        self.items = [item for given in _each(pictures) for item in _items(given)]
        self.name, self.classes, self.labels = "given", [], None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        if isinstance(item, Path):
            return Sample(image=decode(read_file(str(item)), str(item)), index=index)
        return Sample(image=item, index=index)


def _each(pictures: Any) -> Iterable[Any]:
    """One image alone, several as they are; (n, h, w, 3) are several."""
    if isinstance(pictures, np.ndarray):
        return pictures if pictures.ndim == 4 else [pictures]
    several = isinstance(pictures, Iterable) and not isinstance(pictures, str | Path)
    return pictures if several else [pictures]


def _items(given: Any) -> list[Any]:
    """Paths stay paths, so that a million of them need not be decoded at once."""
    if not isinstance(given, str | Path):
        return [_array(given) if isinstance(given, np.ndarray) else _pillow(given)]
    path = home_path(given)
    if path.is_file():
        return [path]
    if path.suffix and not path.exists():
        raise ValueError(f"there is no image {path}")
    folder = existing_folder(str(given), key="")
    found = [folder / name for name in list_images(folder).paths]
    if not found:
        raise ValueError(f"there are no images in {folder}")
    return found


def _array(given: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
    if given.dtype == np.uint8 and given.ndim == 2:
        return np.repeat(given[..., None], 3, axis=2)
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] not in (3, 4):
        raise ValueError(f"an image is {WANTED}; not an array {given.dtype} {given.shape}")
    return given[..., :3]


def _pillow(given: Any) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image

    if not isinstance(given, Image.Image):
        raise ValueError(f"an image is {WANTED}; not {type(given).__name__}")
    return from_pil(given)
