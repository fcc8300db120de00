"""Score several backbones with several protocols on one data set.

    evaluation = evaluate(["runs/x", "resnet50.a1_in1k"], data, protocols=["knn", "linear"])
    print(markdown(as_plain(evaluation)))                           # evaluation/table.py

The table also has a row for each network as it was before training.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import all_splits, fingerprint, load_splits
from fg_ssl_zoo.data.loader import resolve_num_workers
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine.loop import TrainingStopped
from fg_ssl_zoo.engine.provenance import commit, describe_hardware, versions
from fg_ssl_zoo.evaluation import statistics
from fg_ssl_zoo.evaluation.candidates import Candidate, candidates
from fg_ssl_zoo.evaluation.kept import Kept
from fg_ssl_zoo.evaluation.protocol import Outcome, Task, labels_of
from fg_ssl_zoo.evaluation.protocols import DEFAULT, PROTOCOLS, known_protocols
from fg_ssl_zoo.features.cache import features_of
from fg_ssl_zoo.features.extract import few_unreadable, ready, unreadable
from fg_ssl_zoo.ops.distributed import world_size

Splits = tuple[Images, Images | None]
"""Training and test images, as `load_splits` returns them."""


@dataclass(frozen=True)
class Row:
    """The scores of one backbone.

    Attributes:
        name: Short name in the table, without a path.
        words: The text that the user wrote.
        backbone: Its identity, width and start weights.
        outcomes: Metric -> outcome.
        intervals: Metric -> 95 % bootstrap interval over the test images.
        start: Name of the row of the same network before training, if there is one.
    """

    name: str
    words: str
    backbone: dict[str, Any]
    outcomes: dict[str, Outcome]
    intervals: dict[str, tuple[float, float]]
    start: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Several backbones on one data set.

    Attributes:
        data: Name, numbers of images used, names of unreadable images, fingerprints of the splits,
            and the scores of guessing (chance, majority).
        rows: In the order of the models; each is followed by its network before training.
        labels: (m,) class numbers of the test images; `None` if they have none.
        p_values: Metric -> {(name, name): p-value of equal means on the same images}.
        settings: Settings of all rows, including versions, commit and hardware.
    """

    data: dict[str, Any]
    rows: list[Row]
    labels: np.ndarray | None
    p_values: dict[str, dict[tuple[str, str], float]]
    settings: dict[str, Any] = field(default_factory=dict)


def evaluate(
    models: Sequence[str],
    data: Data,
    accelerator: Accelerator,
    *,
    protocols: Iterable[str] = DEFAULT,
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    with_untrained: bool = True,
    seed: int = 0,
    cache: Path | None = None,
    unfinished: Path | None = None,
    splits: Splits | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score every model with every protocol on the same images.

    Args:
        models: Texts for `open_backbone`. With `#3` at the end, the mean over feature map 3
            (stage of a CNN, block of a ViT) is scored instead of the pooled features.
        data: The labelled images.
        accelerator: Device, precision and processes.
        protocols: Keys of `PROTOCOLS`.
        options: Options of a protocol: `{"finetune": Finetune(epochs=20)}`.
        image_size: Side of the input in pixels; each model's own when not given.
        crop_pct: Share of the image that the centre crop keeps. When not given: that of `data`,
            otherwise each model's own.
        with_untrained: Add a row for each network before training: for a run and an export the
            start weights of that run, equal to the bit; otherwise random weights.
        seed: Seed of every random draw, and of random weights without a recipe.
        cache: Folder of feature files.
        unfinished: Folder of the scores that a stopped call has completed; they are not computed
            again.
        splits: The images of `data`, if `load_splits` has already read them.
        say: Called with a line before each piece of work.

    Raises:
        ValueError: An unknown model or protocol; options of a protocol that is not computed; images
            without the labels, keypoints or part masks that a protocol needs; test classes without
            training images; more than 1 % unreadable images; features that are not finite. The
            message says what would be right.
    """
    chosen, began_at = known_protocols(protocols), commit()
    options = options or {}
    for name in options:
        if name not in chosen:
            raise ValueError(
                f"options are given for {name}, which is not among the protocols {chosen}; add it"
            )
    train, test = scored_splits(data, chosen, seed, splits)
    crop_pct = data.crop_pct if crop_pct is None else crop_pct
    for name in chosen:
        PROTOCOLS[name].check(train, test)
    rows: list[Row] = []
    labels: np.ndarray | None = None
    task: Task | None = None
    unscored: dict[str, str] = {}
    entered = candidates(models, image_size, with_untrained=with_untrained, seed=seed)
    for candidate in entered:
        behind = [name for name in chosen if PROTOCOLS[name].reads == "network"]
        if candidate.layer is not None and behind:
            raise ValueError(
                f"{candidate.name}: a single feature map is not enough for {', '.join(behind)}"
            )
    about = {
        "data": [fingerprint(images) for images in (train, test)],
        "crop_pct": crop_pct,
        "seed": seed,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "hardware": describe_hardware(),
        "versions": versions(),
        "commit": began_at,
    }
    kept = Kept(unfinished, about, accelerator)
    for candidate in entered:
        name, backbone, layer = candidate.name, candidate.backbone, candidate.layer
        say(f"{name}: features of {len(train) + len(test)} images, {backbone.image_size} px")
        task = make_task(
            backbone, train, test, accelerator,
            crop_pct=crop_pct, layer=layer, seed=seed, cache=cache,
        )  # fmt: skip
        for images, found in ((train, task.train), (test, task.test)):
            few_unreadable(images, found)
        labels = None if task.test.labels is None else labels_of(task.test).numpy()
        outcomes, lacking = _scored(candidate, task, chosen, options, say, kept)
        unscored |= lacking
        rows.append(_row(candidate, outcomes, crop_pct, seed))
    if task is None:
        raise ValueError("no model is given; name at least one")
    return Evaluation(
        data=_about(task, labels),
        rows=rows,
        labels=labels,
        p_values=_p_values(rows, seed),
        settings={
            "protocols": chosen,
            "unscored": unscored,
            "crop_pct": crop_pct,
            "image_size": image_size,
            "seed": seed,
            "interval": {"level": 0.95, "draws": statistics.DRAWS, "over": "test images"},
            "test": {"kind": "sign flips of paired differences", "draws": statistics.DRAWS},
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "hardware": describe_hardware(),
            "versions": versions(),
            "commit": began_at,
        },
    )


def labelled_splits(
    data: Data, seed: int = 0, splits: Splits | None = None
) -> tuple[Images, Images]:
    """Training and test images that protocols can score; `splits` as for `evaluate`.

    Raises:
        ValueError: No labels, no test images, or test classes without training images.
    """
    train, test = splits or load_splits(data, seed)
    if train.labels is None:
        raise ValueError(
            f"{train.name} has no labels; put each class into a folder of its own. Without labels, "
            "`fgssl embed` and `fgssl report` work"
        )
    if test is None or test.labels is None:
        raise ValueError(
            f"{train.name} has no labelled test images: two or more in each class folder are split "
            "unless data.test_split=none; or put some into test/CLASS/"
        )
    lacking = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if lacking:
        names = ", ".join(test.classes[label] for label in lacking[:5])
        raise ValueError(f"{len(lacking)} test classes have no training images: {names}")
    return train, test


def scored_splits(
    data: Data, protocols: Sequence[str], seed: int = 0, splits: Splits | None = None
) -> tuple[Images, Images]:
    """Training and test images for these protocols, some of which need no class labels.

    Raises:
        ValueError: As for `labelled_splits`; or no test images.
    """
    if any(PROTOCOLS[name].needs_labels for name in protocols):
        return labelled_splits(data, seed, splits)
    if splits is None:
        found = all_splits(data, seed=seed)
        splits = found["train"], found.get("test")
    train, test = splits
    if train.labels is not None:
        return labelled_splits(data, seed, splits)
    if test is None:
        raise ValueError(f"{train.name} has no test images; put some into test/")
    return train, test


def make_task(
    backbone: Backbone,
    train: Images,
    test: Images,
    accelerator: Accelerator,
    *,
    crop_pct: float | None = None,
    layer: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> Task:
    """Features of both splits, computed or read from the cache; arguments as for `evaluate`.

    Raises:
        TooManyCorruptImages: No image of a split can be read.
    """
    ready(backbone, accelerator)
    workers = resolve_num_workers("auto", world_size())
    features = [
        features_of(
            backbone, images, accelerator,
            crop_pct=crop_pct, layer=layer, num_workers=workers, cache=cache,
        )
        for images in (train, test)
    ]  # fmt: skip
    return Task(
        train=features[0],
        test=features[1],
        classes=train.classes,
        backbone=backbone,
        train_images=train,
        test_images=test,
        accelerator=accelerator,
        crop_pct=crop_pct,
        num_workers=workers,
        seed=seed,
        unreadable={
            "train": unreadable(train, features[0]),
            "test": unreadable(test, features[1]),
        },
    )


def _scored(
    candidate: Candidate,
    task: Task,
    chosen: Sequence[str],
    options: Mapping[str, Any],
    say: Callable[[str], None],
    kept: Kept,
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Metric -> outcome for one backbone, and the reason for each missing score."""
    outcomes, lacking, name = {}, {}, candidate.name
    for protocol in chosen:
        given = [options[protocol]] if protocol in options else []
        key = {"model": candidate.identity, "protocol": protocol, "options": given}
        all_found = kept.read(key)
        say(f"{name}: {protocol}{'' if all_found is None else ', already computed'}")
        try:
            if all_found is None:
                all_found = PROTOCOLS[protocol].run(task, *given)
                kept.write(key, all_found)
        except TrainingStopped as error:  # a diverged fine-tuning leaves one cell empty
            say(f"{name}: {protocol} is left out: {error}")
            lacking[f"{name}, {protocol}"] = str(error)
            continue
        for found in all_found:
            if np.isnan(found.values).all():
                lacking[found.metric] = "; ".join(found.notes)
            else:
                outcomes[found.metric] = found
    return outcomes, lacking


def _row(
    candidate: Candidate, outcomes: dict[str, Outcome], crop_pct: float | None, seed: int
) -> Row:
    backbone = candidate.backbone
    model = {key: value for key, value in candidate.identity.items() if key != "layer"}
    about = {
        **model,
        "feature_map": candidate.identity["layer"],
        "init": backbone.init,
        "crop_pct": crop_pct or backbone.crop_pct,
        "num_features": backbone.num_features,
    }
    intervals = {
        metric: statistics.bootstrap_interval(found.values, seed=seed)
        for metric, found in outcomes.items()
    }
    return Row(candidate.name, candidate.words, about, outcomes, intervals, candidate.start)


def _p_values(rows: list[Row], seed: int) -> dict[str, dict[tuple[str, str], float]]:
    found: dict[str, dict[tuple[str, str], float]] = {}
    for a, b in combinations(rows, 2):
        for metric in a.outcomes.keys() & b.outcomes.keys():
            p = statistics.paired_p(a.outcomes[metric].values, b.outcomes[metric].values, seed=seed)
            found.setdefault(metric, {})[a.name, b.name] = p
    return found


def _about(task: Task, labels: np.ndarray | None) -> dict[str, Any]:
    """Name, counts and fingerprints of the data; unreadable images are not counted."""
    train, test = task.train_images, task.test_images
    return {
        "name": train.name,
        "num_train": len(task.train.indices),
        "num_test": len(task.test.indices),
        "num_scored": len(task.test.indices),
        "unreadable": dict(task.unreadable),
        "num_classes": len(train.classes),
        "chance": None if labels is None else 1 / len(train.classes),
        "majority": None if labels is None else statistics.majority_rate(labels),
        "train_fingerprint": fingerprint(train),
        "test_fingerprint": fingerprint(test),
    }
