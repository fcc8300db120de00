"""Self-supervised pretraining for fine-grained recognition: a timm and Hugging Face model zoo.

Importing this package gives timm the `fgssl_*` names. It imports little more than timm itself; the
names below import what they need when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

import fg_ssl_zoo.backbones.fgssl_models  # noqa: F401  (gives timm our names)

if TYPE_CHECKING:
    from fg_ssl_zoo.backbones.backbone import Backbone as Backbone
    from fg_ssl_zoo.backbones.backbone import create_backbone as create_backbone
    from fg_ssl_zoo.backbones.zoo import PretrainedWeightsError as PretrainedWeightsError
    from fg_ssl_zoo.config import Recipe as Recipe
    from fg_ssl_zoo.config import RecipeError as RecipeError
    from fg_ssl_zoo.config import load_recipe as load_recipe
    from fg_ssl_zoo.features.embedder import load as load
    from fg_ssl_zoo.hub.export import export as export
    from fg_ssl_zoo.hub.export import usage_lines as usage_lines
    from fg_ssl_zoo.method import Method as Method
    from fg_ssl_zoo.method import MethodOutput as MethodOutput
    from fg_ssl_zoo.methods import create_method as create_method

__version__ = "0.1.0"

_HOMES = {
    "Backbone": "backbones.backbone",
    "Method": "method",
    "MethodOutput": "method",
    "PretrainedWeightsError": "backbones.zoo",
    "Recipe": "config",
    "RecipeError": "config",
    "create_backbone": "backbones.backbone",
    "create_method": "methods",
    "export": "hub.export",
    "load": "features.embedder",
    "load_recipe": "config",
    "usage_lines": "hub.export",
}
"""Public name -> the module below this package that holds it; type checkers read the list above."""


def __getattr__(name: str) -> Any:
    """Import a public name, or the module `pretrain`, when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "pretrain":  # stays the module: `fg_ssl_zoo.pretrain.pretrain(recipe)`
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "pretrain"})
