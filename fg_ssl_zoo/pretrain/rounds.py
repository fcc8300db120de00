"""One round of a stage: compute notes on the images, then train on images and notes."""

import copy
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Recipe, Stage
from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.device_views import defer
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.order import order_of
from fg_ssl_zoo.data.tensor_cache import write_tensors
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.loop import Fit, fit, total_steps
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.evaluation.monitor import equal_at_start, losing_start, refuse_collapse
from fg_ssl_zoo.evaluation.parts.scores import knows_parts, part_agreement
from fg_ssl_zoo.features.extract import evenly
from fg_ssl_zoo.layers.anchor import Anchor
from fg_ssl_zoo.method import FindsParts, Method
from fg_ssl_zoo.pretrain.run import Run
from fg_ssl_zoo.pretrain.start_weights import RESTORE, read_kept, start_weights

_log = logging.getLogger(__name__)

SHOWN = 48
"""Number of images whose parts are stored for `fgssl parts`."""


def run_round(
    run: Run,
    method: Method,
    stage: Stage,
    start: Position,
    state: dict[str, Any] | None,
    record: Record,
    started_norms: frozenset[str] = frozenset(),
    anchor: Anchor | None = None,
) -> None:
    """Annotate, then train from `start` to the end of the round."""
    recipe = run.recipe
    method.to(run.accelerator.device)
    notes = _notes(run, method, start)
    views = method.views(recipe.data.image_size)
    if run.switches.device_views:
        views = defer(views) or views
    dataset = ViewDataset(run.train, views, _round_seed(recipe, start), notes)
    first = (start.stage, start.round) == (0, 0)
    job = Fit(
        train=stage.train,
        dataset=dataset,
        accelerator=run.accelerator,
        folder=run.folder,
        start=start,
        state=state,
        measure=lambda: _measure(run, method, record),
        measure_start=lambda: _tell_equal(run, _measure_start(run, method, record)),
        complete_start=lambda: _tell_equal(run, complete_start(run, method.backbone)),
        measured_on=run.monitor.read_last,
        measure_every=recipe.monitor.every,
        early=recipe.monitor.early if recipe.init != "scratch" and first else 0,
        judge=losing_start,
        measure_ends=lambda: part_scores(run, method),
        num_workers=recipe.data.num_workers,
        first_step=steps_before(run, start),
        channels_last=run.switches.channels_last,
        compile=run.switches.compile,
        record=record,
        started_norms=started_norms,
        anchor=anchor,
        keep_checkpoints=recipe.keep_checkpoints,
        title=_title(recipe, start),
    )
    fit(method, job)
    if start.round == stage.rounds - 1:
        _keep_shown(run, method, f"stage{start.stage}_end")
    run.accelerator.free_memory()


def _measure(run: Run, method: Method, record: Record) -> dict[str, float]:
    """Measure the backbone and the method; the record stores the number of images."""
    found = run.monitor(method.backbone, run.accelerator)
    refuse_collapse(found, record.measurements)
    record.num_scored = run.monitor.used.get("test")
    return {**found, **run.monitor.own_accuracy(method, run.accelerator)}


def _tell_equal(run: Run, found: dict[str, float]) -> dict[str, float]:
    """Warn of a start with nearly equal features; returns its scores."""
    if (line := equal_at_start(found)) and run.accelerator.is_main_process:
        _log.warning("init: %s", line)
    return found


def _measure_start(run: Run, method: Method, record: Record) -> dict[str, float]:
    """Scores before the first step: on all images if they are few or cached, otherwise on a sample.

    In the second case, `complete_start` measures on all images later.
    """
    if not run.recipe.monitor.at_start:
        record.start_left = True
        return {}
    backbone, accelerator, monitor = method.backbone, run.accelerator, run.monitor
    if not monitor.samples_start:
        found = monitor.start(backbone, accelerator)
        record.num_scored = monitor.used.get("test")
        return {**found, **monitor.own_accuracy(method, accelerator)}
    own = monitor.own_accuracy(method, accelerator, sample=True)
    if (found := monitor.known_start(backbone, accelerator)) is not None:
        return {**found, **own}
    record.start_left = True
    return {**monitor.sample(backbone, accelerator), **own}


def complete_start(run: Run, backbone: Backbone) -> dict[str, float]:
    """Scores of the weights that the run started from, on all images.

    Args:
        run: Its folder contains the start weights (`keep_start`).
        backbone: Defines the architecture; not changed.
    """
    start = copy.deepcopy(backbone)
    start.model.load_state_dict(start_weights(run, 0))
    return run.monitor.start(start, run.accelerator)


def _round_seed(recipe: Recipe, at: Position) -> int:
    """Seed of a round, so that order and views differ between rounds."""
    return recipe.seed + 1000 * at.stage + 100_000 * at.round


def _title(recipe: Recipe, at: Position) -> str:
    stage = recipe.stages[at.stage]
    several = len(recipe.stages) > 1 or stage.rounds > 1
    return f"{stage.method} {at.stage}.{at.round}" if several else stage.method


def _notes(run: Run, method: Method, at: Position) -> dict[str, Tensor]:
    """The method's notes of this round, read from the file of a continued run or computed now.

    Raises:
        ValueError: The run is continued within a round whose notes are missing.
    """
    name = f"stage{at.stage}_round{at.round}"
    path = run.folder.notes / f"{name}.safetensors"
    if at.step and path.is_file():
        return read_kept(path)
    notes = method.annotate(run.train, run.accelerator)
    if notes and at.step:
        raise ValueError(f"{path} is gone; {RESTORE}")
    if notes and run.accelerator.is_main_process:
        write_tensors(path, notes)
    _keep_shown(run, method, name)
    return notes


def part_scores(run: Run, method: Method) -> dict[str, float]:
    """Agreement of the parts discovered in the training images with the annotated parts.

    The next round reads the same parts from the cache.
    """
    if not isinstance(method, FindsParts) or not knows_parts(run.train):
        return {}
    maps = method.parts(run.train, run.accelerator)
    return {} if maps is None else part_agreement(maps, run.train)


def _keep_shown(run: Run, method: Method, name: str) -> None:
    """Store the parts of a few images for `fgssl parts`, of the test split if there is one."""
    if not isinstance(method, FindsParts):
        return
    images, split = (run.train, "train") if run.test is None else (run.test, "test")
    rows = evenly(len(images), SHOWN)
    some = Subset(images, np.array(rows))
    maps = method.parts(some, run.accelerator, learn_from=run.train)
    if maps is not None and run.accelerator.is_main_process:
        path = run.folder.notes / f"shown_{name}.safetensors"
        write_tensors(path, {"parts": maps, "indices": torch.tensor(rows)}, {"split": split})


def steps_before(run: Run, at: Position) -> int:
    """Optimizer steps of the rounds before a position."""
    before = 0
    for number, stage in enumerate(run.recipe.stages[: at.stage + 1]):
        rounds = at.round if number == at.stage else stage.rounds
        before += rounds * steps_of(run, stage)
    return before


def steps_of(run: Run, stage: Stage) -> int:
    """Optimizer steps of one round."""
    order = order_of(run.train, stage.train.batch_size, run.recipe.seed)
    return total_steps(stage.train, order)
