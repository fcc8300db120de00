"""Confused class pairs, and the accuracy of each class."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True)
class Pair:
    """Two classes that are confused with each other.

    Attributes:
        first, second: Class numbers; the first is misclassified at least as often as the second.
        first_as_second: Rows of the first class that are predicted as the second.
        second_as_first: Rows of the second class that are predicted as the first.
        num_pictures: Number of images of both classes together.
    """

    first: int
    second: int
    first_as_second: list[int]
    second_as_first: list[int]
    num_pictures: int

    @property
    def num_confused(self) -> int:
        """Number of images of either class that are predicted as the other."""
        return len(self.first_as_second) + len(self.second_as_first)


def confused_pairs(
    labels: Int64[np.ndarray, " m"], predicted: Int64[np.ndarray, " m"], most: int = 6
) -> list[Pair]:
    """The pairs with the most confused images; of equal pairs, the larger share comes first.

    Args:
        labels: True class of each image.
        predicted: Predicted class of each image.
        most: Largest number of pairs.
    """
    wrong = np.flatnonzero(labels != predicted)
    sizes = np.bincount(labels, minlength=int(max(labels.max(), predicted.max())) + 1)
    found: dict[tuple[int, int], list[int]] = {}
    for row in wrong.tolist():
        low, high = sorted((int(labels[row]), int(predicted[row])))
        found.setdefault((low, high), []).append(row)
    pairs = [_pair(rows, labels, a, b, int(sizes[a] + sizes[b])) for (a, b), rows in found.items()]
    pairs.sort(key=lambda pair: (-pair.num_confused, pair.num_pictures, pair.first, pair.second))
    return pairs[:most]


def _pair(rows: list[int], labels: np.ndarray, a: int, b: int, num_pictures: int) -> Pair:
    of_a = [row for row in rows if labels[row] == a]
    of_b = [row for row in rows if labels[row] == b]
    if len(of_b) > len(of_a):
        return Pair(b, a, of_b, of_a, num_pictures)
    return Pair(a, b, of_a, of_b, num_pictures)


@dataclass(frozen=True)
class ClassScore:
    """Number of correctly classified images of a class."""

    number: int
    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """Accuracy in 0..1."""
        return self.right / self.total


def class_scores(
    labels: Int64[np.ndarray, " m"], predicted: Int64[np.ndarray, " m"]
) -> list[ClassScore]:
    """All classes that occur, the best first."""
    scores = [
        ClassScore(
            int(number),
            int((predicted[labels == number] == number).sum()),
            int((labels == number).sum()),
        )
        for number in np.unique(labels)
    ]
    return sorted(scores, key=lambda score: (-score.accuracy, score.number))
