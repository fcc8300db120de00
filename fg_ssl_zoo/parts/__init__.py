"""Parts of images, discovered by clustering the features of pixels.

This package is on the layer of `method`: it imports backbones and data, and is used by methods
(`annotate`), by the evaluation of parts and by `fgssl parts`.
"""

from fg_ssl_zoo.parts.discovery import discover_parts
from fg_ssl_zoo.parts.options import Discovery, discovery_for

__all__ = ["Discovery", "discover_parts", "discovery_for"]
