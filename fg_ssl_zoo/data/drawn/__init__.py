"""The built-in data: drawn birds whose species differ only in small parts."""

from fg_ssl_zoo.data.drawn.birds import DrawnBirds, part_overlay

__all__ = ["DrawnBirds", "part_overlay"]
