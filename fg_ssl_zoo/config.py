"""Recipes: what is typed in `hub_configs/NAME.yaml` and on the command line, as dataclasses.

    hub_configs/NAME.yaml + dotted overrides -> load_recipe -> Recipe

The dataclasses are frozen. Pydantic converts by annotated type (`1e-4` is a number, though YAML 1.1
reads a string) and knows the path of what is wrong; this file turns that into one line with the
nearest valid key.
"""

import copy
import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, MinLen

DEFAULT_RECIPE = "fgssl_resnet18_drawn.simclr"
"""What `accelerate launch train.py` trains when it is given no recipe."""

STRICT: dict[str, Any] = {"extra": "forbid"}
"""Pydantic refuses keys that a dataclass does not have."""


class RecipeError(ValueError):
    """A recipe that cannot be meant; the message is one line that names the key."""


Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Data:
    """Where the pictures come from and how large they enter the network.

    Attributes:
        name: `drawn`, a name of the catalogue (`cub`, `aircraft`, ...), or a name of your own with
            `path`.
        path: Local folder; wins over `hub_id` and the catalogue.
        hub_id: Dataset id on the Hugging Face Hub; wins over the catalogue.
        columns: Names of the `image` and `label` columns of a Hub dataset.
        train_split: Split to pretrain on (a subfolder or a Hub split).
        test_split: Labelled split that evaluation scores.
        streaming: Read the first `num_images` of a Hub dataset without downloading the rest.
        image_size: Side of the square input, in pixels.
        crop_pct: Share of the shorter side that evaluation's centre crop keeps.
        num_images: Pictures to draw, or the most to take from a source; all when not given.
        num_classes: Species of the drawn set.
        num_workers: Loader processes of each training process; `auto` follows the cores.
    """

    name: str = "drawn"
    path: str | None = None
    hub_id: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    train_split: str = "train"
    test_split: str = "test"
    streaming: bool = False
    image_size: Annotated[int, Ge(16)] = 96
    crop_pct: Annotated[float, Gt(0), Le(1)] = 0.875
    num_images: Annotated[int, Ge(2)] | None = None
    num_classes: Annotated[int, Ge(2)] = 20
    num_workers: Annotated[int, Ge(0)] | Literal["auto"] = "auto"

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Train:
    """How one stage is optimised.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimizer steps; replaces `epochs` when given.
        batch_size: Images of one optimizer step, of all processes and accumulated parts together.
        accumulate: Parts the batch is split into; negatives then come from one part only.
        optimizer: A timm optimizer name.
        lr: Learning rate at a batch of 256 images (SimCLR, section 2.2: lr = 0.3 * batch / 256).
        lr_scaling: How the rate follows the batch size.
        weight_decay: Not applied to biases and norms.
        momentum: Of `lars` and `sgd`.
        warmup: Share of the steps over which the rate rises from 0.
        lr_end: Share of the rate that the cosine ends at.
        clip_grad_norm: Largest norm of the gradient, if any.
        checkpoint_every: Epochs between checkpoints; the last step and an interrupt always write
            one.
    """

    epochs: Positive = 100
    steps: Count | None = None
    batch_size: Count = 64
    accumulate: Count = 1
    optimizer: str = "lars"
    lr: Positive = 0.3
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    momentum: Share = 0.9
    warmup: Share = 0.1
    lr_end: Share = 0.0
    clip_grad_norm: Positive | None = None
    checkpoint_every: Positive = 1

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Stage:
    """One method with its options and its training.

    Attributes:
        method: A name of `fg_ssl_zoo.methods.METHODS`.
        options: Keywords of the method's constructor.
        train: Optimisation of this stage.
        rounds: How often annotate + train are repeated.
        inherit: Modules other than the backbone that are taken over from the stage before.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    rounds: Count = 1
    inherit: tuple[str, ...] = ()

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Monitor:
    """What is measured while training, at step 0, every `every` epochs and at the end.

    Attributes:
        every: Epochs between measurements.
        k: Neighbours of the kNN vote.
        temperature: Of the weights exp(similarity / temperature) of that vote.
        max_images: Most images of each split that a measurement reads; all when not given.
    """

    every: Positive = 10
    k: Count = 20
    temperature: Positive = 0.07
    max_images: Count | None = None

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Hub:
    """How the exported backbone is published.

    Attributes:
        repo: `OWNER/NAME`; the default organisation and the recipe's name when not given.
        license: SPDX name (lower case) of the weights; the pictures' terms decide it.
        tags: Further tags of the card.
    """

    repo: str | None = None
    license: str = "apache-2.0"
    tags: tuple[str, ...] = ()

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Speed:
    """Switches that change the speed and not the maths; `auto` chooses from the hardware.

    Attributes:
        precision: `bf16` autocast or `fp32`.
        channels_last: Memory format of convolutional networks.
        fused_attention: torch's fused attention; slow for short sequences on a CPU.
        keep_memory: Tell glibc to keep big blocks instead of returning them each step.
    """

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    fused_attention: bool | Literal["auto"] = "auto"
    keep_memory: bool | Literal["auto"] = "auto"

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT


@dataclass(frozen=True)
class Recipe:
    """One pretrained model: file name = timm name = Hub name.

    Attributes:
        name: `fgssl_BACKBONE_DATA.METHOD`; the file's stem.
        backbone: Any timm model name.
        init: `scratch`, a timm tag of that backbone (`a1_in1k`), a `.safetensors` file, or
            `hf-hub:OWNER/NAME`.
        data: The pictures.
        stages: Trained one after the other; the backbone walks through all of them.
        seed: Of weights, order and views.
        output: Folder of the run; `runs/NAME` when not given.
        resume: `auto` goes on from the newest checkpoint of the same recipe; `never` refuses a used
            folder.
        overwrite: Delete what the output folder holds and start afresh.
        evaluate: Protocols run on the finished backbone.
        monitor: Measurements while training.
        speed: Hardware switches.
        trackers: Further loggers of Accelerate (`wandb`, `mlflow`, ...); JSONL and TensorBoard
            always run.
        hub: Publishing.
    """

    name: str
    backbone: str
    stages: Annotated[tuple[Stage, ...], MinLen(1)]
    init: str = "scratch"
    data: Data = field(default_factory=Data)
    seed: Annotated[int, Ge(0)] = 0
    output: str | None = None
    resume: Literal["auto", "never"] = "auto"
    overwrite: bool = False
    evaluate: tuple[str, ...] = ("knn",)
    monitor: Monitor = field(default_factory=Monitor)
    speed: Speed = field(default_factory=Speed)
    trackers: tuple[str, ...] = ()
    hub: Hub = field(default_factory=Hub)

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.output or f"runs/{self.name}")


# --------------------------------------------------------------------------- files


@functools.cache
def recipe_folder() -> Path:
    """Folder of the recipes: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parent
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
    for override in overrides:
        _apply(content, override)
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


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """The typed recipe of a mapping.

    Raises:
        RecipeError: As `load_recipe`.
    """
    return parse(Recipe, content)


def parse(into: Any, content: Any, where: str = "") -> Any:
    """Convert plain data to an annotated type; the error names the path below `where`.

    Raises:
        RecipeError: One line on the first thing that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(into).validate_python(content)
    except ValidationError as error:
        raise RecipeError(_explain(into, error.errors(), where)) from None


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


# --------------------------------------------------------------------------- overrides and errors


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """`; did you mean a, b?` for a misspelt name, or the whole list when nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if near:
        return f"; did you mean {', '.join(near)}?"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known are {listed}" if known else ""


def short_name(backbone: str) -> str:
    """The part of a timm name that a model name carries: `vit_small_patch16_224` -> `vit_small`."""
    return re.sub(r"_patch\d+.*|_\d{3}$", "", backbone)


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


def _explain(root: Any, errors: Sequence[Any], where: str) -> str:
    """One line on the first error of a pydantic report, unknown keys first."""
    error = min(errors, key=lambda e: e["type"] != "unexpected_keyword_argument")
    location = [part for part in error["loc"] if not _is_branch(part)]
    path = where
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if error["type"] == "unexpected_keyword_argument":
        return f"{path}: unknown key{nearest(str(location[-1]), _keys_at(root, location[:-1]))}"
    if error["type"] in ("missing", "missing_argument"):
        return f"{path}: this key is missing"
    message = error["msg"].removeprefix("Input ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _is_branch(part: int | str) -> bool:
    """Whether a part of a pydantic location names the branch of a union, not a key."""
    return isinstance(part, str) and bool(
        re.search(r"^(constrained-)?(int|float|bool|str|none)$|[\[(]", part)
    )


def _keys_at(root: Any, location: Sequence[int | str]) -> list[str]:
    """Valid keys of the dataclass that a location leads to."""
    for part in location:
        root = _strip(root)
        if isinstance(part, int):
            root = get_args(root)[0]
        elif dataclasses.is_dataclass(root):
            root = {f.name: f.type for f in dataclasses.fields(root)}.get(part)
    root = _strip(root)
    return [f.name for f in dataclasses.fields(root)] if dataclasses.is_dataclass(root) else []


def _strip(annotation: Any) -> Any:
    """An annotation without its constraints, and the first dataclass of a union."""
    if get_origin(annotation) is Annotated:
        return _strip(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return next((a for a in get_args(annotation) if dataclasses.is_dataclass(a)), annotation)
    return annotation
