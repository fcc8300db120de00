"""The pretraining methods: one file for each paper. A file in this folder is a method."""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import RecipeError, nearest, parse, printable
from fg_ssl_zoo.data.sample import Images, refuse_single_pictures
from fg_ssl_zoo.method import Method

METHODS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
"""Names in recipes: the files of this folder."""


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ValueError: Unknown name; the nearest ones are named.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown method '{printable(name)}'{nearest(name, METHODS)}")
    module = importlib.import_module(f"{__name__}.{name}")
    kinds = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, Method) and kind.__module__ == module.__name__
    ]
    assert len(kinds) == 1, f"{module.__name__} has {len(kinds)} methods; a file is one method"
    return kinds[0]


def create_method(name: str, backbone: Backbone, **options: Any) -> Method:
    """Build a method around a backbone.

    Args:
        name: A key of `METHODS`.
        backbone: Trained in place.
        **options: Keywords of the class's constructor.

    Raises:
        ValueError: Unknown method or option, or a value of the wrong type.
    """
    return method_class(name)(backbone, **check_options(name, options))


def check_options(name: str, options: Mapping[str, Any], where: str = "options") -> dict[str, Any]:
    """Options converted to the annotated types of the method's constructor.

    Args:
        name: A key of `METHODS`.
        options: Options as written in the recipe.
        where: Path of the options, for the error.

    Raises:
        RecipeError: Unknown option, a missing one or wrong type, with its path and what is valid.
    """
    parameters = inspect.signature(method_class(name).__init__).parameters
    known = {n: p for n, p in parameters.items() if n not in ("self", "backbone")}
    for option in options:
        if option not in known:
            raise RecipeError(f"{where}.{option}: unknown option of {name}{nearest(option, known)}")
    needed = [n for n, p in known.items() if p.default is p.empty and n != "num_classes"]
    for option in needed:  # `num_classes` is decided by the data
        if option not in options:
            raise RecipeError(f"{where}.{option}: {name} requires this option")
    return {
        option: parse(known[option].annotation, value, where=f"{where}.{option}")
        for option, value in options.items()
    }


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with defaults for missing ones.

    Args:
        name: A key of `METHODS`.
        options: Options that `check_options` returned.
    """
    parameters = inspect.signature(method_class(name).__init__).parameters
    given = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    return {**given, **options}


def check_queue(options: Mapping[str, Any], batch_size: int, where: str = "options") -> None:
    """Refuse a given `queue_size` that is smaller than one batch.

    Args:
        options: Options that `check_options` returned.
        batch_size: Images of one forward pass, of all processes together.
        where: Path of the options, for the error.

    Raises:
        RecipeError: The queue is smaller.
    """
    size = options.get("queue_size")
    if size is not None and size < batch_size:
        raise RecipeError(
            f"{where}.queue_size: {size} is smaller than the batch of {batch_size} images; "
            f"use {batch_size} or more"
        )


def long_queue(options: Mapping[str, Any], num_images: int) -> str | None:
    """A warning for a given queue of more than half of the images; otherwise `None`.

    A queue of `k` keys contains on average k^2 / 2n^2 older keys of the query's own image if
    k <= n images (one in eight at a half), and k / n - 1/2 beyond.

    Args:
        options: Options that `check_options` returned.
        num_images: To train on.
    """
    size, n = options.get("queue_size"), num_images
    if size is None or size <= n // 2:
        return None
    times = size**2 / (2 * n**2) if size <= n else size / n - 0.5
    return (
        f"queue_size: {size} keys are more than half of the {n} training images, so an image has "
        f"on average {times:.2g} older keys of its own among its negatives; use {n // 2} or less, "
        "or leave it out"
    )


def complete_options(
    name: str,
    options: Mapping[str, Any],
    images: Images,
    where: str = "options",
    *,
    batch_size: int = 1,
) -> dict[str, Any]:
    """Add options that are set from the data, if they are not given.

    `num_classes` of a method that learns from labels. `queue_size` of a method with a queue: half
    of the images, at most the default of its constructor, at least a batch.

    Args:
        name: A key of `METHODS`.
        options: Options as written in the recipe.
        images: To train on.
        where: Path of the options, for the error.
        batch_size: Images of one forward pass, of all processes together.

    Raises:
        ValueError: The method needs labels and there are none, there is only one class, or
            another number of classes is given.
    """
    if method_class(name).keeps_queue(options):
        most = all_options(name, {})["queue_size"]
        options = {"queue_size": max(min(most, len(images) // 2), batch_size), **options}
    if not method_class(name).needs_labels:
        return dict(options)
    if images.labels is None:
        raise RecipeError(
            f"{name} is trained on labels and {images.name} has none; put each class into a folder "
            "of its own, or use a method without labels, such as simclr"
        )
    found = len(images.classes)
    if found < 2:
        raise RecipeError(f"{name} needs 2 classes or more and {images.name} has {found}")
    refuse_single_pictures(images.labels, images.classes, name)
    given = options.get("num_classes", found)
    if given != found:
        raise RecipeError(f"{where}.num_classes: {images.name} has {found} classes, not {given}")
    return {**options, "num_classes": found}
