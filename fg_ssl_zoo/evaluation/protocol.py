"""The interface of a protocol: a function from a `Task` and options to a list of `Outcome`s.

A protocol is one file in `protocols/` that ends with its record, `PROTOCOL`. The command line, its
help, `evaluate`, the report and the tables of the documentation read the record.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float64, Int64
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.features.extract import Features
from fg_ssl_zoo.metrics import Metric


@dataclass(frozen=True)
class Task:
    """One backbone and one data set, with their features.

    Attributes:
        train, test: Features of the two splits, with labels if a protocol needs them.
        classes: Class names in the order of the labels.
        backbone: The backbone, for protocols that need more than pooled features.
        train_images, test_images: The images, for the same protocols.
        accelerator: Device and precision.
        crop_pct: Share of the image that the centre crop keeps; the model's own when not given.
        num_workers: Loader processes.
        seed: Seed of every random draw.
        unreadable: Split -> a line for each image without features.
    """

    train: Features
    test: Features
    classes: list[str]
    backbone: Backbone
    train_images: Images
    test_images: Images
    accelerator: Accelerator
    crop_pct: float | None = None
    num_workers: int = 0
    seed: int = 0
    unreadable: Mapping[str, list[str]] = field(default_factory=dict)

    def draw_seeds(self, draws: int) -> range:
        """One seed per draw, the same for all models."""
        return range(1000 * self.seed, 1000 * self.seed + draws)


@dataclass(frozen=True)
class Outcome:
    """One metric of one protocol, with a value for every test image so that models can be compared.

    A metric that is not a mean over images, such as an IoU, uses `statistics.influence_values`.

    Attributes:
        metric: `knn_top1`, `retrieval_map`, ...; described by a `Metric` of the protocol's record.
        values: (m,) one value for each row of `Task.test`, NaN if an image is not scored. Their
            mean is the score.
        predictions: (m,) class numbers, if the protocol predicts a class.
        settings: Everything that can change the number; written to the results file.
        notes: Lines for the user: what was left out, what did not converge.
    """

    metric: str
    values: Float64[np.ndarray, " m"]
    predictions: Int64[np.ndarray, " m"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The mean over the images that are scored, in 0..1."""
        return float(np.nanmean(self.values))


def labels_of(part: Features) -> Int64[Tensor, " n"]:
    """The labels of a split; `evaluate` refuses unlabelled splits before any protocol runs."""
    assert part.labels is not None
    return part.labels


def classified(
    metric: str,
    predicted: Int64[np.ndarray, " m"],
    test: Features,
    settings: dict[str, Any],
    notes: tuple[str, ...] = (),
) -> Outcome:
    """Accuracy: 1 or 0 for every test image."""
    right = (predicted == labels_of(test).numpy()).astype(np.float64)
    return Outcome(metric, right, predicted.astype(np.int64), settings, notes)


# --------------------------------------------------------------------------- the record


@dataclass(frozen=True)
class Protocol:
    """The record of a protocol.

    Attributes:
        run: Function of a `Task` and, if it has any, options; returns the outcomes of one
            backbone. Its name is the name of the protocol.
        metrics: All metrics that it can compute, the main one first.
        summary: What is computed, for the table of the documentation.
        options: Dataclass of options, all with defaults. The flag, its help and the documentation
            are made from its fields and the `Attributes` of its docstring.
        default: Whether it runs if no protocol is selected.
        needs_labels: Whether every image must have a class.
        reads: `features`: pooled features or the mean of one feature map. `network`: the network
            itself.
        check: Called with training and test images before any work; raises `ValueError` if they
            lack keypoints, masks, ...
    """

    run: Callable[..., list[Outcome]]
    metrics: tuple[Metric, ...]
    summary: str
    options: type | None = None
    default: bool = False
    needs_labels: bool = True
    reads: Literal["features", "network"] = "features"
    check: Callable[[Images, Images], object] = lambda train, test: None

    @property
    def name(self) -> str:
        """Name on the command line."""
        return self.run.__name__


@dataclass(frozen=True)
class Option:
    """One option of a protocol, for help and documentation.

    Attributes:
        name: Name of the field.
        default: Default, as a user types it.
        choices: Accepted values, if there are few.
        text: Description, from the docstring of the dataclass.
    """

    name: str
    default: str
    choices: tuple[str, ...]
    text: str


def options_of(kind: type) -> list[Option]:
    """The fields of an options dataclass with their descriptions."""
    texts = described(inspect.getdoc(kind) or "", "Attributes")
    hints = get_type_hints(kind)
    return [
        Option(
            entry.name, typed(_default_of(entry)), _choices(hints[entry.name]), texts[entry.name]
        )
        for entry in fields(kind)
    ]


def described(docstring: str, section: str) -> dict[str, str]:
    """Name -> text of one section of a docstring; several names may share a text.

    Args:
        docstring: Without indentation, as `inspect.getdoc` returns it.
        section: `Args` or `Attributes`.
    """
    _, _, rest = docstring.partition(f"{section}:\n")
    (body, *_) = re.split(r"\n\n(?=\S)", rest)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n    (?=\S)", "\n" + body)[1:]:
        names, _, text = entry.partition(":")
        texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return texts


def _default_of(entry: Field[Any]) -> Any:
    """The default of a field; an empty container for a default factory."""
    if entry.default is MISSING and entry.default_factory is not MISSING:
        return entry.default_factory()
    return entry.default


def typed(value: Any) -> str:
    """A default as a user types it; `required` if there is none."""
    if value is MISSING:
        return "required"
    if isinstance(value, tuple):
        return f"[{','.join(map(typed, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()
