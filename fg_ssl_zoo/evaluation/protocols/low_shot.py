"""Few labels: logistic regression on 1, 2, 5 and 10 images per class, mean of several draws."""

from dataclasses import dataclass

import numpy as np
import torch

from fg_ssl_zoo.config import Count
from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task, labels_of
from fg_ssl_zoo.evaluation.protocols.linear import logistic_regression
from fg_ssl_zoo.metrics import LOW_SHOT_1, LOW_SHOT_5, LOW_SHOT_10, Metric
from fg_ssl_zoo.progress import shown


@dataclass(frozen=True)
class LowShot:
    """Options of the protocol.

    Attributes:
        shots: Numbers of labelled training images per class; a number that no class reaches is left
            out.
        draws: Number of independent random selections of these images, the same for all models; the
            score is their mean.
    """

    shots: tuple[Count, ...] = (1, 2, 5, 10)
    draws: Count = 5


STANDARD = LowShot()


def low_shot(task: Task, options: LowShot = STANDARD) -> list[Outcome]:
    """`low_shot_1_top1`, ...: share of the draws in which a test image is classified correctly.

    Draw i uses the same training images for every model. A class with fewer images gives all it
    has; if no class has that many images, the metric is left out.
    """
    labels, test_labels = labels_of(task.train), labels_of(task.test).numpy()
    largest = int(labels.bincount().max())
    outcomes = []
    for count in (shot for shot in options.shots if shot <= largest):
        right = []
        title = f"{count} labels a class"
        for seed in shown(task.draw_seeds(options.draws), options.draws, title):
            rows = draw_shots(labels.numpy(), count, seed)
            features, few = task.train.features[rows], labels[rows]
            predicted, _ = logistic_regression(features, few, task.test.features)
            right.append(predicted == test_labels)
        settings = {
            "shots": count, "draws": options.draws, "seed": task.seed, "c": 1.0,
            "std_over_draws": float(np.std([r.mean() for r in right])),
        }  # fmt: skip
        values = np.stack(right).astype(np.float64).mean(axis=0)
        outcomes.append(Outcome(f"low_shot_{count}_top1", values, None, settings))
    return outcomes


def draw_shots(labels: np.ndarray, count: int, seed: int) -> torch.Tensor:
    """Sorted rows: `count` of each class, or all it has; a smaller count gives a subset."""
    order = np.random.default_rng([seed, len(labels)]).permutation(len(labels))
    chosen = [order[labels[order] == name][:count] for name in np.unique(labels)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


PROTOCOL = Protocol(
    low_shot,
    metrics=(LOW_SHOT_1, LOW_SHOT_5, LOW_SHOT_10, Metric("low_shot_{}_top1", "{} labels")),
    summary="logistic regression on N labelled images per class; mean of 5 random selections, "
    "the same for all models",
    options=LowShot,
    default=True,
)
