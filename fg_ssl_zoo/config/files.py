"""Recipes in files and on the command line: NAME.yaml + dotted overrides -> Recipe."""

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fg_ssl_zoo.config.recipe import Data, Recipe
from fg_ssl_zoo.config.typed import RecipeError, nearest, parse

DEFAULT_RECIPE = "fgssl_resnet18_drawn.simclr"
"""What `accelerate launch train.py` trains when it is given no recipe."""


@functools.cache
def recipe_folder() -> Path:
    """Folder of the recipes: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "hub_configs"
    return inside if inside.is_dir() else package.parent / "hub_configs"


def recipe_files() -> dict[str, Path]:
    """Recipe name -> file, sorted by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a published one.

    Raises:
        RecipeError: Neither a file nor a known name.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    known = recipe_files()
    name = path.name.removesuffix(".yaml")
    if name in known:
        return known[name]
    raise RecipeError(
        f"no recipe '{recipe}': neither a file nor a known name{nearest(name, known)}"
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; safe loading only.

    Raises:
        RecipeError: Not YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds a {type(content).__name__}; a mapping of keys is needed")
    return content


def load_recipe(recipe: str | Path = DEFAULT_RECIPE, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, apply overrides (`stages[0].train.lr=0.1`) and check every key and type.

    Args:
        recipe: File, or the name of a published recipe.
        overrides: Dotted `path=value`; the value is YAML, list items are `[0]` or `.0`.

    Raises:
        RecipeError: One line: the path of the key, what is wrong, the nearest valid key.
    """
    path = find_recipe(recipe)
    published = read_yaml(path)
    content = copy.deepcopy(published)
    overrides = list(overrides)
    for override in overrides:
        _apply(content, override)
    if not any(override.startswith("hub") for override in overrides):
        _forget_license(published, content)
    return parse_recipe({"name": _rename(path.stem, published, content), **content})


def recipe_of(words: Sequence[str]) -> Recipe:
    """The recipe of a command line: at most one recipe, and overrides in any order.

    Raises:
        RecipeError: As `load_recipe`, or two recipes.
    """
    recipes = [word for word in words if "=" not in word]
    if len(recipes) > 1:
        raise RecipeError(
            f"two recipes given, {recipes[0]} and {recipes[1]}; an override is key.path=value"
        )
    overrides = [word for word in words if "=" in word]
    return load_recipe(recipes[0] if recipes else DEFAULT_RECIPE, overrides)


def data_of(words: Sequence[str]) -> Data:
    """The `data:` of a command line: a folder or a name, and `key=value`s in any order.

    Raises:
        RecipeError: As `load_recipe`, or neither folder nor name, or two of them.
    """
    places = [word for word in words if "=" not in word]
    if len(places) > 1:
        raise RecipeError(f"--data names one folder or data set, not {' and '.join(places)}")
    content: dict[str, Any] = {}
    for place in places:
        path = Path(place).expanduser()
        is_path = path.is_dir() or "/" in place
        content |= {"name": path.resolve().name, "path": str(path)} if is_path else {"name": place}
    return parse_words(Data, [word for word in words if "=" in word], "data", **content)


def parse_words(into: Any, words: Iterable[str], where: str, **content: Any) -> Any:
    """The `key=value`s of a command line as a dataclass.

    Args:
        into: The dataclass.
        words: Later ones replace earlier ones.
        where: Path of the keys, for the error.
        **content: What they start from.

    Raises:
        RecipeError: One line, as `parse`.
    """
    for word in words:
        _apply(content, word)
    return parse(into, content, where=where)


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a mapping.

    Raises:
        RecipeError: As `load_recipe`.
    """
    return parse(Recipe, content)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data of a recipe, fit for YAML and JSON; `parse_recipe` reads it back."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True, width=100)


def flatten(content: Any, path: str = "") -> dict[str, Any]:
    """Nested plain data as `{dotted path: value}`; what two runs differ in is read off this."""
    if isinstance(content, Mapping) and content:
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in content.items()]
    elif isinstance(content, list | tuple) and content:
        items = [(f"{path}[{i}]", value) for i, value in enumerate(content)]
    else:
        return {path: content}
    return {k: v for key, value in items for k, v in flatten(value, key).items()}


def short_name(backbone: str) -> str:
    """The part of a timm name that a model name carries.

    `vit_small_patch16_224` -> `vit_small`, and of a network of ours `fgssl_srresnet` -> `srresnet`.
    """
    return re.sub(r"_patch\d+.*|_\d{3}$", "", backbone.removeprefix("fgssl_"))


def _rename(name: str, published: Mapping[str, Any], used: Mapping[str, Any]) -> str:
    """The recipe's name with the backbone and data that the overrides put in their place."""

    def words(content: Mapping[str, Any]) -> tuple[str, str]:
        data = content.get("data")
        data_name = data.get("name", "") if isinstance(data, Mapping) else ""
        return short_name(str(content.get("backbone", ""))), str(data_name)

    for old, new in zip(words(published), words(used), strict=True):
        if old and new and old != new:
            name = name.replace(f"_{old}", f"_{new}", 1)
    return name


def _forget_license(published: Mapping[str, Any], used: dict[str, Any]) -> None:
    """Other pictures have other terms: the licence of the recipe's own is not theirs."""
    before, after = (flatten(content) for content in (published, used))
    kept = all(before.get(key) == after.get(key) for key in ("data.name", "data.hub_id"))
    if not kept and isinstance(used.get("hub"), dict):
        used["hub"] = {key: value for key, value in used["hub"].items() if key != "license"}


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one `path=value` in nested plain data; missing mappings on the way are made."""
    path, equals, value = override.partition("=")
    keys = [key for key in re.split(r"\.|\[(\d+)\]\.?", path) if key]
    if not equals or not keys:
        raise RecipeError(f"override '{override}' is not of the form path.to.key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    target: Any = content
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdigit() or int(key) >= len(target):
                raise RecipeError(f"{path}: there is no item {key}; the list has {len(target)}")
            if last:
                target[int(key)] = parsed
            target = target[int(key)]
        elif isinstance(target, dict):
            if last:
                target[key] = parsed
            target = target.setdefault(key, {})
        else:
            raise RecipeError(f"{path}: {keys[depth - 1]} is a plain value and has no key {key}")
