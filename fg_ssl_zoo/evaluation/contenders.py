"""The backbones that one evaluation compares: opened, each once, and named."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from fg_ssl_zoo.backbones.any_backbone import open_backbone
from fg_ssl_zoo.backbones.backbone import Backbone, weights_fingerprint


@dataclass(frozen=True)
class Contender:
    """A backbone that is about to be scored.

    Attributes:
        name: Of its row.
        words: As the user wrote them.
        backbone: Opened.
        layer: Feature map to score, `None` for the pooled features.
        weights: Fingerprint of its weights.
    """

    name: str
    words: str
    backbone: Backbone
    layer: int | None
    weights: str


def contenders(
    models: Sequence[str], image_size: int | None, *, with_untrained: bool, seed: int
) -> list[Contender]:
    """All backbones, each once, opened before any of them is scored: a wrong name costs nothing."""
    found: list[Contender] = []
    seen: set[tuple[int | None, int, str]] = set()
    for words, pretrained in product(models, (True, False) if with_untrained else (True,)):
        backbone, layer = opened(words, image_size, seed=seed, pretrained=pretrained)
        weights = weights_fingerprint(backbone)
        key = (layer, backbone.image_size, weights)
        if key not in seen:
            seen.add(key)
            name = row_name(words, backbone, pretrained, [other.name for other in found])
            found.append(Contender(name, words, backbone, layer, weights))
    return found


def opened(
    words: str, image_size: int | None, *, seed: int, pretrained: bool = True
) -> tuple[Backbone, int | None]:
    """The backbone of these words, an untrained one under this seed, and which map is scored."""
    torch.manual_seed(seed)
    source, layer = with_layer(words)
    return open_backbone(source, image_size=image_size, pretrained=pretrained), layer


def with_layer(words: str) -> tuple[str, int | None]:
    """`resnet18@scratch#3` -> `resnet18@scratch` and feature map 3; without a number, `None`."""
    source, _, number = words.rpartition("#")
    return (source, int(number)) if re.fullmatch(r"-?\d+", number) and source else (words, None)


def row_name(words: str, backbone: Backbone, pretrained: bool, taken: Iterable[str] = ()) -> str:
    """A short name for a table that no other row has."""
    source, layer = with_layer(words)
    if not pretrained or source.endswith("@scratch"):
        name = f"{backbone.name}, untrained"
    elif "@" in source:
        name = f"{backbone.name}@{Path(source.partition('@')[2]).stem}"
    else:
        name = _folder_name(Path(source.partition(":")[2] or source)) or source
    name = name if layer is None else f"{name}#{layer}"
    number = sum(other == name or other.startswith(f"{name} (") for other in taken)
    return f"{name} ({number + 1})" if number else name


def _folder_name(path: Path) -> str:
    """`runs/NAME/export` and `runs/NAME` are NAME, `runs/NAME/export_teacher` is NAME_teacher."""
    if path.name == "export":
        return path.parent.name
    kind = path.name.removeprefix("export_")
    return path.name if kind == path.name else f"{path.parent.name}_{kind}"
