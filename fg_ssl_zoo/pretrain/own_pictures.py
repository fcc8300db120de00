"""A recipe for a folder of pictures: method, start, size, batch, steps and rate, chosen by facts.

    measure, this_machine, the_start    the facts: pictures, hardware, weights to start from
    choose                              facts -> Recipe; a pure function that names its sources
    describe                            ten lines: what was chosen, and how to change it

With a start, the network is distilled from itself at one and a half times the picture size:
contrastive methods at usual rates make good features worse (docs/zoo.md). From random weights it is
SimCLR with the settings chosen on CUB (docs/recipes.md).
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import is_model_in_modules

from fg_ssl_zoo.backbones.any_backbone import PLACES, open_backbone
from fg_ssl_zoo.backbones.fgssl_models import STOCK, stock_of
from fg_ssl_zoo.backbones.zoo import local_place
from fg_ssl_zoo.config import (
    Data,
    Monitor,
    Recipe,
    RecipeError,
    Stage,
    Train,
    home_path,
    is_override,
    overridden,
    parse_words,
    printable,
    recipe_files,
    recipe_of,
    short_name,
)
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.loader import usable_cores
from fg_ssl_zoo.data.sample import CorruptImage, Images
from fg_ssl_zoo.features.extract import evenly

SMALL_SET = 1000
"""Training pictures below which a ResNet-18 is trained from random weights, not a ResNet-50."""

MEASURED = 24
"""Pictures whose sides are read."""

SIMCLR_MEMORY = 0.2
"""GiB of GPU memory that a picture of 224 px, seen twice, needs in a step of ResNet-50 in bf16."""


@dataclass(frozen=True)
class Pictures:
    """What a folder holds.

    Attributes:
        data: `data:` of the recipe.
        num_train: Pictures to learn from.
        num_test: Labelled pictures to measure by; 0 for unlabelled ones.
        num_classes: Of labelled pictures; 0 for unlabelled ones.
        short_side: Median of the shorter sides, in pixels.
    """

    data: Data
    num_train: int
    num_test: int
    num_classes: int
    short_side: int


@dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        cores: That a process may use.
        gpu_memory: GiB of each GPU; 0 without one.
        processes: That train together.
    """

    cores: int
    gpu_memory: float = 0.0
    processes: int = 1


@dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        init: Of the recipe; `scratch` for random weights.
        backbone: Architecture in timm; empty where the choice is free.
        options: `backbone_options` of that architecture.
        image_size: Side of the pictures that the weights were trained on, in pixels.
        teacher: Words that open the same weights as a teacher.
        divisor: Of every side that the network reads, in pixels.
    """

    init: str = "scratch"
    backbone: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 0
    teacher: str = ""
    divisor: int = 32


# --------------------------------------------------------------------------- the choice


def choose(
    pictures: Pictures, machine: Machine, start: Start, *, image_size: int | None = None
) -> Recipe:
    """The recipe for these pictures on this machine.

    Args:
        pictures: To learn from.
        machine: That trains.
        start: Weights to start from.
        image_size: Side in pixels that the user asked for; chosen when not given.
    """
    choice = _from_random if start.init == "scratch" else _from_start
    backbone, options, size, stage = choice(pictures, machine, start, image_size)
    train = stage.train
    assert train.steps is not None
    epochs = train.steps * train.batch_size / pictures.num_train
    name = f"fgssl_{short_name(backbone)}_{pictures.data.name}"
    if f"{name}.{stage.method}" in recipe_files():  # a folder called as a data set of the zoo
        name = f"{name}_own"
    return Recipe(
        name=f"{name}.{stage.method}",
        backbone=backbone,
        backbone_options=options,
        init=start.init,
        data=replace(pictures.data, image_size=size),
        stages=(replace(stage, train=replace(train, checkpoint_every=max(1.0, epochs / 10))),),
        monitor=Monitor(every=max(1.0, epochs / 5)),
    )


def _from_start(
    pictures: Pictures, machine: Machine, start: Start, image_size: int | None
) -> tuple[str, dict[str, Any], int, Stage]:
    """Distillation from itself at 1.5 times the size, heads first.

    Steps, batch, rates and 128 px are those of `fgssl_efficientnet_lite1_cub.distillation`, chosen
    on a validation part of 2,999 pictures of birds. Accuracy hardly grows above 192 px
    (docs/zoo.md), so that a start of more pixels is read at 160 at most.
    """
    largest = 160 if machine.gpu_memory else 128
    size = image_size or _multiple(min(start.image_size, largest), start.divisor)
    train = Train(
        steps=400,
        batch_size=_batch(64, pictures, machine),
        optimizer="adamw",
        lr=2e-3,
        lr_scaling="none",
        weight_decay=0.05,
        backbone_lr_scale=0.1,
        head_warmup=0.3,
    )
    options = {"teacher": start.teacher, "teacher_size": _multiple(1.5 * size, start.divisor)}
    stage = Stage("distillation", options=options, train=train)
    return start.backbone, dict(start.options), size, stage


def _from_random(
    pictures: Pictures, machine: Machine, start: Start, image_size: int | None
) -> tuple[str, dict[str, Any], int, Stage]:
    """SimCLR as on CUB-200-2011: of `fgssl_resnet50_cub.simclr` on a GPU, smaller on a CPU.

    On a CPU the settings of the README's cub100 row: ResNet-18, 96 px, batches of 64, and at most
    2,000 steps (some 50 minutes of one core).
    """
    gpu = machine.gpu_memory > 0
    largest = min(224 if gpu else 96, pictures.short_side)
    size = image_size or _multiple(largest, start.divisor)
    large = gpu and pictures.num_train >= SMALL_SET
    backbone = start.backbone or ("resnet50" if large else "resnet18")
    is_resnet = is_model_in_modules(backbone, {"resnet"})
    batch = 64
    if gpu:
        fits = machine.gpu_memory * machine.processes / (SIMCLR_MEMORY * (size / 224) ** 2)
        batch = max((b for b in (256, 128, 64, 32) if b <= fits), default=16)
    batch = _batch(batch, pictures, machine)
    steps = max(200, 200 * pictures.num_train // batch)
    train = Train(
        steps=steps if gpu else min(steps, 2000),
        batch_size=batch,
        optimizer="adamw",
        lr=2e-3,
        lr_scaling="sqrt",
        weight_decay=0.05,
    )
    options = {"temperature": 0.1, "projector_layers": 1, "preset": "fine_grained"}
    return (
        backbone,
        {"zero_init_last": False} if is_resnet else {},
        size,
        Stage("simclr", options=options, train=train),
    )


def _batch(wanted: int, pictures: Pictures, machine: Machine) -> int:
    """The wanted batch, or the largest power of two that the pictures fill, split evenly."""
    while wanted > max(pictures.num_train, 2):
        wanted //= 2
    return max(wanted // machine.processes, 1) * machine.processes


def _multiple(pixels: float, divisor: int) -> int:
    return max(divisor, int(pixels) // divisor * divisor)


# --------------------------------------------------------------------------- what is said of it


def describe(recipe: Recipe, pictures: Pictures, machine: Machine) -> str:
    """Ten lines: what was chosen and which words of the command line change it."""
    (stage,) = recipe.stages
    train, options = stage.train, stage.options
    counted = train.steps or round(train.epochs * pictures.num_train / train.batch_size)
    passes = counted * train.batch_size / pictures.num_train
    labels = f"{pictures.num_classes} classes" if pictures.num_classes else "no labels"
    teacher = options.get("teacher_size")
    rate = f"{train.lr:g}" + (
        f", backbone {train.lr * train.backbone_lr_scale:g}" if train.backbone_lr_scale != 1 else ""
    )
    rows = [
        ("pictures", f"{pictures.num_train} to learn from, {pictures.short_side} px, {labels}",
         "data.num_images=500"),
        ("machine", _machine(machine), "speed.threads=2"),
        ("start", _start(recipe), "init=scratch" if recipe.init != "scratch" else "init=runs/NAME"),
        ("method", _METHODS.get(stage.method, stage.method), "RECIPE data.path=FOLDER"),
        ("size", f"{recipe.data.image_size} px" + (f", teacher {teacher} px" if teacher else ""),
         "data.image_size=160"),
        ("batch", f"{train.batch_size} pictures", "stages.0.train.batch_size=32"),
        ("steps", f"{counted} ({passes:.3g} passes over the pictures)", "stages.0.train.steps=200"),
        ("rate", f"{rate} ({train.optimizer})", "stages.0.train.lr=1e-3"),
        ("views", options.get("preset", "fine_grained"), "stages.0.options.preset=simclr"),
        ("measured", f"kNN accuracy of {pictures.num_test} pictures" if pictures.num_test
         else "RankMe, as nothing is labelled", "monitor.every=10"),
    ]  # fmt: skip
    width = max(len(value) for _, value, _ in rows)
    lines = [f"{name:9} {value:{width}}  {how}" for name, value, how in rows]
    return "\n".join([f"{'':9} {'chosen':{width}}  changed by", *lines,
                      "All keys as YAML: --print-recipe"])  # fmt: skip


_METHODS = {
    "distillation": "distillation from itself at a larger size",
    "simclr": "SimCLR",
}


def _machine(machine: Machine) -> str:
    words = f"{machine.cores} cores, "
    words += f"a GPU of {machine.gpu_memory:.0f} GiB" if machine.gpu_memory else "no GPU"
    return words + (f", {machine.processes} processes" if machine.processes > 1 else "")


def _start(recipe: Recipe) -> str:
    if recipe.init == "scratch":
        return f"random weights of {recipe.backbone}"
    return recipe.init if recipe.init.startswith("fgssl_") else f"{recipe.backbone}, {recipe.init}"


# --------------------------------------------------------------------------- the facts


def measure(data: Data, *, seed: int = 0) -> Pictures:
    """Numbers and sizes of a folder's pictures; what is odd about it is logged by the run.

    Raises:
        ValueError: As `load_splits`, or none of the pictures can be read.
    """
    with _silent():
        train, test = load_splits(data, seed=seed)
    sides = list(_short_sides(train))
    if not sides:
        raise ValueError(f"data.path: none of {MEASURED} pictures in {data.path} can be read")
    return Pictures(
        data=data,
        num_train=len(train),
        num_test=0 if test is None else len(test),
        num_classes=len(train.classes) if train.labels is not None else 0,
        short_side=int(np.median(sides)),
    )


def _short_sides(images: Images) -> Iterator[int]:
    for index in evenly(len(images), MEASURED):
        try:
            yield min(images[index]["image"].shape[:2])
        except CorruptImage:
            continue


@contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings on the pictures, which the run repeats when it opens them."""
    log = logging.getLogger("fg_ssl_zoo.data")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def this_machine() -> Machine:
    """Cores, memory of the first GPU, and the processes of this launch."""
    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if gpu else 0.0
    return Machine(usable_cores(), memory, int(os.environ.get("WORLD_SIZE", "1")))


def the_start(init: str | None, backbone: str | None) -> Start:
    """Weights that these words mean; a released model of ours when nothing is said.

    Args:
        init: As in a recipe.
        backbone: Architecture; needed where `init` is a tag of timm or a bare file.

    Raises:
        ValueError: No such weights, or they are of no known architecture.
    """
    if init is None and backbone is None:
        init = next(iter(released()), "scratch")
    if init is None or init == "scratch":
        return Start(backbone=backbone or "")
    is_own = init.startswith(PLACES) or home_path(init).is_dir() or init.startswith("fgssl_")
    if not is_own and backbone is None:
        raise RecipeError(f"init: {init} needs backbone=ARCHITECTURE beside it")
    words = init if is_own else f"{backbone}@{init}"
    shape = open_backbone(words, pretrained=False)
    architecture, stock_options = stock_of(shape.name, shape.model)
    patch = shape.patch_size or 32
    divisor = 32 if 32 % patch == 0 else patch
    options = {**stock_options, **shape.options}
    return Start(init, architecture, options, shape.image_size, words, divisor)


def released() -> list[str]:
    """Released models of photographs whose weights are on this machine, the smallest first.

    The drawn birds' model is left out: it has seen no photograph.
    """
    names = [
        f"{architecture}.{tag}"
        for architecture, stock in STOCK.items()
        for tag in stock.sha256
        if not architecture.endswith(f"_{Data.name}")
    ]
    here = {name: place for name in names if (place := local_place(name)[0])}
    return sorted(here, key=lambda name: _bytes(here[name].path))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


# --------------------------------------------------------------------------- command line


def recipe_of_words(words: Sequence[str]) -> tuple[Recipe, str | None]:
    """The recipe of a command line, and what was chosen where it names a folder of pictures.

    Args:
        words: A recipe or a folder of pictures, and overrides in any order.

    Raises:
        ValueError: As `recipe_of`, or there are no pictures in the folder.
    """
    folders = [word for word in words if is_folder(word)]
    if len(folders) != 1 or any(not is_override(w) and w not in folders for w in words):
        return recipe_of(words), None  # says what is wrong with two of them
    (folder,) = folders
    if (home_path(folder) / "recipe.yaml").is_file():
        raise RecipeError(
            f"{printable(folder)} is the folder of a run; {printable(folder)}/recipe.yaml is its "
            "recipe, and init= starts from its weights"
        )
    overrides = [word for word in words if is_override(word)]
    given = dict(word.split("=", 1) for word in overrides)
    of_data = [word.removeprefix("data.") for word in overrides if word.startswith("data.")]
    data = parse_words(Data, of_data, "data", path=folder)
    pictures, machine = measure(data), this_machine()
    start = the_start(given.get("init"), given.get("backbone"))
    size = data.image_size if "data.image_size" in given else None
    recipe = overridden(choose(pictures, machine, start, image_size=size), overrides)
    return recipe, describe(recipe, pictures, machine)


def is_folder(word: str) -> bool:
    """Whether a word of the command line names a folder in the place of a recipe."""
    return not is_override(word) and word not in recipe_files() and home_path(word).is_dir()
