"""Tables of a results file for terminal, markdown and CSV, made from the file's content alone.

results = as_plain(evaluation)        # what results.json holds
print(markdown(results))
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from fg_ssl_zoo.evaluation.evaluate import Evaluation
from fg_ssl_zoo.evaluation.protocols import metric as record_of
from fg_ssl_zoo.evaluation.statistics import macro_f1, per_class_mean
from fg_ssl_zoo.ops.tables import columns, markdown_table

ALPHA = 0.05
"""A difference is significant if its paired p-value is below this."""

Results = Mapping[str, Any]
"""The content of a results file."""


def as_plain(evaluation: Evaluation) -> dict[str, Any]:
    """The content of the results file: everything except the values of single images."""
    return {
        "data": evaluation.data,
        "rows": [
            {
                "name": row.name,
                "words": row.words,
                **row.backbone,
                "start": row.start,
                "scores": {
                    metric: {
                        "value": found.value,
                        "low": row.intervals[metric][0],
                        "high": row.intervals[metric][1],
                        "mean_per_class": None
                        if evaluation.labels is None
                        else per_class_mean(found.values, evaluation.labels),
                        "macro_f1": None
                        if found.predictions is None or evaluation.labels is None
                        else macro_f1(found.predictions, evaluation.labels),
                        "settings": found.settings,
                        "notes": list(found.notes),
                    }
                    for metric, found in row.outcomes.items()
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


def markdown(results: Results, metrics: Sequence[str] | None = None) -> str:
    """A row for each model, then a line about the data, the legend and the notes.

    Args:
        results: Content of a results file.
        metrics: Columns; all when not given.
    """
    titles, *rows = cells(results, metrics)
    return "\n".join([markdown_table(titles, rows), "", *_below(results)])


def terminal(results: Results) -> str:
    """The same table in aligned columns, with one line per metric and one column per model."""
    metrics_by_model = list(zip(*cells(results), strict=True))
    head, *rest = columns(metrics_by_model, numbers=True)
    return "\n".join([head, "-" * len(head), *rest, "", *_below(results)])


def as_csv(results: Results) -> str:
    """One line for each model and metric."""
    out = io.StringIO()
    numbers = ["value", "low", "high", "mean_per_class", "macro_f1"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["data", "model", "metric", *numbers])
    for row, metric, score in _scores(results):
        names = [results["data"]["name"], row["name"], metric]
        writer.writerow([*names, *(score[number] for number in numbers)])
    return out.getvalue()


def metrics_of(results: Results) -> list[str]:
    """All metrics of the rows, in the order of the protocols."""
    return list(dict.fromkeys(metric for _, metric, _ in _scores(results)))


def cells(results: Results, metrics: Sequence[str] | None = None) -> list[list[str]]:
    """Rows of text, starting with the titles."""
    metrics = metrics or metrics_of(results)
    rows = [
        [row["name"], str(row["image_size"]), *(_cell(results, row, metric) for metric in metrics)]
        for row in results["rows"]
    ]
    return [["model", "px", *metrics], *rows]


def best(results: Results, metric: str) -> str:
    """Name of the row with the best value."""
    rows = [row for row in results["rows"] if metric in row["scores"]]
    choose = max if record_of(metric).higher_is_better else min
    return choose(rows, key=lambda row: row["scores"][metric]["value"])["name"]


def p_value(results: Results, metric: str, a: str, b: str) -> float:
    """p-value of equal means of two rows, in either order."""
    (found,) = [
        pair["p"] for pair in results["p_values"][metric] if {pair["a"], pair["b"]} == {a, b}
    ]
    return found


def mark(results: Results, row: Mapping[str, Any], metric: str) -> Literal["best", "equal", ""]:
    """How a row stands among the rows that have this metric; a row alone has no mark."""
    if sum(metric in other["scores"] for other in results["rows"]) == 1:
        return ""
    first = best(results, metric)
    if row["name"] == first:
        return "best"
    return "equal" if p_value(results, metric, row["name"], first) >= ALPHA else ""


def _cell(results: Results, row: Mapping[str, Any], metric: str) -> str:
    if metric not in row["scores"]:
        return "-"
    score = row["scores"][metric]
    sign = {"best": " *", "equal": " =", "": ""}[mark(results, row, metric)]
    value, half = score["value"], 50 * (score["high"] - score["low"])
    return f"{record_of(metric).format.format(value)} ± {half:.1f}{sign}"


def _scores(results: Results) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    for row in results["rows"]:
        for metric, score in row["scores"].items():
            yield row, metric, score


def floors(results: Results) -> str:
    """A line about the data and the accuracy of guessing."""
    about = results["data"]
    if about["chance"] is None:
        return (
            f"{about['name']}: {about['num_train']} training and {about['num_scored']} test "
            "images without classes."
        )
    return (
        f"{about['name']}: {about['num_train']} training and {about['num_scored']} test images, "
        f"{about['num_classes']} classes; chance {about['chance']:.1%}, the most frequent class "
        f"{about['majority']:.1%}."
    )


def _below(results: Results) -> list[str]:
    notes = [
        f"{row['name']}, {metric}: {note}."
        for row, metric, score in _scores(results)
        for note in score["notes"]
    ]
    notes += [
        f"{metric}: no image is scored ({why})."
        for metric, why in results.get("unscored", {}).items()
    ]
    sizes = [line for line in [sizes_line(results)] if line]
    return [floors(results), legend(results), *sizes, *unreadable_lines(results), *notes]


def legend(results: Results) -> str:
    """What the signs of the table mean; a row alone has no marks."""
    intervals = "± is half the 95 % bootstrap interval over the test images"
    if len(results["rows"]) == 1:
        return f"{intervals}."
    return (
        f"{intervals}; * marks the best model of a metric and = what does not differ from it "
        f"(paired test, p >= {ALPHA})."
    )


def sizes_line(results: Results) -> str:
    """A note if models read images of different sizes; otherwise empty."""
    sizes = sorted({row["image_size"] for row in results["rows"]})
    if len(sizes) < 2:
        return ""
    return (
        f"Each model reads images at its own size ({', '.join(map(str, sizes))} px), and more "
        "pixels help any of them: --image-size N compares all at one size."
    )


def unreadable_lines(results: Results) -> list[str]:
    """One line per split that names its unreadable images, which are not counted."""
    return [
        f"{len(lines)} {split} images cannot be read and are left out: {'; '.join(lines[:5])}"
        + ("; ..." if len(lines) > 5 else "")
        for split, lines in results["data"].get("unreadable", {}).items()
        if lines
    ]
