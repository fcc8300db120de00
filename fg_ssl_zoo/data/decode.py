"""Encoded bytes -> upright RGB picture.

OpenCV decodes. Pillow takes over for what OpenCV cannot read, and judges files that look cut off:
OpenCV 4 returns those half grey. Whatever a data set may hold becomes the same kind of array:

    16 bits              scaled to 8 (Pillow alone would clip)
    palette, grey, CMYK  converted to RGB
    alpha                dropped, as `Image.convert("RGB")` of timm and transformers does
    EXIF orientation     applied
    GIF, animated WebP   first frame
"""

import io
import warnings
from typing import TYPE_CHECKING

import cv2
import numpy as np
from jaxtyping import UInt8

from fg_ssl_zoo.data.sample import CorruptImage

if TYPE_CHECKING:
    from PIL import Image

_JPEG, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND\xae\x42\x60\x82"

# What cannot be decoded is reported once, by name, through CorruptImage.
_set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4, 5
_set_log_level(0)


def decode(encoded: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture as (h, w, 3) RGB.

    Args:
        encoded: Content of an image file.
        where: Its name, for the error.

    Raises:
        CorruptImage: Empty, cut off, or no picture; the message names `where` and the reason.
    """
    if not encoded:
        raise CorruptImage(f"{where}: the file is empty")
    if not _needs_pillow(encoded):
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
        if image is not None:
            return image
    return _decode_with_pillow(encoded, where)


def _needs_pillow(encoded: bytes) -> bool:
    """Whether the end of a JPEG or PNG is missing, or OpenCV would ignore the rotation (AVIF)."""
    if encoded.startswith(_JPEG):
        return not encoded.endswith(_JPEG_END)
    if encoded.startswith(_PNG):
        return not encoded.endswith(_PNG_END)
    return encoded[4:8] == b"ftyp"


def _decode_with_pillow(encoded: bytes, where: str) -> UInt8[np.ndarray, "h w 3"]:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged header is said below, or does not matter
            with Image.open(io.BytesIO(_without_padding(encoded))) as image:
                image.load()
                return from_pil(image)
    except UnidentifiedImageError:
        raise CorruptImage(f"{where}: not a picture ({_kind(encoded)})") from None
    except Exception as error:  # Pillow's plugins raise all kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"{where}: {reason}") from None


def _without_padding(encoded: bytes) -> bytes:
    """A JPEG or PNG without zeros after it: blocks that were reserved on disk but never written."""
    return encoded.rstrip(b"\0") if encoded.startswith((_JPEG, _PNG)) else encoded


def from_pil(image: "Image.Image") -> UInt8[np.ndarray, "h w 3"]:
    """What `decode` makes of the same picture once it is Pillow's.

    Raises:
        ValueError: 32 bits a channel, whose range nobody knows.
    """
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel, of unknown range; save it with 8 or 16 bits")
    return np.array(image.convert("RGB"))


def _kind(encoded: bytes) -> str:
    """What a file that is no picture seems to be."""
    head = encoded[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "HTML or XML text"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; run `git lfs pull`"
    if encoded[4:8] == b"ftyp" and encoded[8:11] in (b"hei", b"hev", b"mif"):
        return "HEIC; convert it to JPEG"
    if not encoded.strip(b"\0"):
        return "zeros only"
    return f"{len(encoded)} bytes that start with {encoded[:8]!r}"
