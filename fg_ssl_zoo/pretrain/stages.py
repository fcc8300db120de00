"""The stages of a run, which all train the same backbone; a stopped run is continued."""

import copy
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.build import UNFIT
from fg_ssl_zoo.config import Recipe, Stage
from fg_ssl_zoo.data.device_views import defer
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import open_trackers
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.evaluation.monitor import refuse_collapse
from fg_ssl_zoo.hub.pretraining import saved_state
from fg_ssl_zoo.layers.anchor import Anchor
from fg_ssl_zoo.layers.frozen import norms_with_statistics
from fg_ssl_zoo.method import Method, check_batch, train_mode
from fg_ssl_zoo.methods import complete_options, create_method
from fg_ssl_zoo.pretrain.inherit import inherit, inherit_saved
from fg_ssl_zoo.pretrain.rounds import run_round, steps_before, steps_of
from fg_ssl_zoo.pretrain.run import Run, refuse_differences
from fg_ssl_zoo.pretrain.start_weights import keep_start, start_file, start_weights


def run_stages(run: Run, backbone: Backbone) -> tuple[Method, Record]:
    """Train all rounds that are not complete; returns the last method and the record of the run."""
    with run.accelerator.main_process_first():  # renames checkpoints that cannot be read
        newest, state = checkpoint.newest(run.folder.checkpoints)
    shared = f"{run.folder.checkpoints} on a disk that all machines share"
    refuse_differences(run.accelerator, shared, newest if state else None)
    if state:
        _refuse_foreign(run, newest, state)
        run.say(f"resume    {run.folder.checkpoints / newest.file_name}")
    else:
        run.folder.refuse_lost_checkpoints()
    done = steps_before(run, newest) + newest.step
    record = Record(**state["record"]) if state else Record()
    measured = int(record.measurements[-1]["step"]) if record.measurements else -1
    trackers = open_trackers(
        run.accelerator, run.folder, run.recipe.trackers, done, measured, record.start_left
    )
    _note_where(run, record)
    started = norms_with_statistics(backbone)  # before a checkpoint replaces the start weights
    if run.measures_start_later and (state is None or record.start_left):
        keep_start(run, backbone, 0)
    method, anchor = None, None
    for number, stage in enumerate(run.recipe.stages):
        for round_number in range(stage.rounds):
            if (number, round_number) < (newest.stage, newest.round):
                continue
            if round_number == 0 or method is None:
                first = number == 0 and stage.inherit
                saved = saved_state(run.recipe.init) if first else None
                method = stage_method(stage, backbone, run.train, method, saved)
                at_start = state is None or newest == Position(number)
                anchor = _anchor_of(run, backbone, number, stage, at_start)
            at = newest if state else Position(number, round_number)
            run_round(run, method, stage, at, state, record, started, anchor)
            state = None
        if stage.start_share and method is not None and number >= newest.stage:
            _average_with_start(run, backbone, number, stage.start_share, record)
    for tracker in trackers:
        tracker.finish()
    if run.accelerator.is_main_process and not run.recipe.stages[0].keeps_start:
        start_file(run, 0).unlink(missing_ok=True)
    assert method is not None
    return method, record


def _refuse_foreign(run: Run, at: Position, state: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another run, or of a newer version.

    Raises:
        ValueError: Names what does not fit.
    """
    path = run.folder.checkpoints / at.file_name
    stages = run.recipe.stages
    fits = at.stage < len(stages) and at.round < stages[at.stage].rounds
    if fits:
        fits = at.step <= steps_of(run, stages[at.stage])
    known = {field.name for field in fields(Record)}
    if not fits or not {"method", "optimizer", "record"} <= state.keys():
        why = "the recipe has no such step"
    elif not set(state["record"]) <= known:
        why = f"it holds {', '.join(sorted(set(state['record']) - known))}, of a newer version"
    else:
        return
    raise ValueError(f"{path} is not a checkpoint of this run ({why}); remove it from the folder")


def _note_where(run: Run, record: Record) -> None:
    """Record code and hardware, and print a line if they differ from those of earlier steps."""
    _note(run, "code", record.commits, run.commit)
    _note(run, "hardware", record.hardware, f"{run.processes}; {run.switches}")


def _note(run: Run, what: str, known: list[Any], now: str | None) -> None:
    if known and known[-1] != now:
        run.say(
            f"# other {what} than before: {known[-1]} then, {now} now. Weights may differ "
            "from those of an uninterrupted run in their last digits; results name both"
        )
    if now not in known:
        known.append(now)


def _anchor_of(
    run: Run, backbone: Backbone, number: int, stage: Stage, at_start: bool
) -> Anchor | None:
    """Store the start weights of a stage, if it needs them; returns its anchor, if it has one.

    Args:
        run: The state that all stages share.
        backbone: Backbone with the start weights of the stage, if `at_start`.
        number: Number of the stage.
        stage: Its settings.
        at_start: Whether the stage has not made a step yet.
    """
    if not stage.keeps_start:
        return None
    keep_start(run, backbone, number, at_start)
    if not stage.start_distillation:
        return None
    start = copy.deepcopy(backbone)
    start.model.load_state_dict(start_weights(run, number))
    return Anchor(start, stage.start_distillation)


@torch.no_grad()
def _average_with_start(
    run: Run, backbone: Backbone, number: int, share: float, record: Record
) -> None:
    """Weights <- share * start of the stage + (1 - share) * trained; then measure them."""
    start = start_weights(run, number)
    for key, value in backbone.model.state_dict().items():
        if value.is_floating_point():
            value.lerp_(start[key].to(value.device), share)
    measured = run.monitor(backbone, run.accelerator)
    refuse_collapse(measured, record.measurements)
    record.measurements.append({"step": record.measurements[-1]["step"], **measured})
    values = ", ".join(f"{key} {value:.4g}" for key, value in measured.items())
    run.say(f"stage {number}: averaged with {share:g} of its start, {values}")


def check_methods(
    recipe: Recipe, backbone: Backbone, train: Images, accelerator: Accelerator
) -> None:
    """Build every stage's method and views once, so that errors are found before training.

    Args:
        recipe: The resolved recipe.
        backbone: Copied for each stage; the state of the random number generators is restored.
        train: Training images.
        accelerator: Defines number of processes and device.

    Raises:
        ValueError: A stage cannot be built, cannot inherit a module, or has too few images in a
            forward pass.
    """
    before: Method | None = None
    with torch.random.fork_rng(devices=[]):
        for number, stage in enumerate(recipe.stages):
            saved = saved_state(recipe.init) if number == 0 and stage.inherit else None
            try:
                before = stage_method(stage, copy.deepcopy(backbone), train, before, saved)
                views = before.views(recipe.data.image_size)
                if recipe.speed.device_views is True and defer(views) is None:
                    raise ValueError(
                        f"speed.device_views: the loader makes the views of {stage.method}; "
                        "set it to auto"
                    )
            except ValueError as error:
                if str(error).startswith(("stages[", "data.", "init:")):  # already names its key
                    raise
                raise ValueError(f"stages[{number}]: {error}") from error
            except UNFIT as error:
                line = next(iter(str(error).splitlines()), "no reason given")
                raise ValueError(
                    f"stages[{number}]: {stage.method} cannot be built with these options "
                    f"({type(error).__name__}: {line})"
                ) from error
            train_mode(before, stage.train, norms_with_statistics(backbone))
            where = f"stages[{number}].train"
            check_batch(before, stage.train, accelerator.num_processes, accelerator.device, where)


def stage_method(
    stage: Stage,
    backbone: Backbone,
    train: Images,
    before: Method | None,
    saved: Mapping[str, Tensor] | None,
) -> Method:
    """The method of a stage around the current backbone, with inherited modules.

    They come from the stage before; for the first stage, from the training of the start weights.
    """
    backbone.requires_grad_(True)
    options = options_on(stage, train)
    method = create_method(stage.method, backbone, **options)
    if saved is None:
        inherit(method, stage.inherit, before)
    else:
        inherit_saved(method, stage.inherit, saved)
    return method


def options_on(stage: Stage, train: Images, where: str = "options") -> dict[str, Any]:
    """A stage's options, with those that are set from the images and the batch."""
    at_once = stage.train.batch_size // stage.train.accumulate
    return complete_options(stage.method, stage.options, train, where, batch_size=at_once)
