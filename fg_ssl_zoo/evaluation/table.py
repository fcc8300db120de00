"""An evaluation for eyes and for programs: terminal, markdown, JSON, CSV."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

from fg_ssl_zoo.evaluation.evaluate import Evaluation, Row
from fg_ssl_zoo.evaluation.statistics import macro_f1, per_class_mean

ALPHA = 0.05
"""A difference counts when its paired p-value is below this."""

LEGEND = (
    "± is half the 95 % bootstrap interval over the test pictures; * marks the best model of a "
    "metric and = what does not differ from it (paired test, p >= 0.05)."
)


def markdown(evaluation: Evaluation) -> str:
    """A row for each model, then the legend, the floors of the data and the notes."""
    return "\n".join([*_table(_cells(evaluation)), "", *_below(evaluation)])


def terminal(evaluation: Evaluation) -> str:
    """The same in aligned columns, a line for each metric: there are more of them than models."""
    columns = list(zip(*_cells(evaluation), strict=True))
    widths = [max(len(cell) for cell in column) for column in zip(*columns, strict=True)]
    lines = [
        "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
        for cells in columns
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *_below(evaluation)])


def _cells(evaluation: Evaluation) -> list[list[str]]:
    """Rows of text, the titles first."""
    metrics = evaluation.metrics
    rows = [
        [
            row.name,
            str(row.backbone["image_size"]),
            *(_cell(evaluation, row, metric) for metric in metrics),
        ]
        for row in evaluation.rows
    ]
    return [["model", "px", *metrics], *rows]


def _table(rows: list[list[str]]) -> list[str]:
    rule = "|---" + "|---:" * (len(rows[0]) - 1) + "|"
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return [lines[0], rule, *lines[1:]]


def _below(evaluation: Evaluation) -> list[str]:
    about = evaluation.data
    floors = (
        f"{about['name']}: {about['num_train']} training and {about['num_scored']} test pictures, "
        f"{about['num_classes']} classes; chance {about['chance']:.1%}, the most frequent class "
        f"{about['majority']:.1%}."
    )
    notes = [
        f"{row.name}, {metric}: {note}."
        for row in evaluation.rows
        for metric, outcome in row.outcomes.items()
        for note in outcome.notes
    ]
    return [floors, LEGEND, *notes]


def as_csv(evaluation: Evaluation) -> str:
    """One line for each model and metric."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(next(_scores(evaluation), {})), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_scores(evaluation))
    return out.getvalue()


def as_json(evaluation: Evaluation) -> str:
    """Everything but the values of single pictures; the results file."""
    return json.dumps(as_plain(evaluation), indent=2) + "\n"


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """The content of the results file."""
    scores = list(_scores(evaluation))
    return {
        "data": evaluation.data,
        "rows": [
            {
                "name": row.name,
                "words": row.words,
                **row.backbone,
                "scores": {
                    score["metric"]: {
                        **{k: v for k, v in score.items() if k not in ("data", "model", "metric")},
                        "settings": row.outcomes[score["metric"]].settings,
                        "notes": list(row.outcomes[score["metric"]].notes),
                    }
                    for score in scores
                    if score["model"] == row.name
                },
            }
            for row in evaluation.rows
        ],
        "p_values": {
            metric: [{"a": a, "b": b, "p": p} for (a, b), p in found.items()]
            for metric, found in evaluation.p_values.items()
        },
        **evaluation.settings,
    }


def best(evaluation: Evaluation, metric: str) -> Row:
    """The row with the highest value."""
    rows = [row for row in evaluation.rows if metric in row.outcomes]
    return max(rows, key=lambda row: row.outcomes[metric].value)


def p_value(evaluation: Evaluation, metric: str, a: str, b: str) -> float:
    """Of equal means of two rows, in either order."""
    found = evaluation.p_values.get(metric, {})
    return found[a, b] if (a, b) in found else found[b, a]


def _cell(evaluation: Evaluation, row: Row, metric: str) -> str:
    if metric not in row.outcomes:
        return "-"
    low, high = row.intervals[metric]
    first = best(evaluation, metric)
    mark = ""
    if row is first:
        mark = " *"
    elif p_value(evaluation, metric, row.name, first.name) >= ALPHA:
        mark = " ="
    return f"{row.outcomes[metric].value:.1%} ± {50 * (high - low):.1f}{mark}"


def _scores(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    for row in evaluation.rows:
        for metric, found in row.outcomes.items():
            low, high = row.intervals[metric]
            predicted = found.predictions
            yield {
                "data": evaluation.data["name"],
                "model": row.name,
                "metric": metric,
                "value": found.value,
                "low": low,
                "high": high,
                "mean_per_class": per_class_mean(found.values, evaluation.labels),
                "macro_f1": None if predicted is None else macro_f1(predicted, evaluation.labels),
            }
