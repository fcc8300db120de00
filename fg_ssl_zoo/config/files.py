"""Recipes in files and on the command line: NAME.yaml + dotted overrides -> Recipe."""

import copy
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fg_ssl_zoo.config.recipe import Data, Recipe, clean_name, source_name
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
    published = {"name": path.stem, **published}
    given = {override.partition("=")[0] for override in overrides}
    return parse_recipe(_renamed(published, {"name": published["name"], **content}, given))


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


_PICTURES = ("name", "path", "hub_id", "columns", "train_split", "test_split")
"""Keys of `data` that say which pictures are trained on."""

_TRAINING = ("stages", "seed", "init")
"""Keys of a recipe that make other weights of the same network from the same pictures."""

_OF_PUBLISHED = ("repo", "license", "sha256")
"""Keys of `hub` that belong to the published model and to no other."""


def _renamed(
    published: Mapping[str, Any], used: Mapping[str, Any], given: Collection[str]
) -> dict[str, Any]:
    """The recipe without what belongs to the published model, if it makes another one.

    Other pictures or another network have another name, no licence and no hash.

    Args:
        published: As it stands in the file, with its name.
        used: With the overrides.
        given: Keys that were overridden; what the user says of the new model stays.
    """
    before, after = _model_of(published), _model_of(used)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not keys:
        trained_alike = all(published.get(key) == used.get(key) for key in _TRAINING)
        return dict(used) if trained_alike else _without(used, "hub", ["sha256"], given)
    sources = {"data.path", "data.hub_id"} & {*keys}
    others = {"name", "path", "hub_id"} - {key.removeprefix("data.") for key in sources}
    used = _without(used, "data", others if sources else (), given)
    used = _without(used, "hub", _OF_PUBLISHED, given)
    if _is_given("name", given):
        return used
    changed = {key: after.get(key) for key in keys}
    name = _new_name(published, used, changed, _is_given("data.name", given))
    return {**used, "name": name}


def _without(
    content: Mapping[str, Any], section: str, keys: Iterable[str], given: Collection[str]
) -> dict[str, Any]:
    """A recipe without these keys of a section, except those that the user has given."""
    dropped = {key for key in keys if not _is_given(f"{section}.{key}", given)}
    kept = {key: value for key, value in _mapping(content, section).items() if key not in dropped}
    there = isinstance(content.get(section), Mapping)
    return {**content, section: kept} if there else dict(content)


def _model_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of what makes the pictures and the network."""
    data = _mapping(content, "data")
    pictures = {f"data.{key}": data[key] for key in _PICTURES if data.get(key) is not None}
    network = {key: content[key] for key in ("backbone", "backbone_options") if content.get(key)}
    return pictures | network


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_given(key: str, given: Collection[str]) -> bool:
    """Whether an override set this key, or the mapping that it stands in."""
    return any(key == other or key.startswith(f"{other}.") for other in given)


def _new_name(
    published: Mapping[str, Any], used: Mapping[str, Any], changed: Mapping[str, Any], named: bool
) -> str:
    """`fgssl_BACKBONE_DATA.METHOD` for another backbone or data set; never a published name.

    A change that these words do not show (options, a split) is shown by six digits of its hash.
    """
    old, (head, tag) = str(published["name"]), _words(used)
    start = "_".join(("fgssl", *_words(published)))
    name = f"fgssl_{head}_{tag}{old.removeprefix(start)}" if old.startswith(f"{start}.") else old
    if named or (name != old and name not in recipe_files()):
        return name
    text = json.dumps(changed, sort_keys=True, default=str)
    digits = hashlib.blake2b(text.encode(), digest_size=3).hexdigest()
    head, dot, tag = name.partition(".")
    return f"{head}_{digits}{dot}{tag}"


def _words(content: Mapping[str, Any]) -> tuple[str, str]:
    """The words for backbone and data set in a model's name."""
    data = _mapping(content, "data")
    name, path, hub_id = (data.get(key) for key in ("name", "path", "hub_id"))
    if name in (None, Data.name) and (path or hub_id):
        name = source_name(path and str(path), hub_id and str(hub_id))
    name = Data.name if name in (None, Data.name) else clean_name(str(name))
    return short_name(str(content.get("backbone", ""))), name


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
