"""A folder of images instead of a recipe: collect the facts for the choice of a recipe.

measure, this_machine, the_start    images, hardware, weights to start from
recipe_of_words                     command line -> recipe, and what was chosen (`choice.py`)
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.fgssl_models import STOCK, stock_of
from fg_ssl_zoo.backbones.weights.config import PLACES
from fg_ssl_zoo.backbones.weights.locate import local_place
from fg_ssl_zoo.config import (
    FILE_SUFFIXES,
    Data,
    Recipe,
    RecipeError,
    Seed,
    home_path,
    is_override,
    overridden,
    parse_words,
    printable,
    recipe_files,
    recipe_of,
)
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.listing import SUFFIXES
from fg_ssl_zoo.data.loader import usable_cores
from fg_ssl_zoo.data.sample import CorruptImage, Images
from fg_ssl_zoo.features.extract import evenly
from fg_ssl_zoo.pretrain.choice import Machine, Pictures, Start, choose, describe

MEASURED = 24
"""Number of images whose size is read."""


Splits = tuple[Images, Images | None]
"""Training images, and labelled test images or `None`: the result of `load_splits`."""


def measure(data: Data, splits: Splits) -> Pictures:
    """Count and measure the images of a folder.

    Args:
        data: The recipe's `data`.
        splits: Its images.

    Raises:
        ValueError: None of the images can be read.
    """
    train, test = splits
    looked_at = evenly(len(train), MEASURED)
    lost: list[str] = []
    sides = list(_short_sides(train, looked_at, lost))
    if not sides:
        raise ValueError(
            f"data.path: none of the {len(looked_at)} images that were checked in {data.path} "
            f"can be read ({lost[0]}); replace or remove them"
        )
    return Pictures(
        data=data,
        num_train=len(train),
        num_test=0 if test is None else len(test),
        num_classes=len(train.classes) if train.labels is not None else 0,
        short_side=int(np.median(sides)),
    )


def _short_sides(images: Images, indices: Sequence[int], lost: list[str]) -> Iterator[int]:
    """Shorter sides of these images in pixels; errors of unreadable ones are added to `lost`."""
    for index in indices:
        try:
            yield min(images[index]["image"].shape[:2])
        except CorruptImage as error:
            lost.append(str(error))


def this_machine() -> Machine:
    """Cores, memory of the first GPU, and the processes of this launch."""
    gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if gpu else 0.0
    return Machine(usable_cores(), memory, int(os.environ.get("WORLD_SIZE", "1")))


def the_start(init: str | None, backbone: str | None) -> Start:
    """The start weights that the user names; a released model of ours if none are named.

    Args:
        init: `init` as in a recipe.
        backbone: Architecture; needed if `init` is a timm tag or a bare file.

    Raises:
        ValueError: No such weights, or their architecture is unknown.
    """
    if init is None and backbone is None:
        init = next(iter(released()), "scratch")
    if init is None or init == "scratch":
        return Start(backbone=backbone or "")
    is_own = init.startswith(PLACES) or home_path(init).is_dir() or init.startswith("fgssl_")
    if not is_own and backbone is None:
        if "/" in init and not home_path(init).exists():
            raise RecipeError(f"init: there is no folder or file {printable(init)}")
        raise RecipeError(f"init: {init} also needs backbone=ARCHITECTURE")
    words = init if is_own else f"{backbone}@{init}"
    shape = open_backbone(words, pretrained=False)
    architecture, stock_options = stock_of(shape.name, shape.model)
    patch = shape.patch_size or 32
    divisor = 32 if 32 % patch == 0 else patch
    options = {**stock_options, **shape.options}
    return Start(init, architecture, options, shape.image_size, words, divisor)


def released() -> list[str]:
    """Released models of photographs whose weights are on this machine, the smallest first.

    Of models of equal size the one trained on more images comes first: it is the better start on
    average over birds, cars and dishes (docs/own_pictures.md). The model of the drawn birds is left
    out, since it was not trained on photographs.
    """
    names = [
        f"{architecture}.{tag}"
        for architecture, stock in STOCK.items()
        for tag in stock.sha256
        if not architecture.endswith(f"_{Data.name}")
    ]
    here = {name: place for name in names if (place := local_place(name)[0])}
    return sorted(here, key=lambda name: _size_and_pictures(here[name].path))


def _size_and_pictures(folder: Path) -> tuple[int, int]:
    """Bytes of the weights, and minus the number of images that they were trained on.

    Results that are missing or unreadable count as 0 images: the folder may be a user's own.
    """
    size, seen = sum(path.stat().st_size for path in folder.glob("*.safetensors")), 0
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        seen = int(results["data"]["num_train"])
    return size, -seen


# --------------------------------------------------------------------------- command line


class Chosen(NamedTuple):
    """The recipe of a command line.

    Attributes:
        recipe: The recipe.
        summary: Ten lines about the choice; `None` if the command line names a recipe or stages.
        splits: Images of the folder, listed once for choice and run; `None` for a recipe.
    """

    recipe: Recipe
    summary: str | None = None
    splits: Splits | None = None


@dataclass(frozen=True)
class _Seed:
    """The only key of a recipe besides `data` that determines which images are listed."""

    seed: Seed = 0


def recipe_of_words(words: Sequence[str]) -> Chosen:
    """The recipe of a command line, chosen if it names a folder of images.

    Args:
        words: A recipe or a folder of images, and overrides in any order.

    Raises:
        ValueError: As for `recipe_of`, or the folder contains no images.
    """
    for word in words:
        if not is_override(word) and is_picture(home_path(word)):
            raise RecipeError(f"{printable(word)} is an image; name the folder of the images")
    folders = [word for word in words if is_folder(word)]
    if len(folders) != 1 or any(not is_override(w) and w not in folders for w in words):
        return Chosen(recipe_of(words))  # the error for two of them
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
    of_seed = [word for word in overrides if word.startswith("seed=")]
    splits = load_splits(data, seed=parse_words(_Seed, of_seed, "").seed)
    pictures, machine = measure(data, splits), this_machine()
    start = the_start(given.get("init"), given.get("backbone"))
    size = data.image_size if "data.image_size" in given else None
    recipe = overridden(choose(pictures, machine, start, image_size=size), overrides)
    if len(recipe.stages) != 1:  # of the user's own choice
        return Chosen(recipe, None, splits)
    return Chosen(recipe, describe(recipe, pictures, machine), splits)


def is_picture(path: Path) -> bool:
    """Whether a path has the suffix of an image."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def is_folder(word: str) -> bool:
    """Whether an argument names a folder instead of a recipe.

    A file that holds or lists images (`FILE_SUFFIXES`) counts as a folder.
    """
    if is_override(word) or word in recipe_files():
        return False
    path = home_path(word)
    return path.is_dir() or (path.suffix in FILE_SUFFIXES and path.is_file())
