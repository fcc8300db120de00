"""Architectures of our own, under names of timm; a file in this folder, nothing lists them."""

import importlib
import pkgutil
from typing import Any


def modules() -> list[Any]:
    """The files of this folder, imported: that registers their names. Each has `default_cfgs`."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]
