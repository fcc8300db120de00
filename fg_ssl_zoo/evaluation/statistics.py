"""How sure a number is, and whether one model is better than another on the same pictures.

scipy and scikit-learn are imported where they are used: a training run needs neither, and they take
as long to import as torch.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64, Int64, Num
from torch import Tensor

DRAWS = 2000
"""Resamples of a bootstrap interval and sign flips of a paired test."""

CHUNK = 100


def bootstrap_interval(
    values: Float64[np.ndarray, " m"], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over test pictures drawn with replacement.

    Args:
        values: For each picture; NaN where it is not scored.
        level: Share of the resampled means inside.
        seed: Of the draws.
    """
    from scipy.stats import bootstrap

    scored = values[~np.isnan(values)]
    if len(scored) == 1:  # nothing to draw from
        return float(scored[0]), float(scored[0])
    interval = bootstrap(
        (scored,), np.mean,
        n_resamples=DRAWS, batch=CHUNK, confidence_level=level, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def paired_p(a: Float64[np.ndarray, " m"], b: Float64[np.ndarray, " m"], *, seed: int = 0) -> float:
    """Two-sided p-value of equal means on the same pictures, by flipping signs of differences.

    1 / (draws + 1) is the smallest value there is.
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
    """What each picture contributes to a number that is no mean over pictures.

    For a number T of the counts of a whole set, x = sum_i x_i, as an IoU, the values are

        v_i = T(x) + n grad T(x) . (x_i - x / n)

    Their mean is T(x), and the spread of their mean over resampled pictures is, to first order,
    that of T: so intervals and paired tests need no other machinery. A single value may leave 0..1.
    This is the infinitesimal jackknife (Jaeckel, 1972; Efron, 1982, chapter 6).

    Args:
        statistic: Summed counts (*k) in float64 -> () number.
        counts: For each picture.
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
    """Mean over the classes of their means: rare classes count as much as frequent ones."""
    scored = ~np.isnan(values)
    return float(
        np.mean([values[scored & (labels == c)].mean() for c in np.unique(labels[scored])])
    )


def macro_f1(predicted: Int64[np.ndarray, " m"], labels: Int64[np.ndarray, " m"]) -> float:
    """Mean F1 over the classes that occur in the test split."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro"))


def majority_rate(labels: Int64[np.ndarray, " m"]) -> float:
    """Accuracy of always naming the most frequent test class: the floor of unbalanced sets."""
    return float(np.bincount(labels).max() / len(labels))
