"""One round of a stage: compute notes on the images, then train on images and notes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fg_ssl_zoo.config import Recipe, Stage
from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.device_views import defer
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.order import order_of
from fg_ssl_zoo.data.tensor_cache import write_tensors
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.loop import Fit, fit, total_steps
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.features.extract import evenly
from fg_ssl_zoo.layers.anchor import Anchor
from fg_ssl_zoo.method import FindsParts, Method
from fg_ssl_zoo.pretrain.measuring import RunMeasuring
from fg_ssl_zoo.pretrain.run import Run
from fg_ssl_zoo.pretrain.start_weights import RESTORE, read_kept

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
    measuring = RunMeasuring(
        every=recipe.monitor.every,
        early=recipe.monitor.early if recipe.init != "scratch" and first else 0,
        run=run,
        method=method,
        record=record,
    )
    job = Fit(
        train=stage.train,
        dataset=dataset,
        accelerator=run.accelerator,
        folder=run.folder,
        start=start,
        state=state,
        measuring=measuring,
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
