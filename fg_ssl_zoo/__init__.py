"""Self-supervised pretraining for fine-grained recognition: a timm and Hugging Face model zoo.

Importing this package registers the `fgssl_*` names with timm: at once if timm.models is already
imported, otherwise when it is. The public names below import their modules at first use.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fg_ssl_zoo.backbones.backbone import Backbone as Backbone
    from fg_ssl_zoo.backbones.create import create_backbone as create_backbone
    from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError as PretrainedWeightsError
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
    "PretrainedWeightsError": "backbones.weights.locate",
    "Recipe": "config",
    "RecipeError": "config",
    "create_backbone": "backbones.create",
    "create_method": "methods",
    "export": "hub.export",
    "load": "features.embedder",
    "load_recipe": "config",
    "usage_lines": "hub.export",
}
"""Public name -> module of this package; type checkers read the list above."""


def __getattr__(name: str) -> Any:
    """Import a public name, or the module `pretrain`, at first use."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "pretrain":  # stays the module: `fg_ssl_zoo.pretrain.pretrain(recipe)`
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _NamesForTimm(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers our names after the import of timm.models, which need not be imported here."""

    def __init__(self) -> None:
        self.loader: importlib.abc.Loader | None = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of timm.models with this object as its loader."""
        if fullname != _MODELS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        assert self.loader is not None
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self.loader is not None
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module(_OURS)


_MODELS, _OURS = "timm.models", f"{__name__}.backbones.fgssl_models"

if _MODELS in sys.modules:
    importlib.import_module(_OURS)
else:
    sys.meta_path.insert(0, _NamesForTimm())


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "pretrain"})
