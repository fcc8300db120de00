"""The content of the report, and the report.

    write_report(models, data, accelerator) -> HTML

The table and the curves show all models; everything else shows the first one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from markupsafe import Markup

from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.engine.provenance import commit, versions
from fg_ssl_zoo.evaluation.evaluate import Evaluation, evaluate
from fg_ssl_zoo.evaluation.protocols import metric
from fg_ssl_zoo.evaluation.report import bokeh_figures, curves
from fg_ssl_zoo.evaluation.report.inspected_model import (
    InspectedModel,
    labelled_model,
    unlabelled_model,
)
from fg_ssl_zoo.evaluation.report.scores import results_table
from fg_ssl_zoo.evaluation.report.sections import (
    class_bars,
    confusions,
    looks,
    neighbourhoods,
)
from fg_ssl_zoo.evaluation.report.templates import rendered
from fg_ssl_zoo.evaluation.report.tsne import plane
from fg_ssl_zoo.evaluation.table import as_plain, unreadable_lines
from fg_ssl_zoo.features.extract import evenly
from fg_ssl_zoo.ops.spectrum import rankme

MAP_PICTURES, MAP_SIZE = 3000, 56
"""Largest number of images on the map, and the side of their thumbnails in pixels."""


def write_report(
    models: Sequence[str],
    data: Data,
    accelerator: Accelerator,
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
    seed: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """The page as one HTML text; arguments and errors as for `evaluate`.

    Without labels, the page has the map, the neighbours and the attribution maps, but no scores.
    """
    train, test = load_splits(data, seed)
    crop_pct = data.crop_pct if crop_pct is None else crop_pct
    how: dict[str, Any] = {"image_size": image_size, "crop_pct": crop_pct}
    how |= {"seed": seed, "cache": cache}
    if train.labels is None or test is None:
        others = f" of {models[0]}" if len(models) > 1 else ""
        say(f"{train.name} has no labelled test images: only map and neighbours{others}")
        inspected = unlabelled_model(models[0], train, accelerator, **how)
        evaluation = None
    else:
        evaluation = evaluate(models, data, accelerator, splits=(train, test), say=say, **how)
        inspected = labelled_model(models[0], evaluation, train, test, accelerator, cache=cache)
    content = page_content(models, inspected, evaluation, train.name, say)
    return rendered("page.html.jinja", content)


def page_content(
    models: Sequence[str],
    inspected: InspectedModel,
    evaluation: Evaluation | None,
    data_name: str,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The values that the template reads.

    Args:
        models: The texts that the user wrote, from which folders of runs are found.
        inspected: The first model.
        evaluation: Scores of all models; `None` without labels.
        data_name: Name of the data set.
        say: Called with a line before each piece of work.
    """
    plots: dict[str, Any] = {}
    content: dict[str, Any] = {
        "title": inspected.name,
        "data_name": data_name,
        "num_models": len(models),
        "num_seen": len(inspected.seen.features),
        "classes": inspected.classes,
        "table": None,
        "pairs": [],
        "bars": [],
    }
    colours = {} if evaluation is None else curves.colours_of(evaluation)
    if evaluation is not None:
        labels, predicted = inspected.labels, inspected.linear
        assert labels is not None
        assert predicted is not None
        say(f"{inspected.name}: the most confused classes")
        lines = curves.label_curves(evaluation)
        plots["labels"] = bokeh_figures.label_figure(lines, evaluation.data["chance"])
        content |= {
            "table": results_table(evaluation),
            "label_lines": lines,
            "pairs": confusions(inspected, labels, predicted),
            "bars": class_bars(inspected, labels, predicted),
        }
    runs = _runs(models, inspected, evaluation, colours)
    content["curves"] = _training(runs, colours, plots)
    content["below"] = curves.below_starts(runs)
    say(f"{inspected.name}: map of {min(len(inspected.seen.features), MAP_PICTURES)} images")
    content["num_mapped"] = _map(inspected, plots)
    say(f"{inspected.name}: neighbours and attribution maps")
    content["neighbourhoods"] = neighbourhoods(inspected)
    content["looks"], content["looks_note"] = looks(inspected)
    content["glance"] = _glance(inspected, evaluation)
    content["made"] = _made(inspected, evaluation)
    script, places = bokeh_figures.embed(plots)
    content["script"] = Markup(script)
    content["plots"] = {name: Markup(place) for name, place in places.items()}
    content["bokeh"] = Markup(bokeh_figures.scripts())
    return content


# --------------------------------------------------------------------------- pieces


def _runs(
    models: Sequence[str],
    inspected: InspectedModel,
    evaluation: Evaluation | None,
    colours: dict[str, tuple[str, bool]],
) -> dict[str, Path]:
    """Row names and folders of the runs among the models."""
    if evaluation is None:
        names = {models[0]: inspected.name}
    else:
        names = {
            row.words: row.name for row in reversed(evaluation.rows) if not colours[row.name][1]
        }
    return {
        names[words]: folder
        for words in models
        if words in names and (folder := curves.run_folder(words)) is not None
    }


def _training(
    runs: dict[str, Path], colours: dict[str, tuple[str, bool]], plots: dict[str, Any]
) -> list[dict[str, Any]]:
    """A figure for each logged value of the runs."""
    found = []
    for key, lines in curves.training_curves(runs, colours).items():
        title, meaning = curves.LOGGED[key]
        plots[key] = bokeh_figures.training_figure(lines, percent=key == "eval/knn_top1")
        last = lines[0].y[-1]
        found.append(
            {
                "key": key,
                "title": title,
                "meaning": meaning,
                "lines": lines,
                "last": f"{100 * last:.1f} %" if key == "eval/knn_top1" else f"{last:.3g}",
            }
        )
    return found


def _map(inspected: InspectedModel, plots: dict[str, Any]) -> int:
    """Add the map to `plots`; returns the number of images on it."""
    rows = evenly(len(inspected.seen.features), MAP_PICTURES)
    plots["map"] = bokeh_figures.map_figure(
        plane(inspected.seen.features[rows], inspected.seed),
        [inspected.uri(row, MAP_SIZE) for row in rows],
        [inspected.file(row) for row in rows],
        classes=inspected.classes,
        labels=None if inspected.labels is None else inspected.labels[rows],
        predicted=None if inspected.linear is None else inspected.linear[rows],
    )
    return len(rows)


def _glance(inspected: InspectedModel, evaluation: Evaluation | None) -> dict[str, Any]:
    """The figures at the top of the page."""
    if evaluation is None:
        sample = inspected.seen.features[evenly(len(inspected.seen.features), 2048)]
        rank, most = rankme(sample), min(sample.shape)
        return {"rank": f"{rank:.0f}", "most": most, "numbers": []}
    first = evaluation.rows[0]
    start = next((row for row in evaluation.rows if row.name == first.start), None)
    records = [metric(name) for name in first.outcomes]
    numbers = [
        {
            "title": record.title,
            "meaning": record.meaning,
            "value": first.outcomes[record.name].value,
            "start": None if start is None else start.outcomes[record.name].value,
            "before": "untrained" if start and start.backbone["init"] == "scratch" else "start",
        }
        for record in records
        if record.meaning
    ]
    return {"numbers": numbers, "chance": evaluation.data["chance"]}


def _made(inspected: InspectedModel, evaluation: Evaluation | None) -> dict[str, Any]:
    """How the page was made, for its footer."""
    about_model = identity(inspected.backbone, getattr(inspected.read, "number", None))
    init = inspected.backbone.init  # without paths of this machine
    view = inspected.seen_pictures.view
    made = {
        "architecture": inspected.backbone.name,
        "options": ", ".join(f"{k} {v}" for k, v in about_model["options"].items()),
        "weights": Path(init).name if Path(init).exists() else init,
        "fingerprint of the weights": about_model["weights"],
        "feature map": about_model["layer"],
        "input": f"{view.size} px, {view.crop_mode} crop {view.crop_pct:g}, {view.interpolation}",
        "features": inspected.backbone.num_features,
        "seed": inspected.seed,
    }
    if evaluation is not None:
        about = evaluation.data
        made |= {
            "training images": f"{about['num_train']} ({about['train_fingerprint']})",
            "test images": f"{about['num_scored']} ({about['test_fingerprint']})",
            "classes": about["num_classes"],
            "unreadable": "; ".join(unreadable_lines(as_plain(evaluation))),
            "notes": "; ".join(
                f"{row.name}, {metric}: {note}"
                for row in evaluation.rows
                for metric, outcome in row.outcomes.items()
                for note in outcome.notes
            ),
        }
    made["versions"] = ", ".join(f"{name} {number}" for name, number in versions().items())
    made["commit"] = commit()
    return {name: value for name, value in made.items() if value not in (None, "")}
