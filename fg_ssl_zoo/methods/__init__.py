"""Pretext methods: one file, one paper; this is the list of them."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import RecipeError, nearest, parse, printable
from fg_ssl_zoo.data.sample import Images, refuse_single_pictures
from fg_ssl_zoo.method import Method

METHODS = {
    "byol": "BYOL",
    "detcon": "DetCon",
    "dino": "DINO",
    "jigsaw": "Jigsaw",
    "lcr": "LCR",
    "moco": "MoCo",
    "particle": "Particle",
    "pmg": "PMG",
    "reconstruction": "Reconstruction",
    "simclr": "SimCLR",
    "simsiam": "SimSiam",
    "srgan": "SRGAN",
    "super_resolution": "SuperResolution",
    "synthesized_pairs": "SynthesizedPairs",
}
"""Name in a recipe and file of this folder -> class."""


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: Unknown name; the nearest ones are named.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown method '{printable(name)}'{nearest(name, METHODS)}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), METHODS[name])


def create_method(name: str, backbone: Backbone, **options: Any) -> Method:
    """Build a method around a backbone.

    Args:
        name: A key of `METHODS`.
        backbone: Is trained in place.
        **options: Keywords of the class's constructor.

    Raises:
        ValueError: Unknown method or option, or a value of the wrong type.
    """
    return method_class(name)(backbone, **check_options(name, options))


def check_options(name: str, options: Mapping[str, Any], where: str = "options") -> dict[str, Any]:
    """Options converted to the annotated types of the method's constructor.

    Args:
        name: A key of `METHODS`.
        options: As written in the recipe.
        where: Path of the options, for the error.

    Raises:
        RecipeError: Unknown option or wrong type, with its path and the nearest valid name.
    """
    parameters = inspect.signature(method_class(name).__init__).parameters
    known = {n: p for n, p in parameters.items() if n not in ("self", "backbone")}
    for option in options:
        if option not in known:
            raise RecipeError(f"{where}.{option}: unknown option of {name}{nearest(option, known)}")
    return {
        option: parse(known[option].annotation, value, where=f"{where}.{option}")
        for option, value in options.items()
    }


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the defaults of those that are not given.

    Args:
        name: A key of `METHODS`.
        options: Of `check_options`.
    """
    parameters = inspect.signature(method_class(name).__init__).parameters
    given = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {**given, **options}


def check_queue(
    name: str, options: Mapping[str, Any], batch_size: int, where: str = "options"
) -> None:
    """Refuse a queue that cannot take in the keys of one batch; for methods with a `queue_size`.

    Args:
        name: A key of `METHODS`.
        options: Of `check_options`.
        batch_size: Images of one forward pass, of all processes together.
        where: Path of the options, for the error.

    Raises:
        RecipeError: The queue is smaller.
    """
    parameter = inspect.signature(method_class(name).__init__).parameters.get("queue_size")
    size = options.get("queue_size", parameter and parameter.default)
    if size is not None and size < batch_size:
        raise RecipeError(
            f"{where}.queue_size: {size} is smaller than the batch of {batch_size} images; "
            f"{batch_size} or more would do"
        )


def complete_options(
    name: str, options: Mapping[str, Any], images: Images, where: str = "options"
) -> dict[str, Any]:
    """Options with the `num_classes` of the data, for a method that learns from labels.

    Args:
        name: A key of `METHODS`.
        options: As written in the recipe.
        images: To train on.
        where: Path of the options, for the error.

    Raises:
        ValueError: Labels are needed and there are none, or all are alike, or a class has a single
            picture, or another number is given.
    """
    if not method_class(name).needs_labels:
        return dict(options)
    if images.labels is None:
        raise RecipeError(
            f"{name} learns from labels and {images.name} has none; put each class into a folder "
            "of its own, or take a method that needs none, such as simclr"
        )
    found = len(images.classes)
    if found < 2:
        raise RecipeError(f"{name} tells classes apart and {images.name} has {found}; 2 would do")
    refuse_single_pictures(images.labels, images.classes, name)
    given = options.get("num_classes", found)
    if given != found:
        raise RecipeError(f"{where}.num_classes: {images.name} has {found} classes, not {given}")
    return {**options, "num_classes": found}
