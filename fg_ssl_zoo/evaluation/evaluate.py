"""How good are these backbones on this data? One call for several models and protocols.

    evaluation = evaluate(["runs/x", "resnet50.a1_in1k"], data, protocols=["knn", "linear"])
    print(markdown(as_plain(evaluation)))                           # evaluation/table.py

The network that each model was before training is a row of its own.
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


@dataclass(frozen=True)
class Row:
    """One backbone.

    Attributes:
        name: For the table: the words without their path.
        words: As the user wrote them.
        backbone: Its identity, width and start weights.
        outcomes: Metric -> outcome.
        intervals: Metric -> 95 % bootstrap interval over the test pictures.
        start: Name of the row of the network that it was before training, where there is one.
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
        data: Name, counts of the pictures that were used, names of those that cannot be read,
            fingerprints of the splits, and the floors (chance, majority).
        rows: In the order asked for, behind each the network that it was before training.
        labels: (m,) of the test pictures; `None` where no protocol needs them and there are none.
        p_values: Metric -> {(name, name): p of equal means on the same pictures}.
        settings: What held for all rows, versions, commit and hardware included.
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
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """Score every model with every protocol on the same pictures.

    Args:
        models: Words for `open_backbone`; `#3` at their end scores the mean over feature map 3
            (stage of a CNN, block of a ViT) instead of the pooled features.
        data: Where the labelled pictures are.
        accelerator: Device, precision and processes.
        protocols: Keys of `PROTOCOLS`.
        options: Options of a protocol: `{"finetune": Finetune(epochs=20)}`.
        image_size: Side of the input in pixels; each model's own when not given.
        crop_pct: Of the centre crop; that of the data, or each model's own, when not given.
        with_untrained: Add the network that each model was before training as a row: for a run
            and an export the start of that run, to the bit; else random weights.
        seed: Of all draws, and of random weights where no recipe tells another.
        cache: Folder of feature files.
        unfinished: Folder of scores; those of an earlier try that was stopped are not made again.
        say: Called with a line before each piece of work.

    Raises:
        ValueError: An unknown model or protocol, options of one that is not run, pictures without
            the labels, keypoints or part masks that are asked for, test classes that training
            lacks, more than one picture in a hundred that cannot be read, features that are not
            finite; the message says what would be right.
    """
    chosen, began_at = known_protocols(protocols), commit()
    options = options or {}
    for name in options:
        if name not in chosen:
            raise ValueError(
                f"options are given for {name}, which is not among the protocols {chosen}; add it"
            )
    train, test = scored_splits(data, chosen, seed)
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
        say(f"{name}: features of {len(train) + len(test)} pictures, {backbone.image_size} px")
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
            "interval": {"level": 0.95, "draws": statistics.DRAWS, "over": "test pictures"},
            "test": {"kind": "sign flips of paired differences", "draws": statistics.DRAWS},
            "precision": accelerator.mixed_precision,
            "processes": accelerator.num_processes,
            "hardware": describe_hardware(),
            "versions": versions(),
            "commit": began_at,
        },
    )


def labelled_splits(data: Data, seed: int = 0) -> tuple[Images, Images]:
    """Training and test pictures that protocols can score.

    Raises:
        ValueError: No labels, no test pictures, or test classes that training lacks.
    """
    train, test = load_splits(data, seed)
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


def scored_splits(data: Data, protocols: Sequence[str], seed: int = 0) -> tuple[Images, Images]:
    """Training and test pictures for these protocols, some of which need no class labels.

    Raises:
        ValueError: As `labelled_splits`; or no test pictures.
    """
    if any(PROTOCOLS[name].needs_labels for name in protocols):
        return labelled_splits(data, seed)
    found = all_splits(data, seed=seed)
    if found["train"].labels is not None:
        return labelled_splits(data, seed)
    if "test" not in found:
        raise ValueError(f"{found['train'].name} has no test images; put some into test/")
    return found["train"], found["test"]


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
    """Features of both splits, computed or read; arguments as for `evaluate`.

    Raises:
        TooManyCorruptImages: Not one picture of a split can be read.
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
    """Outcomes of one backbone by metric, and why others are missing."""
    outcomes, lacking, name = {}, {}, candidate.name
    for protocol in chosen:
        given = [options[protocol]] if protocol in options else []
        key = {"model": candidate.identity, "protocol": protocol, "options": given}
        all_found = kept.read(key)
        say(f"{name}: {protocol}{'' if all_found is None else ', as finished before'}")
        try:
            if all_found is None:
                all_found = PROTOCOLS[protocol].run(task, *given)
                kept.write(key, all_found)
        except TrainingStopped as error:  # a diverged fine-tuning costs its cell, not the table
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
    """The data as they were used; a picture that cannot be read is in no count."""
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
