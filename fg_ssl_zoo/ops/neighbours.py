"""The nearest rows by cosine similarity, and the kNN vote."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def nearest(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "n d"],
    count: int,
    own: Int64[Tensor, " q"] | None = None,
) -> tuple[Int64[Tensor, "q k"], Float[Tensor, "q k"]]:
    """Rows of the gallery by falling cosine similarity, and the similarity.

    Args:
        queries: Features of the queries.
        gallery: Features to search.
        count: Number of neighbours; at most the size of the gallery.
        own: Row of each query in the gallery, which is excluded from its neighbours.
    """
    similarity = F.normalize(queries, dim=-1) @ F.normalize(gallery, dim=-1).T
    if own is not None:
        similarity[torch.arange(len(queries)), own] = -torch.inf
    count = min(count, len(gallery) - (own is not None))
    found = similarity.sort(dim=1, descending=True, stable=True)
    return found.indices[:, :count], found.values[:, :count]


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
    """Predicted class of each test row; `k` is at most the number of training rows.

    Args:
        train: Training features; normalised here.
        labels: Class numbers.
        test: Features to classify.
        num_classes: Number of classes.
        k: Number of neighbours.
        temperature: Temperature of the weights.
        chunk: Number of test rows computed at a time.
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
    """Accuracy of the kNN vote in 0..1."""
    num_classes = int(torch.maximum(labels.max(), test_labels.max())) + 1
    predicted = knn_predict(
        train, labels, test, num_classes=num_classes, k=k, temperature=temperature
    )
    return float((predicted == test_labels).double().mean())


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (..., d) scaled to length 1; a row of zeros does not change."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
