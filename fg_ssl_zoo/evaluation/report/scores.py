"""The scores of all models as cells of a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fg_ssl_zoo.evaluation.evaluate import Evaluation
from fg_ssl_zoo.evaluation.protocols import metric
from fg_ssl_zoo.evaluation.table import Results, as_plain, legend, mark, metrics_of, sizes_line


@dataclass(frozen=True)
class Cell:
    """One score.

    Attributes:
        value: Score in 0..1; `None` if this model has none.
        half: Half of the 95 % interval.
        mark: `best`, `equal` (no significant difference from the best), or empty.
    """

    value: float | None
    half: float = 0.0
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """All scores.

    Attributes:
        titles: Titles of the metrics, each with a second line of text.
        rows: For each model its name, its input size in pixels and one cell per title.
        legend: What the signs of the cells mean.
        sizes: Note if the input sizes differ; otherwise empty.
    """

    titles: list[tuple[str, str]]
    rows: list[tuple[str, int, list[Cell]]]
    legend: str = ""
    sizes: str = ""


def results_table(evaluation: Evaluation) -> Table:
    """The table of all models and metrics."""
    results = as_plain(evaluation)
    metrics = metrics_of(results)
    records = [metric(name) for name in metrics]
    return Table(
        [(record.title, record.detail) for record in records],
        [
            (row["name"], row["image_size"], [_cell(results, row, name) for name in metrics])
            for row in results["rows"]
        ],
        legend(results),
        sizes_line(results),
    )


def _cell(results: Results, row: Mapping[str, Any], name: str) -> Cell:
    if name not in row["scores"]:
        return Cell(None)
    score = row["scores"][name]
    half = (score["high"] - score["low"]) / 2
    return Cell(score["value"], half, mark(results, row, name))
