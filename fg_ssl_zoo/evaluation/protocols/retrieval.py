"""Retrieval among the test images, without the query itself: Rank-1, Rank-5 and mAP.

Protocol of LCR (arXiv 2303.01669): cosine similarity, the test split against itself. Average
precision is the mean of the precision at the ranks of all relevant images.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task, labels_of
from fg_ssl_zoo.metrics import MEAN_AVERAGE_PRECISION, RANK_1, Metric

CHUNK = 512
"""Number of queries that are ranked at a time."""


def retrieval(task: Task) -> list[Outcome]:
    """`retrieval_rank1`, `retrieval_rank5`, `retrieval_map`.

    An image that is alone in its class is in the gallery but is not a query.
    """
    labels = labels_of(task.test)
    alone = (labels.bincount()[labels] == 1).numpy()
    rank1, rank5, precision = ranked(task.test.features, labels)
    notes = (f"{alone.sum()} images alone in their class are no queries",) if alone.any() else ()
    settings = {"similarity": "cosine", "gallery": "test without the query", "ties": "by index"}
    return [
        Outcome(metric, np.where(alone, np.nan, values.numpy()), None, settings, notes)
        for metric, values in (
            ("retrieval_rank1", rank1),
            ("retrieval_rank5", rank5),
            ("retrieval_map", precision),
        )
    ]


def ranked(
    features: Float[Tensor, "m d"], labels: Int64[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Per query: a hit at rank 1, within rank 5, and average precision (0 without any relevant)."""
    bank = F.normalize(features, dim=-1)
    found = [relevant_by_rank(bank, labels, rows) for rows in torch.arange(len(bank)).split(CHUNK)]
    hits = [
        torch.stack(
            [hit[:, :1].any(1).double(), hit[:, :5].any(1).double(), average_precision(hit)]
        )
        for hit in found
    ]
    rank1, rank5, precision = torch.cat(hits, dim=1)
    return rank1, rank5, precision


def relevant_by_rank(
    bank: Float[Tensor, "m d"], labels: Int64[Tensor, " m"], rows: Int64[Tensor, " q"]
) -> Bool[Tensor, "q n"]:
    """Whether the image at each rank has the query's class; n = m - 1, since the query is left out.

    A stable sort breaks ties by index.
    """
    similarity = bank[rows] @ bank.T
    similarity[torch.arange(len(rows)), rows] = -torch.inf  # the query comes last
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :-1]
    return labels[order] == labels[rows, None]


def average_precision(hits: Bool[Tensor, "q n"]) -> Float[Tensor, " q"]:
    """Mean precision at the ranks of the hits."""
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    precision = hits.cumsum(dim=1) / ranks
    return (precision * hits).sum(dim=1) / hits.sum(dim=1).clamp(min=1)


PROTOCOL = Protocol(
    retrieval,
    metrics=(RANK_1, Metric("retrieval_rank5", "rank 5"), MEAN_AVERAGE_PRECISION),
    summary="each test image is a query against all other test images, ranked by cosine "
    "similarity, ties by index; images without another of their class are no queries",
    default=True,
)
