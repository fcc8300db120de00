"""Weighted k-nearest-neighbour classification on frozen features.

Protocol: Wu et al., 2018 (arXiv 1805.01978), section 3.4, as in DINO's evaluation: cosine
similarity; every neighbour votes with weight exp(similarity / temperature).
"""

from fg_ssl_zoo.evaluation.protocol import (
    Outcome,
    Protocol,
    Task,
    classified,
    labels_of,
)
from fg_ssl_zoo.metrics import KNN, Metric
from fg_ssl_zoo.ops.neighbours import knn_predict

SETTINGS = {KNN.name: (20, 0.07), "knn_200_top1": (200, 0.1)}
"""Metric -> k and temperature, as in DINO and as in LCR (arXiv 2303.01669)."""


def knn(task: Task) -> list[Outcome]:
    """`knn_top1`, and `knn_200_top1` if there are at least 200 training images."""
    train, labels = task.train.features, labels_of(task.train)
    outcomes = []
    for metric, (k, temperature) in SETTINGS.items():
        if metric != KNN.name and k > len(train):
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
        notes = (f"k is {len(train)}: there are no more images",) if k > len(train) else ()
        outcomes.append(classified(metric, predicted, task.test, settings, notes))
    return outcomes


PROTOCOL = Protocol(
    knn,
    metrics=(KNN, Metric("knn_200_top1", "kNN top-1", detail="k = 200")),
    summary="kNN with cosine similarity, votes weighted by exp(similarity / T): k = 20, T = "
    "0.07 (as DINO) and k = 200, T = 0.1 (as LCR)",
    default=True,
)
