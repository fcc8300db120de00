"""Encoded bytes -> upright RGB image.

OpenCV decodes. Pillow decodes what OpenCV cannot read, and checks files that look truncated, which
OpenCV 4 returns half grey. All kinds of files become the same kind of array:

    16 bits              scaled to 8 (Pillow alone would clip)
    palette, grey, CMYK  converted to RGB
    alpha                dropped, as `Image.convert("RGB")` of timm and transformers does
    EXIF orientation     applied
    GIF, animated WebP   first frame
    animated PNG         the still image that viewers without animation show

The header is read first, since a small file may claim gigabytes of pixels.
"""

import functools
import io
import os
import re
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from jaxtyping import UInt8

from fg_ssl_zoo.config import reason_of
from fg_ssl_zoo.data.sample import CorruptImage, HasFiles, Sample

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = "FG_SSL_ZOO_MAX_PIXELS"
"""Environment variable: largest number of pixels of an image that is decoded."""

_LOCK = threading.RLock()
"""Of Pillow's bound and Python's list of warnings, which all threads share."""

_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND\xae\x42\x60\x82"

# What cannot be decoded is reported once, by name, through CorruptImage.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, 5
_set_log_level(0)


def read_file(path: str) -> bytes:
    """The content of an image file.

    Raises:
        CorruptImage: It is gone or may not be read; the message names it.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise CorruptImage(f"{path}: cannot be read ({error.strerror})") from None
    except (MemoryError, OverflowError):
        raise CorruptImage(f"{path}: the file is larger than the memory") from None


def decode(
    encoded: bytes, where: str, reduction: Callable[[int, int], int] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as (h, w, 3) RGB.

    Args:
        encoded: Content of an image file.
        where: Its name, for the error.
        reduction: Width and height in pixels -> 1, 2, 4 or 8: a whole JPEG is decoded at that part
            of its sides, rounded up. Other files keep their size.

    Raises:
        CorruptImage: Empty, cut off, too large, or no image; the message names `where` and the
            reason. No other exception of a decoder leaves this function.
        ValueError: `FG_SSL_ZOO_MAX_PIXELS` is not a number of pixels.
    """
    if not encoded:
        raise CorruptImage(f"{where}: the file is empty")
    most = max_pixels()
    try:
        width, height, differs = _header(encoded)
        if width * height > most:
            raise ValueError(
                f"{width} x {height} pixels are more than the {most} that are read here; make it "
                f"smaller, or set {MAX_PIXELS}={width * height}"
            )
        factor = reduction(width, height) if reduction and encoded.startswith(_JPEG) else 1
        image = None if differs or _needs_pillow(encoded) else _decode_with_opencv(encoded, factor)
        return _decode_with_pillow(encoded) if image is None else image
    except Exception as error:  # OpenCV, Pillow and its plugins raise all kinds
        raise CorruptImage(f"{where}: {reason_of(error)}") from None


class EncodedImages(HasFiles):
    """Images that are read by decoding what `encoded` gives.

    Attributes:
        labels: Class number of every image; `None` where nothing is labelled.
    """

    labels: np.ndarray | None

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        return self.for_training(index, None)

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """The image reduced, see `ReadsForTraining`."""
        index = range(len(self))[index]
        image = decode(*self.file_of(index), reduction)
        sample = Sample(image=image, index=index)
        if self.labels is not None:
            sample["label"] = int(self.labels[index])
        return sample

    def file_of(self, index: int) -> tuple[bytes, str]:
        """The encoded image, and its name for errors."""
        return self.encoded(index), self.name_of(index)


def max_pixels() -> int:
    """Largest number of pixels of an image that is decoded.

    1/64 of the memory in bytes: decoding takes up to 7 bytes per pixel, so the largest image needs
    a ninth of the memory. The environment variable `FG_SSL_ZOO_MAX_PIXELS` replaces it.

    Raises:
        ValueError: The variable is not a whole number above 0.
    """
    given = os.environ.get(MAX_PIXELS)
    if given is None:
        return _memory() // 64
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"{MAX_PIXELS}={given} is no number of pixels; 200000000 would be one")
    return int(given)


@functools.cache
def _memory() -> int:
    """Bytes of memory of this machine or, if that is less, of this container."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        total = 8 << 30
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(text)) if text.isdecimal() else total


def _header(encoded: bytes) -> tuple[int, int, bool]:
    """Width, height, and whether OpenCV would return other pixels, see `_differs`.

    JPEG and PNG are read here, in a tenth of the time that Pillow takes; 0 x 0 is what neither can
    tell.
    """
    if encoded.startswith(_PNG) and encoded[12:16] == b"IHDR" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        return width, height, False
    if encoded.startswith(_JPEG) and (sides := _jpeg_sides(encoded)):
        return *sides, False
    from PIL import UnidentifiedImageError

    try:
        with opened(io.BytesIO(encoded)) as image:
            return *image.size, _differs(image, len(encoded))
    except UnidentifiedImageError:
        return 0, 0, False


def _differs(image: Any, length: int) -> bool:
    """Whether OpenCV returns other pixels than Pillow for a file of `length` bytes.

    It mixes transparent pixels with black (TIFF, GIF), and leaves missing colour planes of a TIFF
    black.

    Raises:
        ValueError: A TIFF of signed numbers; OpenCV returns black for negative ones, and for all
            of 16 bits.
    """
    if image.format == "TIFF":
        if 2 in image.tag_v2.get(339, ()):  # SampleFormat (TIFF 6.0, section 19)
            raise ValueError("signed numbers, of unknown range; save it with unsigned 8 or 16 bits")
        if _lacks_planes(image.tag_v2, length):
            return True
    clear = image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info
    return clear and image.format in ("TIFF", "GIF")


def _lacks_planes(tags: Mapping[int, Any], length: int) -> bool:
    """Whether a TIFF that stores one colour after another goes on behind the end of its file."""
    if tags.get(284) != 2:  # PlanarConfiguration
        return False
    starts = tags.get(273, tags.get(324, ()))  # StripOffsets, TileOffsets
    sizes = tags.get(279, tags.get(325, ()))  # StripByteCounts, TileByteCounts
    return any(start + size > length for start, size in zip(starts, sizes, strict=False))


def _jpeg_sides(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of the first frame header of a JPEG (ITU T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", encoded[at + 5 : at + 9])
            return width, height
        at += 1 if marker == 0xFF else 2 + length
    return None


def _needs_pillow(encoded: bytes) -> bool:
    """Whether the end of a JPEG or PNG is missing, or OpenCV would return something else.

    It ignores the rotation of an AVIF, returns the first frame of an animated PNG instead of its
    still image, and leaves the three last bits of the colours of a BMP of 16 bits at zero.
    """
    if encoded.startswith(_JPEG):
        return not encoded.endswith(_JPEG_END)
    if encoded.startswith(_PNG):
        return not encoded.endswith(_PNG_END) or b"acTL" in encoded[: encoded.find(b"IDAT")]
    return encoded[4:8] == b"ftyp" or (encoded.startswith(b"BM") and encoded[28:30] == b"\x10\0")


_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _decode_with_opencv(encoded: bytes, factor: int = 1) -> UInt8[np.ndarray, "h w 3"] | None:
    """`None` for what OpenCV cannot read, or not at this size (2^30 pixels, sides of 2^20)."""
    try:
        content = np.frombuffer(encoded, np.uint8)
        if largest := _unscaled(encoded):
            image = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
            return None if image is None else _scaled(image, largest)
        if factor == 1:
            image = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)
            grey = image is not None and image.ndim == 2  # of a PFM, although colour was asked for
            return None if grey else image
        image = cv2.imdecode(content, _REDUCED[factor])
        return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    except cv2.error:
        return None


_PNM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+([0-9]{1,9})" + rb"\s")
"""Header of a PGM or PPM: kind, width, height, largest value."""


def _unscaled(encoded: bytes) -> int | None:
    """Largest value of a PGM or PPM if OpenCV does not scale the others by it."""
    header = _PNM.match(encoded) if encoded.startswith(b"P") else None
    if header is None:
        return None
    kind, largest = header[1], int(header[4])
    scaled = largest <= 255 if kind in b"23" else largest in (255, 65535)
    return None if scaled or not 0 < largest < 65536 else largest


def _scaled(image: np.ndarray, largest: int) -> UInt8[np.ndarray, "h w 3"]:
    """Values of (h, w) or of (h, w, 3) in BGR, scaled from `largest` to 255."""
    values = np.minimum((image.astype(np.uint32) * 510 + largest) // (2 * largest), 255)
    return cv2.cvtColor(
        values.astype(np.uint8), cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    )


def _decode_with_pillow(encoded: bytes) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import UnidentifiedImageError

    try:
        with opened(io.BytesIO(_without_padding(encoded))) as image:
            image.load()
            return from_pil(image)
    except UnidentifiedImageError:
        raise ValueError(f"not an image ({_kind(encoded)})") from None


@contextmanager
def opened(file: Any) -> "Iterator[Image.Image]":
    """Pillow's image of a file or its name, header read; Pillow's own bound is not applied."""
    from PIL import Image

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged header is said later, or does not matter
        try:
            image = Image.open(file)
        except Image.DecompressionBombError:
            image = None
        if image is not None:
            with image:
                yield image
            return
        with _LOCK:
            pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                with Image.open(file) as image:
                    yield image
            finally:
                Image.MAX_IMAGE_PIXELS = pillows


def _without_padding(encoded: bytes) -> bytes:
    """A JPEG or PNG without zeros after it: blocks that were reserved on disk but never written."""
    return encoded.rstrip(b"\0") if encoded.startswith((_JPEG, _PNG)) else encoded


def from_pil(image: "Image.Image") -> UInt8[np.ndarray, "h w 3"]:
    """Convert a Pillow image to the array that `decode` returns.

    Raises:
        ValueError: It has 32 bits per channel, whose range is unknown.
    """
    from PIL import ImageOps

    scaled = image.format == "PPM"  # Pillow scales a PGM of more than 8 bits to 16, in mode I
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (scaled and image.mode == "I"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per channel, of unknown range; save it with 8 or 16 bits")
    return np.array(image.convert("RGB"))


def _kind(encoded: bytes) -> str:
    """The apparent type of a file that is not an image."""
    head = encoded[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "HTML or XML text"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull`"
    if encoded.startswith((b"II*\0", b"MM\0*")):
        return "a TIFF that is damaged or of a kind that is not read; save it with 8 or 16 bits"
    if encoded[4:8] == b"ftyp" and encoded[8:11] in (b"hei", b"hev", b"mif"):
        return "HEIC; convert it to JPEG"
    if not encoded.strip(b"\0"):
        return "zeros only"
    return f"{len(encoded)} bytes that start with {encoded[:8]!r}"
