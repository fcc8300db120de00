"""Clusters: agreement of k-means on frozen features with the classes.

    fgssl eval MODEL --data DATA --protocols clusters --clusters draws=10

k-means with one cluster per class is fitted on the training features, scaled to unit length, and
each test image is assigned to its nearest centre. Labels are read for the scores only:

    clusters_nmi        normalised mutual information of clusters and classes
    clusters_ari        adjusted Rand index
    clusters_accuracy   share of correct test images if each cluster is assigned to one class, by
                        the best assignment (Kuhn, 1955)

This is the protocol of unsupervised classification, as in SCAN (Van Gansbeke et al., 2020, arXiv
2005.12320), with k-means instead of training. Every score is a mean over several clusterings.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from fg_ssl_zoo.config import Count
from fg_ssl_zoo.evaluation.parts.scores import (
    adjusted_rand_index,
    normalized_mutual_information,
)
from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task, labels_of
from fg_ssl_zoo.evaluation.statistics import influence_values
from fg_ssl_zoo.metrics import Metric


@dataclass(frozen=True)
class Clusters:
    """Options of the protocol.

    Attributes:
        draws: Number of clusterings with different seeds; the score is their mean.
        restarts: Number of initialisations within one clustering; k-means keeps the one of lowest
            inertia.
    """

    draws: Count = 3
    restarts: Count = 5


STANDARD = Clusters()


def clusters(task: Task, options: Clusters = STANDARD) -> list[Outcome]:
    """`clusters_nmi`, `clusters_ari`, `clusters_accuracy`."""
    labels = labels_of(task.test).numpy()
    num_classes = len(labels_of(task.train).unique())
    drawn: list[dict[str, np.ndarray]] = []
    for seed in task.draw_seeds(options.draws):
        found = cluster(
            task.train.features, task.test.features, num_classes, options.restarts, seed
        )
        drawn.append(
            {
                "clusters_nmi": agreement(normalized_mutual_information, found, labels),
                "clusters_ari": agreement(adjusted_rand_index, found, labels),
                "clusters_accuracy": (assigned(found, labels) == labels).astype(np.float64),
            }
        )
    outcomes = []
    for metric in drawn[0]:
        values = np.stack([scores[metric] for scores in drawn])
        settings = {
            **asdict(options),
            "num_clusters": num_classes,
            "std_over_draws": float(values.mean(axis=1).std()),
            "seed": task.seed,
        }
        outcomes.append(Outcome(metric, values.mean(axis=0), None, settings))
    return outcomes


def cluster(
    train: Float[Tensor, "n d"], test: Float[Tensor, "m d"], count: int, restarts: int, seed: int
) -> Int64[np.ndarray, " m"]:
    """Cluster of each test row, 0..count-1, by k-means on the training rows.

    Args:
        train: Training features; normalised here.
        test: Test features; normalised here.
        count: Number of clusters.
        restarts: Number of initialisations; the result of lowest inertia is kept.
        seed: Seed of the starts.
    """
    fit = KMeans(count, n_init=restarts, random_state=seed)  # pyright: ignore[reportArgumentType]
    fit.fit(F.normalize(train, dim=-1).numpy())
    return np.asarray(fit.predict(F.normalize(test, dim=-1).numpy()), dtype=np.int64)


def agreement(
    score: Callable[[Tensor], Tensor],
    found: Int64[np.ndarray, " m"],
    labels: Int64[np.ndarray, " m"],
) -> Float64[np.ndarray, " m"]:
    """One value per image, whose mean is a score of the table clusters x classes."""
    pair = torch.zeros(len(found), int(found.max()) + 1, int(labels.max()) + 1)
    pair[torch.arange(len(found)), torch.from_numpy(found), torch.from_numpy(labels)] = 1
    return influence_values(score, pair)


def assigned(
    found: Int64[np.ndarray, " m"], labels: Int64[np.ndarray, " m"]
) -> Int64[np.ndarray, " m"]:
    """The class assigned to each row's cluster; -1 for a cluster without a class."""
    table = np.zeros((found.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(table, (found, labels), 1)
    class_of = np.full(len(table), -1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    class_of[rows] = columns
    return class_of[found]


PROTOCOL = Protocol(
    clusters,
    metrics=(
        Metric("clusters_nmi", "clusters", detail="NMI"),
        Metric("clusters_ari", "clusters", detail="ARI"),
        Metric("clusters_accuracy", "clusters", detail="accuracy"),
    ),
    summary="k-means on the training features without labels, one cluster per class; NMI, ARI "
    "and accuracy of the best assignment on the test images",
    options=Clusters,
)
