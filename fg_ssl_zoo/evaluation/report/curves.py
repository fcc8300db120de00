"""Lines of the figures: accuracy over labels, and logged values of runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fg_ssl_zoo.config import home_path
from fg_ssl_zoo.evaluation.candidates import is_before_training
from fg_ssl_zoo.evaluation.evaluate import Evaluation, Row
from fg_ssl_zoo.evaluation.monitor import below_start

PALETTE = ("#3b82c4", "#d9822b", "#3a9a72", "#a06cc8", "#cf5068", "#8c8c2e", "#2fa3a8")
"""Colours that are readable on white and on black, one per model; they repeat after the last."""

LOGGED = {
    "train/loss": ("Loss", "lower is better, but only within one method"),
    "eval/knn_top1": ("kNN accuracy", "how many test images their neighbours name rightly"),
    "eval/rankme": ("RankMe", "how many directions the features use; 1 is a collapse"),
}
"""Key of `metrics.jsonl` -> title of its figure, and its meaning."""


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        name: Name of the model.
        colour: CSS colour.
        x, y: Coordinates of the points.
        low, high: A band around the line; may be empty.
        dashed: Whether it is the network before training.
    """

    name: str
    colour: str
    x: list[float]
    y: list[float]
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    dashed: bool = False


def colours_of(evaluation: Evaluation) -> dict[str, tuple[str, bool]]:
    """Row name -> colour, and whether the row is before training.

    A start has the colour of its model; a start without a trained model has its own colour.
    """
    architectures: dict[str, str] = {}
    found: dict[str, tuple[str, bool]] = {}
    for row in sorted(evaluation.rows, key=_untrained):  # trained models get the first colours
        architecture, fresh = row.backbone["architecture"], PALETTE[len(found) % len(PALETTE)]
        colour = architectures.setdefault(architecture, fresh)
        found[row.name] = (colour if _untrained(row) else fresh, _untrained(row))
    return found


def _untrained(row: Row) -> bool:
    return is_before_training(row.name)


def label_curves(evaluation: Evaluation) -> list[Line]:
    """Accuracy of logistic regression over labels per class; the last point uses all labels."""
    colours = colours_of(evaluation)
    everything = evaluation.data["num_train"] / evaluation.data["num_classes"]
    lines = []
    for row in evaluation.rows:
        points = {
            float(found.settings["shots"]): metric
            for metric, found in row.outcomes.items()
            if metric.startswith("low_shot_")
        }
        if all(shots < everything for shots in points):
            points[everything] = "linear_top1"
        metrics = list(points.values())
        colour, dashed = colours[row.name]
        lines.append(
            Line(
                row.name,
                colour,
                x=list(points),
                y=[row.outcomes[metric].value for metric in metrics],
                low=[row.intervals[metric][0] for metric in metrics],
                high=[row.intervals[metric][1] for metric in metrics],
                dashed=dashed,
            )
        )
    return lines


def run_folder(words: str) -> Path | None:
    """The run folder with `metrics.jsonl` of a model; `None` if it is not a run."""
    place = home_path(words)
    for folder in (place, place.parent) if place.name == "export" else (place,):
        if (folder / "metrics.jsonl").is_file():
            return folder
    return None


def training_curves(
    runs: Mapping[str, Path], colours: Mapping[str, tuple[str, bool]]
) -> dict[str, list[Line]]:
    """Key of `LOGGED` -> one line for each run that logged it.

    Args:
        runs: Name of the model -> folder of its run.
        colours: Result of `colours_of`.
    """
    logs = {name: _logged(folder / "metrics.jsonl") for name, folder in runs.items()}
    lines: dict[str, list[Line]] = {}
    for key in LOGGED:
        for number, (name, log) in enumerate(logs.items()):
            points = sorted(  # the start may be measured after the first steps
                (line["step"], line[key]) for line in log if np.isfinite(line.get(key, np.nan))
            )
            if points:
                colour = colours[name][0] if name in colours else PALETTE[number % len(PALETTE)]
                x, y = zip(*points, strict=True)
                lines.setdefault(key, []).append(Line(name, colour, list(x), list(y)))
    return lines


def below_starts(runs: Mapping[str, Path]) -> list[tuple[str, str]]:
    """Name of each run whose last measurement is below its first, and the message."""
    said = {name: below_start(_logged(folder / "metrics.jsonl")) for name, folder in runs.items()}
    return [(name, line) for name, line in said.items() if line]


def _logged(path: Path) -> Sequence[Mapping[str, float]]:
    """All complete lines; the last line of a run in progress may be incomplete."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found
