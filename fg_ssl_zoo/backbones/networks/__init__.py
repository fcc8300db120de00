"""Our own architectures, registered with timm; every file in this folder is one."""

import importlib
import pkgutil
from typing import Any


def modules() -> list[Any]:
    """Import the files of this folder, which registers their names; each has `default_cfgs`."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


import timm  # noqa: E402, F401  # imports all of them, see `fg_ssl_zoo`, before one imports timm
