"""The results of a run, from which its card is rendered."""

from dataclasses import replace
from typing import Any

from fg_ssl_zoo.config import Recipe, as_dict
from fg_ssl_zoo.data.catalog import CATALOG
from fg_ssl_zoo.data.datasets import fingerprint
from fg_ssl_zoo.engine.provenance import describe_hardware, versions
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.methods import method_class
from fg_ssl_zoo.pretrain.run import Run


def results_of(run: Run, record: Record) -> dict[str, Any]:
    """Content of `results.json`: rows, protocol, and all settings that can change a score."""
    recipe = run.recipe
    first, last = record.measurements[0], record.measurements[-1]
    papers = [paper for stage in recipe.stages for paper in method_class(stage.method).papers]
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "commit": run.commit,
        "commits": record.commits,
        "versions": versions(),
        "hardware": f"{describe_hardware()}; {' then '.join(record.hardware)}",
        "data": _data_of(run, record),
        "protocol": {"knn": _knn_protocol(recipe)},
        "rows": table_rows(start=(recipe.init, first), trained=(recipe.init, last)),
        "curve": record.measurements,
        "train": {
            "steps": int(last["step"]),
            "images_seen": record.images_seen,
            "seconds": round(record.seconds, 1),
            "images_per_second": round(record.images_per_second, 1),
        },
        "papers": list(dict.fromkeys(papers)),
        "reported": [
            line
            for stage in recipe.stages
            for line in method_class(stage.method).reported(stage.options)
        ],
        "teachers": [
            teacher
            for stage in recipe.stages
            for teacher in method_class(stage.method).outside_teachers(stage.options)
        ],
        "with_labels": any(method_class(s.method).needs_labels for s in recipe.stages),
        "recipe": as_dict(replace(recipe, output=None, overwrite=False)),  # of this machine
    }


def table_rows(
    start: tuple[str, dict[str, float]], trained: tuple[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """The two rows of a card's table: a network before and after training.

    Args:
        start: `init` of the network before training, and its measurement; the row is named
            `untrained` if `init` is `scratch`, and `start` otherwise.
        trained: The same of the trained network.
    """
    names = ("untrained" if start[0] == "scratch" else "start", "trained")
    return [
        {"name": name, "init": init, **_plain(measured)}
        for name, (init, measured) in zip(names, (start, trained), strict=True)
    ]


def _data_of(run: Run, record: Record) -> dict[str, Any]:
    """Terms, counts and fingerprints of the images; the count of test images is of scored ones."""
    data = run.recipe.data
    entry = CATALOG.get(data.name)
    num_test = 0 if run.test is None else record.num_scored
    if num_test is None:  # a run of an older version has no such count
        num_test = len(run.test or ())
    return {
        "name": data.name,
        "terms": entry.terms if entry else None,
        "num_train": len(run.train),
        "num_unreadable": len(set(run.folder.corrupt_images())),
        "num_test": num_test,
        "num_classes": len(run.train.classes),
        "image_size": data.image_size,
        "fingerprint": fingerprint(run.train),
        "test_fingerprint": fingerprint(run.test) if run.test is not None else None,
    }


def _knn_protocol(recipe: Recipe) -> dict[str, Any]:
    """The settings of a run's measurements."""
    return {
        "k": recipe.monitor.k,
        "temperature": recipe.monitor.temperature,
        "similarity": "cosine",
        "crop_pct": recipe.data.crop_pct,
        "max_images": recipe.monitor.max_images,
    }


def _plain(measured: dict[str, float]) -> dict[str, float]:
    """Scores on all images under the names of tables, without the step and scores of samples."""
    scores = {key: value for key, value in measured.items() if key.startswith("eval/")}
    return {key.removeprefix("eval/"): value for key, value in scores.items()}
