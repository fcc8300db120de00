"""The stages of a run, from where it was stopped: one backbone walks through all of them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Recipe, Stage
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import open_trackers
from fg_ssl_zoo.engine.loop import Record
from fg_ssl_zoo.hub.pretraining import saved_state
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.methods import complete_options, create_method
from fg_ssl_zoo.pretrain.inherit import inherit, inherit_saved
from fg_ssl_zoo.pretrain.rounds import run_round, steps_before
from fg_ssl_zoo.pretrain.run import Run


def run_stages(run: Run, backbone: Backbone) -> tuple[Method, Record]:
    """Train all rounds that are not done: the last method, and what the run has been through."""
    found = checkpoint.positions(run.folder.checkpoints)
    newest = max(found, default=Position())
    state = checkpoint.load(found[newest]) if found else None
    if state:
        run.say(f"resume    {found[newest]}")
    done = steps_before(run, newest) + newest.step
    trackers = open_trackers(run.accelerator, run.folder, run.recipe.trackers, done)
    record = Record(**state["record"]) if state else Record()
    method: Method | None = None
    for number, stage in enumerate(run.recipe.stages):
        for round_number in range(stage.rounds):
            if (number, round_number) < (newest.stage, newest.round):
                continue
            if round_number == 0 or method is None:
                first = number == 0 and stage.inherit
                saved = saved_state(run.recipe.init) if first else None
                method = _stage_method(stage, backbone, run.train, method, saved)
            at = newest if state else Position(number, round_number)
            run_round(run, method, stage, at, state, record)
            state = None
    for tracker in trackers:
        tracker.finish()
    assert method is not None
    return method, record


def check_methods(recipe: Recipe, backbone: Backbone, train: Images) -> None:
    """Build every stage's method and views once, so that nothing wrong is found after training.

    Args:
        recipe: Resolved.
        backbone: Is copied for each stage; the random numbers that follow are as before.
        train: Pictures to learn from.

    Raises:
        ValueError: A stage that cannot be built, or cannot inherit what it names.
    """
    before: Method | None = None
    with torch.random.fork_rng(devices=[]):
        for number, stage in enumerate(recipe.stages):
            saved = saved_state(recipe.init) if number == 0 and stage.inherit else None
            try:
                before = _stage_method(stage, copy.deepcopy(backbone), train, before, saved)
                before.views(recipe.data.image_size)
            except ValueError as error:
                if str(error).startswith(("stages[", "data.", "init:")):  # names its key
                    raise
                raise ValueError(f"stages[{number}]: {error}") from error
            except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError,
                    RuntimeError) as error:  # fmt: skip
                line = next(iter(str(error).splitlines()), "no reason given")
                raise ValueError(
                    f"stages[{number}]: {stage.method} cannot be built with these options "
                    f"({type(error).__name__}: {line})"
                ) from error


def _stage_method(
    stage: Stage,
    backbone: Backbone,
    train: Images,
    before: Method | None,
    saved: Mapping[str, Tensor] | None,
) -> Method:
    """The method of a stage around the walking backbone, with what it inherits.

    Of the stage before; the first stage inherits from the training of the start weights.
    """
    backbone.requires_grad_(True)
    options = complete_options(stage.method, stage.options, train)
    method = create_method(stage.method, backbone, **options)
    if saved is None:
        inherit(method, stage.inherit, before)
    else:
        inherit_saved(method, stage.inherit, saved)
    return method
