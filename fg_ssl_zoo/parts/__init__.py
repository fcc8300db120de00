"""Parts that nobody has named: found by clustering what a network sees in every pixel.

This floor stands beside `method`: it needs backbones and data, and a method's `annotate`, the
evaluation of parts and the command that shows them all need it.
"""

from fg_ssl_zoo.parts.discovery import discover_parts
from fg_ssl_zoo.parts.options import Discovery, discovery_for

__all__ = ["Discovery", "discover_parts", "discovery_for"]
