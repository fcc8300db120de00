"""The choice of a recipe for a folder of images: method, start, size, batch, steps and rate.

    choose      facts about images, machine and start -> Recipe; a pure function
    describe    ten lines: what was chosen, and how to change it

With a start, the network is distilled from itself at one and a half times the image size:
contrastive methods at usual rates make good features worse (docs/zoo.md). From random weights it is
SimCLR with the settings chosen on CUB (docs/recipes.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from timm.models import is_model_in_modules

from fg_ssl_zoo.config import Data, Monitor, Recipe, Stage, Train, recipe_files, short_name

SMALL_SET = 1000
"""With fewer training images, a ResNet-18 is trained from random weights instead of a ResNet-50."""

SIMCLR_MEMORY = 0.2
"""GiB of GPU memory per image (two views of 224 px) in a bf16 step of a ResNet-50."""


@dataclass(frozen=True)
class Pictures:
    """Facts about the images of a folder.

    Attributes:
        data: `data:` of the recipe.
        num_train: Number of training images.
        num_test: Number of labelled test images; 0 without labels.
        num_classes: Number of classes; 0 for images without labels.
        short_side: Median of the shorter sides, in pixels.
    """

    data: Data
    num_train: int
    num_test: int
    num_classes: int
    short_side: int


@dataclass(frozen=True)
class Machine:
    """Facts about the machine.

    Attributes:
        cores: Number of cores that a process may use.
        gpu_memory: GiB of each GPU; 0 without one.
        processes: Number of processes that train together.
    """

    cores: int
    gpu_memory: float = 0.0
    processes: int = 1


@dataclass(frozen=True)
class Start:
    """Facts about the start weights.

    Attributes:
        init: The recipe's `init`; `scratch` for random weights.
        backbone: Architecture in timm; empty if it is to be chosen.
        options: `backbone_options` of that architecture.
        image_size: Side of the images that the weights were trained on, in pixels.
        teacher: Text that opens the same weights as a teacher.
        divisor: Number that divides every input side which the network accepts, in pixels.
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
    """The recipe for these images on this machine.

    Args:
        pictures: The training images.
        machine: The machine that trains.
        start: Weights to start from.
        image_size: Side in pixels set by the user; chosen when not given.
    """
    choice = _from_random if start.init == "scratch" else _from_start
    backbone, options, size, stage = choice(pictures, machine, start, image_size)
    train = stage.train
    assert train.steps is not None
    epochs = train.steps * train.batch_size / pictures.num_train
    name = f"fgssl_{short_name(backbone)}_{pictures.data.name}"
    if f"{name}.{stage.method}" in recipe_files():  # named like a data set of the catalogue
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
    on a validation part of 2,999 images of birds. Accuracy hardly grows above 192 px (docs/zoo.md),
    so a start with a larger input is trained at 160 px at most.
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
    """SimCLR as on CUB-200-2011: `fgssl_resnet50_cub.simclr` on a GPU, a smaller one on a CPU.

    On a CPU, the settings of the README's cub100 row: ResNet-18, 96 px, batches of 64, and at most
    2,000 steps (about 50 minutes of one core).
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
    """The wanted batch, or the largest power of two that the images fill, divided evenly."""
    while wanted > max(pictures.num_train, 2):
        wanted //= 2
    return max(wanted // machine.processes, 1) * machine.processes


def _multiple(pixels: float, divisor: int) -> int:
    return max(divisor, int(pixels) // divisor * divisor)


# --------------------------------------------------------------------------- what is said of it


def describe(recipe: Recipe, pictures: Pictures, machine: Machine) -> str:
    """Ten lines: what was chosen, and the arguments that change it."""
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
        ("images", f"{pictures.num_train} for training, {pictures.short_side} px, {labels}",
         "data.num_images=500"),
        ("machine", _machine(machine), "speed.threads=2"),
        ("start", _start(recipe), "init=scratch" if recipe.init != "scratch" else "init=runs/NAME"),
        ("method", _METHODS.get(stage.method, stage.method), "RECIPE data.path=FOLDER"),
        ("size", f"{recipe.data.image_size} px" + (f", teacher {teacher} px" if teacher else ""),
         "data.image_size=160"),
        ("batch", f"{train.batch_size} images", "stages.0.train.batch_size=32"),
        ("steps", f"{counted} ({passes:.3g} passes over the images)", "stages.0.train.steps=200"),
        ("rate", f"{rate} ({train.optimizer})", "stages.0.train.lr=1e-3"),
        ("views", options.get("preset", "fine_grained"), "stages.0.options.preset=simclr"),
        ("measured", f"kNN accuracy of {pictures.num_test} images" if pictures.num_test
         else f"RankMe, since there are no {'test images' if pictures.num_classes else 'labels'}",
         "monitor.every=10"),
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
