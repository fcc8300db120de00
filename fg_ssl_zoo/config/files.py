"""Recipes in files and on the command line: NAME.yaml + dotted overrides -> Recipe."""

import copy
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fg_ssl_zoo.config.paths import home_path, printable
from fg_ssl_zoo.config.plain import (
    RecipeError,
    Unquoted,
    read_flow,
    read_plain,
    untyped,
    write_plain,
)
from fg_ssl_zoo.config.recipe import Data, Recipe, clean_name, source_name
from fg_ssl_zoo.config.validate import child_of, nearest, parse, takes_containers, takes_text

DEFAULT_RECIPE = "fgssl_resnet18_drawn.simclr"
"""Recipe of `accelerate launch train.py` without a recipe."""


def of_package(name: str) -> Path:
    """Path of a data file: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / name
    return inside if inside.exists() else package.parent / name


@functools.cache
def recipe_folder() -> Path:
    """Folder of the recipes."""
    return of_package("hub_configs")


def recipe_files() -> dict[str, Path]:
    """Recipe name -> file, sorted by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe, given by path or by name.

    Raises:
        RecipeError: Neither a file nor a known name.
    """
    path = home_path(recipe)
    if os.path.isfile(path):
        return path
    known = recipe_files()
    name = path.name.removesuffix(".yaml")
    if name in known:
        return known[name]
    raise RecipeError(
        f"no recipe '{printable(recipe)}': neither a file, a known name nor a folder of images"
        f"{nearest(name, known)}"
    )


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; unquoted numbers, truth and null are converted (`untyped`).

    Raises:
        RecipeError: It cannot be read, is not YAML, or is not a mapping.
    """
    return untyped(_read_file(Path(path)), "")


def _read_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, with scalars as written."""
    where = printable(path)
    try:
        content = read_plain(path.read_text(encoding="utf-8"), where)
    except OSError as error:
        raise RecipeError(f"{where} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{where} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    if not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "single value"
        raise RecipeError(f"{where} holds a {kind}; a mapping of keys is needed")
    return content


def load_recipe(recipe: str | Path = DEFAULT_RECIPE, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, apply overrides (`stages[0].train.lr=0.1`) and check every key and type.

    Args:
        recipe: File, or name of a recipe.
        overrides: Dotted `path=value`; list items are `[0]` or `.0`. The type of the key decides
            how the value is read: text as it is, decimal numbers, `true` or `false`, `null` to
            unset; only lists and mappings are YAML.

    Raises:
        RecipeError: One line with the path of the key, what is wrong, and the nearest valid key.
    """
    path = find_recipe(recipe)
    published = _read_file(path)
    content = copy.deepcopy(published)
    overrides = list(overrides)
    for override in overrides:
        _apply(content, override, Recipe)
    published = {"name": path.stem, **published}
    given = {override.partition("=")[0] for override in overrides}
    used = _renamed(published, {"name": published["name"], **content}, given)
    name = used.pop("name")
    return parse_recipe({**used, "name": name})  # named after data and backbone


def refuse_empty(words: Iterable[str]) -> None:
    """Refuse an empty argument of a command line, usually an unset shell variable.

    Raises:
        RecipeError: Names the argument before it.
    """
    before = "the command"
    for word in words:
        if not word or (word.startswith("--") and word.endswith("=")):
            which = f"behind {printable(before)}" if not word else printable(word)
            raise RecipeError(f"an argument is empty ({which}); is a variable not set?")
        before = word


def recipe_of(words: Sequence[str]) -> Recipe:
    """The recipe of a command line: at most one recipe, and overrides in any order.

    Raises:
        RecipeError: As for `load_recipe`, or two recipes.
    """
    recipes = [word for word in words if not is_override(word)]
    if len(recipes) > 1:
        first, second = map(printable, recipes[:2])
        raise RecipeError(f"two recipes given, {first} and {second}; an override is key.path=value")
    overrides = [word for word in words if is_override(word)]
    return load_recipe(recipes[0] if recipes else DEFAULT_RECIPE, overrides)


def data_of(words: Sequence[str]) -> Data:
    """The `data:` of a command line: a path or a name, and `key=value`s in any order.

    Raises:
        RecipeError: As for `load_recipe`; or no path or name, or two of them.
    """
    places = [word for word in words if not is_override(word)]
    if len(places) > 1:
        listed = " and ".join(map(printable, places))
        raise RecipeError(f"--data names one folder or data set, not {listed}")
    content: dict[str, Any] = {}
    for place in places:
        if not place:
            raise RecipeError("--data is empty; it names a folder or a data set")
        path = home_path(place)
        if os.path.isfile(path):
            content |= {"path": str(path)}
        elif os.path.isdir(path) or "/" in place:
            content |= {"name": path.resolve().name, "path": str(path)}
        else:
            content |= {"name": place}
    return parse_words(Data, filter(is_override, words), "data", **content)


def parse_words(into: Any, words: Iterable[str], where: str, **content: Any) -> Any:
    """The `key=value`s of a command line as a dataclass.

    Args:
        into: The dataclass.
        words: `key=value` arguments; later ones replace earlier ones.
        where: Path of the keys, for the error.
        **content: Initial values.

    Raises:
        RecipeError: One line, as for `parse`.
    """
    for word in words:
        _apply(content, word, into, where)
    return parse(into, content, where=where)


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """The recipe of a mapping.

    Raises:
        RecipeError: As for `load_recipe`.
    """
    return parse(Recipe, content)


def overridden(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """A recipe with some keys replaced; its name does not change unless it is one of them.

    Raises:
        RecipeError: As for `load_recipe`.
    """
    content = as_dict(recipe)
    for override in overrides:
        _apply(content, override, Recipe)
    return parse_recipe(content)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain data of a recipe for YAML and JSON; the inverse of `parse_recipe`."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return write_plain(as_dict(recipe))


def flatten(content: Any, path: str = "") -> dict[str, Any]:
    """Nested plain data as `{dotted path: value}`, to compare two runs."""
    if isinstance(content, Mapping) and content:
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in content.items()]
    elif isinstance(content, list | tuple) and content:
        items = [(f"{path}[{i}]", value) for i, value in enumerate(content)]
    else:
        return {path: content}
    return {k: v for key, value in items for k, v in flatten(value, key).items()}


def short_name(backbone: str) -> str:
    """The part of a timm name that becomes part of a model name.

    `vit_small_patch16_224` -> `vit_small`, `tf_efficientnet_lite1` -> `efficientnet_lite1`, and for
    our own networks `fgssl_srresnet` -> `srresnet`.
    """
    return re.sub(r"_patch\d+.*|_\d{3}$", "", backbone.removeprefix("fgssl_").removeprefix("tf_"))


_PICTURES = ("name", "path", "hub_id", "columns", "train_split", "test_split")
"""Keys of `data` that define the training images."""

_TRAINING = ("stages", "seed", "init")
"""Keys of a recipe that change the weights, but not the network or the images."""

_OF_PUBLISHED = ("repo", "license", "sha256")
"""Keys of `hub` that belong to the published model only."""


def _renamed(
    published: Mapping[str, Any], used: Mapping[str, Any], given: Collection[str]
) -> dict[str, Any]:
    """Remove the keys of the published model if the overrides define another model.

    With other images or another network, the model gets another name, no licence and no hash.

    Args:
        published: Content of the recipe file, with its name.
        used: Content with the overrides.
        given: Keys that were overridden; values that the user has set are kept.
    """
    before, after = _model_of(published), _model_of(used)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not keys:
        trained_alike = _training_of(published) == _training_of(used)
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


def _training_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of other settings that determine the weights, such as the image size."""
    data = {key: value for key, value in _mapping(content, "data").items() if key != "num_workers"}
    return {"data": data, **{key: content.get(key) for key in _TRAINING}}


def _without(
    content: Mapping[str, Any], section: str, keys: Iterable[str], given: Collection[str]
) -> dict[str, Any]:
    """The recipe without these keys of a section, except those that the user has set."""
    dropped = {key for key in keys if not _is_given(f"{section}.{key}", given)}
    kept = {key: value for key, value in _mapping(content, section).items() if key not in dropped}
    there = isinstance(content.get(section), Mapping)
    return {**content, section: kept} if there else dict(content)


def _model_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value of the settings that define the images and the network."""
    data = _mapping(content, "data")
    pictures = {f"data.{key}": data[key] for key in _PICTURES if data.get(key) is not None}
    network = {key: content[key] for key in ("backbone", "backbone_options") if content.get(key)}
    return pictures | network


def _mapping(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = content.get(key)
    return found if isinstance(found, Mapping) else {}


def _is_given(key: str, given: Collection[str]) -> bool:
    """Whether an override has set this key, or a mapping that contains it."""
    return any(key == other or key.startswith(f"{other}.") for other in given)


def _new_name(
    published: Mapping[str, Any], used: Mapping[str, Any], changed: Mapping[str, Any], named: bool
) -> str:
    """`fgssl_BACKBONE_DATA.METHOD` for another backbone or data set; never a published name.

    Changes that the name does not show (options, a split) add six digits of their hash.
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
    """The parts for backbone and data set in a model's name."""
    data = _mapping(content, "data")
    name, path, hub_id = (data.get(key) for key in ("name", "path", "hub_id"))
    if name in (None, Data.name) and (path or hub_id):
        items = path if isinstance(path, list) else ()
        several = tuple(str(s.get("path") if isinstance(s, Mapping) else s) for s in items)
        name = source_name(several or (str(path) if path else None), hub_id and str(hub_id))
    name = Data.name if name in (None, Data.name) else clean_name(str(name))
    return short_name(str(content.get("backbone", ""))), name


OVERRIDE = re.compile(r"([\w-]+(?:\.[\w-]+|\[[0-9]+\])*)=(.*)", re.ASCII | re.DOTALL)
"""`path.to.key=value`; list items are `.0` or `[0]`."""


def is_override(word: str) -> bool:
    """Whether an argument is `key=value`; in a path, a `=` may follow a `/`."""
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key


def _apply(content: dict[str, Any], override: str, into: Any, where: str = "") -> None:
    """Set one `path=value` in nested plain data; missing mappings are created.

    Args:
        content: Changed in place.
        override: The override as typed.
        into: Annotation of `content`; the type of the key decides how the value is read.
        where: Path of `content`, for the error.
    """
    match = OVERRIDE.fullmatch(override)
    if match is None:
        raise RecipeError(
            f"override {override!a} is not of the form path.to.key=value; a key is a word, and a "
            "list item is [0], [1] and so on"
        )
    *parents, last = re.findall(r"[\w-]+", match[1], re.ASCII)
    target: Any = content
    for key in parents:
        target, into = _step(target, key, override), child_of(into, key)
    path = f"{where}.{match[1]}" if where else match[1]
    value = _typed_word(match[2], child_of(into, last), path)
    _step(target, last, override)  # refuses a missing list item
    target[int(last) if isinstance(target, list) else last] = value


def _step(target: Any, key: str, override: str) -> Any:
    """The value of a key or list item."""
    path = override.partition("=")[0]
    if isinstance(target, dict):
        return target.setdefault(key, {})
    if not isinstance(target, list):
        parent = re.split(rf"\W+{key}\b", path)[0]
        raise RecipeError(f"{path}: {parent} is a plain value and has no key {key}")
    if not key.isdigit() or int(key) >= len(target):
        raise RecipeError(f"{path}: there is no item {key}; the list has {len(target)}")
    return target[int(key)]


def _typed_word(text: str, kind: Any, path: str) -> Any:
    """The value of an override; lists, mappings and quoted text are read as YAML.

    Raises:
        RecipeError: It is empty, or not YAML.
    """
    if not text:
        raise RecipeError(f"{path}: the value is empty; {path}=null unsets an optional key")
    starts = "[{" if kind is not Any else "[{\"'"
    is_text = takes_text(kind) and text[-1] not in "]}"  # a path such as `[old] photos`
    if takes_containers(kind) and text[0] in starts and not is_text:
        return read_flow(text, path)
    return Unquoted(text)
