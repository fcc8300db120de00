"""Open the backbones of one evaluation, each once, and give them row names."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.before_training import open_start
from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.identity import identity


@dataclass(frozen=True)
class Candidate:
    """A backbone to be scored.

    Attributes:
        name: Name of its row in the table.
        words: The text that the user wrote.
        backbone: The opened backbone.
        layer: Feature map to score; `None` for the pooled features.
        identity: Everything that determines its features, see `identity`.
        start: Name of the row of the same network before training; `None` if there is no such
            row, and for that network itself.
    """

    name: str
    words: str
    backbone: Backbone
    layer: int | None
    identity: dict[str, Any]
    start: str | None = None


def candidates(
    models: Sequence[str], image_size: int | None, *, with_untrained: bool, seed: int
) -> list[Candidate]:
    """Open all backbones, each once, before any is scored, so that a wrong name fails early.

    Args:
        models: As for `evaluate`.
        image_size: Side of the input in pixels; each model's own when not given.
        with_untrained: Add, after each model, its network before training.
        seed: Seed of random weights, for networks without a recipe.
    """
    found: dict[str, Candidate] = {}
    for words in models:
        backbone, layer = opened(words, image_size, seed=seed)
        key = _enter(found, words, backbone, layer)
        if with_untrained:
            start = open_start(with_layer(words)[0], backbone, seed=seed)
            before = _enter(found, words, start, layer, pretrained=False)
            if before != key:
                found[key] = replace(found[key], start=found[before].name)
    return list(found.values())


def _enter(
    found: dict[str, Candidate],
    words: str,
    backbone: Backbone,
    layer: int | None,
    *,
    pretrained: bool = True,
) -> str:
    """Add a model unless it is already there under another name; returns its key."""
    about = identity(backbone, layer)
    key = json.dumps({**about, "crop_pct": backbone.crop_pct})  # another input size is another row
    if key not in found:
        name = row_name(words, backbone, pretrained, [other.name for other in found.values()])
        found[key] = Candidate(name, words, backbone, layer, about)
    return key


def opened(words: str, image_size: int | None, *, seed: int) -> tuple[Backbone, int | None]:
    """Open a backbone, random weights under this seed; also returns the feature map to score."""
    torch.manual_seed(seed)
    source, layer = with_layer(words)
    return open_backbone(source, image_size=image_size), layer


def with_layer(words: str) -> tuple[str, int | None]:
    """`resnet18@scratch#3` -> `resnet18@scratch` and feature map 3; without a number, `None`."""
    source, _, number = words.rpartition("#")
    return (source, int(number)) if re.fullmatch(r"-?\d+", number) and source else (words, None)


def row_name(words: str, backbone: Backbone, pretrained: bool, taken: Iterable[str] = ()) -> str:
    """A short name that is unique in the table.

    A network before training is called `ARCHITECTURE, untrained`, or `ARCHITECTURE, start` if its
    recipe does not start from random weights; `NAME, start` if it starts from a model of the zoo.
    """
    source, layer = with_layer(words)
    head, at, init = source.partition("@")
    architecture = head if at and "{" in head else backbone.name
    if not pretrained or source.endswith("@scratch"):
        kind = "untrained" if source.endswith("@scratch") or backbone.init == "scratch" else "start"
        of_zoo = kind == "start" and re.fullmatch(r"fgssl_[\w.]+", backbone.init)
        name = f"{backbone.init if of_zoo else architecture}, {kind}"
    elif at:
        name = f"{architecture}@{Path(init).stem}"
    else:
        name = _folder_name(Path(source.partition(":")[2] or source)) or source
    name = name if layer is None else f"{name}#{layer}"
    number = sum(other == name or other.startswith(f"{name} (") for other in taken)
    return f"{name} ({number + 1})" if number else name


def is_before_training(name: str) -> bool:
    """Whether this is the row name of a network before training."""
    return bool(re.search(r", (untrained|start)(#-?\d+)?( \(\d+\))?$", name))


def _folder_name(path: Path) -> str:
    """`runs/NAME/export` and `runs/NAME` are NAME, `runs/NAME/export_teacher` is NAME_teacher."""
    if path.name == "export":
        return path.parent.name
    kind = path.name.removeprefix("export_")
    return path.name if kind == path.name else f"{path.parent.name}_{kind}"
