"""Confidence intervals of scores, and paired tests of two models on the same images.

scipy and scikit-learn are imported inside the functions, since a training run does not need them
and importing them takes as long as importing torch.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64, Int64, Num
from torch import Tensor

DRAWS = 2000
"""Number of resamples of a bootstrap interval, and of sign flips of a paired test."""

CHUNK = 100


def bootstrap_interval(
    values: Float64[np.ndarray, " m"], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over test images drawn with replacement.

    Args:
        values: One value per image; NaN if it is not scored.
        level: Share of the resampled means inside the interval.
        seed: Seed of the draws.
    """
    from scipy.stats import bootstrap

    scored = values[~np.isnan(values)]
    if len(scored) == 1:  # no image to draw from
        return float(scored[0]), float(scored[0])
    interval = bootstrap(
        (scored,), np.mean,
        n_resamples=DRAWS, batch=CHUNK, confidence_level=level, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def paired_p(a: Float64[np.ndarray, " m"], b: Float64[np.ndarray, " m"], *, seed: int = 0) -> float:
    """Two-sided p-value of equal means on the same images, by flipping signs of differences.

    The smallest possible value is 1 / (draws + 1).
    """
    difference = a - b
    difference = difference[~np.isnan(difference) & (difference != 0)]
    if not len(difference):
        return 1.0
    generator = np.random.default_rng(seed)
    seen = abs(difference.sum()) - 1e-9
    extreme = 0
    for _ in range(DRAWS // CHUNK):
        signs = generator.integers(0, 2, size=(CHUNK, len(difference)), dtype=np.int8) * 2 - 1
        extreme += int((abs(signs @ difference) >= seen).sum())
    return (extreme + 1) / (DRAWS + 1)


def influence_values(
    statistic: Callable[[Tensor], Tensor], counts: Num[Tensor, "n ..."]
) -> Float64[np.ndarray, " n"]:
    """One value per image for a statistic that is not a mean over images.

    For a statistic T of the summed counts x = sum_i x_i, such as an IoU, the values are

        v_i = T(x) + n grad T(x) . (x_i - x / n)

    Their mean is T(x). Over resampled images, the spread of their mean equals that of T to first
    order, so intervals and paired tests work as for means. A single value may be outside of 0..1.
    This is the infinitesimal jackknife (Jaeckel, 1972; Efron, 1982, chapter 6).

    Args:
        statistic: Function of the summed counts (*k) in float64; returns one number.
        counts: Counts of each image.
    """
    rows = counts.double()
    total = rows.sum(dim=0).requires_grad_(True)
    with torch.enable_grad():
        value = statistic(total)
        (slope,) = torch.autograd.grad(value, total)
    mean = total.detach() / len(rows)
    shift = len(rows) * ((rows - mean) * slope).flatten(1).sum(dim=1)
    return (value.detach() + shift).numpy()


def per_class_mean(values: Float64[np.ndarray, " m"], labels: Int64[np.ndarray, " m"]) -> float:
    """Mean over the classes of the class means, so all classes have the same weight."""
    scored = ~np.isnan(values)
    return float(
        np.mean([values[scored & (labels == c)].mean() for c in np.unique(labels[scored])])
    )


def macro_f1(predicted: Int64[np.ndarray, " m"], labels: Int64[np.ndarray, " m"]) -> float:
    """Mean F1 over the classes that occur in the test split."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro"))


def majority_rate(labels: Int64[np.ndarray, " m"]) -> float:
    """Accuracy of always predicting the most frequent test class."""
    return float(np.bincount(labels).max() / len(labels))
