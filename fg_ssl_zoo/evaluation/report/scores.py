"""The numbers of all models, as cells of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fg_ssl_zoo.evaluation.evaluate import Evaluation
from fg_ssl_zoo.evaluation.table import ALPHA, Results, as_plain, best, metrics_of, p_value

TITLES = {
    "linear_top1": ("Linear probe", "top-1"),
    "knn_top1": ("kNN", "top-1, k = 20"),
    "knn_200_top1": ("kNN", "top-1, k = 200"),
    "low_shot_1_top1": ("1 label", "per class"),
    "low_shot_2_top1": ("2 labels", "per class"),
    "low_shot_5_top1": ("5 labels", "per class"),
    "low_shot_10_top1": ("10 labels", "per class"),
    "retrieval_rank1": ("Retrieval", "rank-1"),
    "retrieval_rank5": ("Retrieval", "rank-5"),
    "retrieval_map": ("Retrieval", "mAP"),
}
"""Metric -> column title in two lines, in the order of the columns; others stand as they are."""


@dataclass(frozen=True)
class Cell:
    """One number.

    Attributes:
        value: In 0..1; `None` where this model has none.
        half: Half the 95 % interval.
        mark: `best`, `equal` (it does not differ from the best), or empty.
    """

    value: float | None
    half: float = 0.0
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Titles, and for each model its name, its input size in pixels and a cell for each title."""

    titles: list[tuple[str, str]]
    rows: list[tuple[str, int, list[Cell]]]


def results_table(evaluation: Evaluation) -> Table:
    """All models and metrics."""
    results = as_plain(evaluation)
    found = metrics_of(results)
    metrics = [metric for metric in TITLES if metric in found]
    metrics += [metric for metric in found if metric not in TITLES]
    return Table(
        [TITLES.get(metric, (metric, "")) for metric in metrics],
        [
            (row["name"], row["image_size"], [_cell(results, row, metric) for metric in metrics])
            for row in results["rows"]
        ],
    )


def _cell(results: Results, row: Mapping[str, Any], metric: str) -> Cell:
    if metric not in row["scores"]:
        return Cell(None)
    score = row["scores"][metric]
    first = best(results, metric)
    mark = "best"
    if row["name"] != first:
        mark = "equal" if p_value(results, metric, row["name"], first) >= ALPHA else ""
    return Cell(score["value"], (score["high"] - score["low"]) / 2, mark)
