"""Weighted k-nearest-neighbour classification on frozen features.

Protocol: Wu et al., 2018 (arXiv 1805.01978), section 3.4, as in DINO's evaluation: cosine
similarity, every neighbour votes with exp(similarity / temperature).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fg_ssl_zoo.evaluation.task import Outcome, Task, classified, labels_of

SETTINGS = {"knn_top1": (20, 0.07), "knn_200_top1": (200, 0.1)}
"""Metric -> k and temperature: DINO's, and LCR's (arXiv 2303.01669)."""


def knn(task: Task) -> list[Outcome]:
    """`knn_top1` and `knn_200_top1`; the second needs 200 training pictures."""
    train, labels = task.train.features, labels_of(task.train)
    outcomes = []
    for metric, (k, temperature) in SETTINGS.items():
        if metric != "knn_top1" and k > len(train):
            continue
        predicted = knn_predict(
            train,
            labels,
            task.test.features,
            num_classes=len(task.classes),
            k=k,
            temperature=temperature,
        ).numpy()
        settings = {"k": k, "temperature": temperature, "similarity": "cosine"}
        notes = (f"k is {len(train)}: there are no more pictures",) if k > len(train) else ()
        outcomes.append(classified(metric, predicted, task.test, settings, notes))
    return outcomes


def knn_predict(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> Int64[Tensor, " m"]:
    """Class of each test row; `k` is lowered to n on smaller sets.

    Args:
        train: Features that vote; any length, they are normalised here.
        labels: Their classes.
        test: Features to classify.
        num_classes: Classes there are.
        k: Neighbours.
        temperature: Of the weights.
        chunk: Test rows at a time.
    """
    bank = F.normalize(train, dim=-1)
    predictions = []
    for rows in F.normalize(test, dim=-1).split(chunk):
        similarity, neighbours = (rows @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(rows), num_classes, dtype=similarity.dtype, device=rows.device)
        votes.scatter_add_(
            1, labels[neighbours], ((similarity - similarity[:, :1]) / temperature).exp()
        )
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_top1(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_labels: Int64[Tensor, " m"],
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Share of the test rows whose class the neighbours name, in 0..1."""
    num_classes = int(torch.maximum(labels.max(), test_labels.max())) + 1
    predicted = knn_predict(
        train, labels, test, num_classes=num_classes, k=k, temperature=temperature
    )
    return float((predicted == test_labels).double().mean())
