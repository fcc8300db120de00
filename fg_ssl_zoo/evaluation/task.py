"""What a protocol reads and what it says: a `Task` goes in, `Outcome`s come out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float64, Int64
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.features import Features


@dataclass(frozen=True)
class Task:
    """One backbone and one data set, with the features that all cheap protocols read.

    Attributes:
        train, test: Features of the two splits, labelled where a protocol needs labels.
        classes: Class names in the order of the labels.
        backbone: For protocols that go behind the pooled features.
        train_images, test_images: The pictures, likewise.
        accelerator: Device and precision, likewise.
        crop_pct: Of the centre crop that the features saw; the model's own when not given.
        num_workers: Loader processes.
        seed: Of every draw.
        unreadable: Split -> a line for each picture without features.
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
        """A seed for each of several draws, the same for all models."""
        return range(1000 * self.seed, 1000 * self.seed + draws)


@dataclass(frozen=True)
class Outcome:
    """One number of one protocol, kept for every test picture so that models can be compared.

    A number that is no mean over pictures, as an IoU, is kept as `statistics.influence_values`.

    Attributes:
        metric: `knn_top1`, `retrieval_map`, ...; every value is a share, 1 is perfect; 0 is for
            those that end with `_error`.
        values: (m,) for each row of `Task.test`; NaN where a picture is not scored. Their mean is
            the result.
        predictions: (m,) class numbers, where the protocol names a class.
        settings: All that could move the number; goes into the results file.
        notes: Lines for the reader: what was skipped, what did not converge.
    """

    metric: str
    values: Float64[np.ndarray, " m"]
    predictions: Int64[np.ndarray, " m"] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """The mean over the pictures that are scored, in 0..1."""
        return float(np.nanmean(self.values))


def labels_of(part: Features) -> Int64[Tensor, " n"]:
    """The labels of a split; `evaluate` refuses unlabelled ones before any protocol runs."""
    assert part.labels is not None
    return part.labels


def classified(
    metric: str,
    predicted: Int64[np.ndarray, " m"],
    test: Features,
    settings: dict[str, Any],
    notes: tuple[str, ...] = (),
) -> Outcome:
    """Right or wrong for every test picture."""
    right = (predicted == labels_of(test).numpy()).astype(np.float64)
    return Outcome(metric, right, predicted.astype(np.int64), settings, notes)
