"""Names of tiny networks, registered as the recipes of the package are, and exports under them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from timm.models import _registry

from fg_ssl_zoo.backbones import fgssl_models
from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Recipe, parse_recipe
from fg_ssl_zoo.hub.export import export

NAME = "fgssl_tinier_cub.simclr"
RECIPE: dict[str, Any] = {
    "backbone": "test_resnet",
    "data": {"name": "cub", "image_size": 64},
    "stages": [{"method": "simclr"}],
    "hub": {"license": "cc-by-nc-4.0"},
}
RESULTS: dict[str, Any] = {
    "name": NAME,
    "seed": 0,
    "commit": "0123abc",
    "data": {"name": "cub", "num_train": 5994, "terms": "non-commercial research"},
    "protocol": {"knn": {"k": 20, "temperature": 0.07}},
    "rows": [{"name": "untrained", "knn_top1": 0.1084}, {"name": "trained", "knn_top1": 0.2549}],
}


def write_recipes(folder: Path, recipes: Mapping[str, Any]) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, recipe in recipes.items():
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe)
        (folder / f"{name}.yaml").write_text(text)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def register(files: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the module does at import, for other recipes."""
    stock, cfgs = fgssl_models._read_all(files)
    default_cfgs = fgssl_models.generate_default_cfgs({**cfgs})
    monkeypatch.setattr(fgssl_models, "default_cfgs", default_cfgs)
    monkeypatch.setattr(fgssl_models, "STOCK", {**fgssl_models.STOCK, **stock})
    for name in default_cfgs:
        if not timm.is_model(name):
            fgssl_models._register(name, stock[name])


def registered(recipes: Mapping[str, Any], folder: Path) -> Iterator[None]:
    """For a fixture: the names of these recipes are timm's until it ends."""
    with pytest.MonkeyPatch.context() as patch:
        register(write_recipes(folder, recipes), patch)
        yield
    for name in {name.partition(".")[0] for name in recipes}:
        if hasattr(_registry, "_clear_model_entries"):  # since timm 1.0.31
            _registry._clear_model_entries(name)
            del _registry._model_entrypoints[name]
        fgssl_models.__all__.remove(name)


def recipe_of(**keys: Any) -> Recipe:
    return parse_recipe({"name": NAME, **RECIPE, **keys})


def recipe_of_network(backbone: str, data: str, method: str, size: int, **options: Any) -> Recipe:
    """The recipe of a network with options, trained on images of this size in one stage."""
    return recipe_of(
        name=f"{backbone}_{data}.{method}",
        backbone=backbone,
        backbone_options=options,
        data={"name": data, "image_size": size},
        stages=[{"method": method}],
    )


def exported(folder: Path, made_by: Recipe | None = None, **results: Any) -> Backbone:
    """Export a seeded random network under the tiny name; more of its results by keyword."""
    made_by = made_by or recipe_of()
    torch.manual_seed(0)
    backbone = create_backbone(made_by.backbone, image_size=made_by.data.image_size)
    backbone.mean = (0.1, 0.2, 0.3)
    export(backbone, folder, made_by, {**RESULTS, "name": made_by.name, **results})
    return backbone.eval()
