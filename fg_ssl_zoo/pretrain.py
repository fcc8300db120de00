"""Recipe -> trained and exported Backbone: stages, and rounds inside a stage.

accelerate launch train.py [RECIPE] [key.path=value ...]
python -m fg_ssl_zoo.pretrain [RECIPE] [key.path=value ...]
"""

import argparse
import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone, create_backbone
from fg_ssl_zoo.config import (
    DEFAULT_RECIPE,
    Recipe,
    Stage,
    as_dict,
    nearest,
    recipe_of,
    to_yaml,
)
from fg_ssl_zoo.data.catalog import CATALOG
from fg_ssl_zoo.data.datasets import fingerprint, load_splits
from fg_ssl_zoo.data.loader import Order, ViewDataset, resolve_num_workers
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import checkpoint, hardware
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.log import open_trackers
from fg_ssl_zoo.engine.loop import Fit, Interrupted, Record, TrainingStopped, fit, total_steps
from fg_ssl_zoo.engine.optim import describe_lr
from fg_ssl_zoo.engine.provenance import commit, describe_hardware, versions
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.monitor import Collapsed, OnlineMonitor
from fg_ssl_zoo.evaluation.part_discovery import knows_parts, part_agreement
from fg_ssl_zoo.hub.card import results_table
from fg_ssl_zoo.hub.export import export, usage_lines
from fg_ssl_zoo.hub.pretraining import Pretraining, saved_state
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.methods import (
    all_options,
    check_options,
    check_queue,
    complete_options,
    create_method,
    method_class,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What all stages share.

    Attributes:
        recipe: Resolved.
        folder: Where everything of the run lies.
        accelerator: Devices, precision and processes.
        train, test: Pictures to learn from, and labelled ones to score or `None`.
        switches: Resolved hardware switches.
        monitor: Measurements while training.
        commit: Of the code when the run was started, not when it ended.
    """

    recipe: Recipe
    folder: RunFolder
    accelerator: Accelerator
    train: Images
    test: Images | None
    switches: hardware.Switches
    monitor: OnlineMonitor
    commit: str | None

    @property
    def processes(self) -> str:
        """How many train."""
        count = self.accelerator.num_processes
        return "1 process" if count == 1 else f"{count} processes"

    def say(self, text: str) -> None:
        """A line of the main process on standard output."""
        if self.accelerator.is_main_process:
            print(text, flush=True)  # noqa: T201


def pretrain(recipe: Recipe) -> Backbone:
    """Train every stage of a recipe, or go on where it was stopped, and export the backbone.

    Returns:
        The trained backbone, in evaluation mode.

    Raises:
        ValueError: Something in the recipe does not fit; nothing was trained or deleted.
        TrainingStopped, Collapsed: The run goes nowhere.
        Interrupted: A signal came; the checkpoint is written.
    """
    for number, stage in enumerate(recipe.stages):
        where, at_once = (
            f"stages[{number}].options",
            stage.train.batch_size // stage.train.accumulate,
        )
        options = check_options(stage.method, stage.options, where=where)
        check_queue(stage.method, options, at_once, where=where)
    set_seed(recipe.seed)
    switches, backbone = _prepare_backbone(recipe)
    train, test = load_splits(recipe.data, seed=recipe.seed)
    for number, stage in enumerate(recipe.stages):
        complete_options(stage.method, stage.options, train, where=f"stages[{number}].options")
        Order(len(train), stage.train.batch_size, recipe.seed)  # refuses a batch that is too large
    run = _open_run(recipe, switches, train, test)
    method, record = _run_stages(run, backbone)
    backbone.eval().to(memory_format=torch.contiguous_format)  # as whoever loads the export has it
    _finish(run, backbone, record, _pretraining(run, method))
    for name, companion in method.companions().items():
        _finish_companion(run, name, companion, record)
    run.accelerator.end_training()
    return backbone


def _prepare_backbone(recipe: Recipe) -> tuple[hardware.Switches, Backbone]:
    """The start weights, built after the switches that concern the whole process."""
    with torch.device("meta"):
        shape = create_backbone(
            recipe.backbone, image_size=recipe.data.image_size, **recipe.backbone_options
        )
    switches = hardware.choose(recipe.speed, convolutional=hardware.is_convolutional(shape.model))
    hardware.switch_on(switches)
    torch.manual_seed(recipe.seed)
    image_size = recipe.data.image_size
    return switches, create_backbone(
        recipe.backbone, init=recipe.init, image_size=image_size, **recipe.backbone_options
    )


def _open_run(
    recipe: Recipe, switches: hardware.Switches, train: Images, test: Images | None
) -> Run:
    accelerator = hardware.create_accelerator(switches)
    folder = RunFolder(recipe.folder)
    if accelerator.is_main_process:
        folder.claim(recipe)
    accelerator.wait_for_everyone()
    workers = resolve_num_workers(recipe.data.num_workers, accelerator.num_processes)
    monitor = OnlineMonitor(train, test, recipe.monitor, recipe.data.crop_pct, workers)
    run = Run(recipe, folder, accelerator, train, test, switches, monitor, commit())
    run.say(_headline(run))
    return run


def _headline(run: Run) -> str:
    labelled = "unlabelled" if run.test is None else f"{len(run.test)} test images"
    lines = [
        to_yaml(run.recipe).rstrip(),
        f"run       {run.folder.path}",
        f"data      {run.train.name}: {len(run.train)} training images, {labelled}",
        f"hardware  {run.switches}; {run.processes}",
    ]
    stages = enumerate(run.recipe.stages)
    lines += [f"lr        stages[{number}]: {describe_lr(stage.train)}" for number, stage in stages]
    return "\n".join(lines)


# --------------------------------------------------------------------------- stages and rounds


def _run_stages(run: Run, backbone: Backbone) -> tuple[Method, Record]:
    """Train all rounds that are not done: the last method, and what the run has been through."""
    found = checkpoint.positions(run.folder.checkpoints)
    newest = max(found, default=Position())
    state = checkpoint.load(found[newest]) if found else None
    if state:
        run.say(f"resume    {found[newest]}")
    done = _steps_before(run, newest) + newest.step
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
            _one_round(run, method, stage, at, state, record)
            state = None
    for tracker in trackers:
        tracker.finish()
    assert method is not None
    return method, record


def _stage_method(
    stage: Stage,
    backbone: Backbone,
    train: Images,
    before: Method | None,
    saved: Mapping[str, Tensor] | None = None,
) -> Method:
    """The method of a stage around the walking backbone, with what it inherits.

    Of the stage before; the first stage inherits from the training of the start weights.
    """
    backbone.requires_grad_(True)
    options = complete_options(stage.method, stage.options, train)
    method = create_method(stage.method, backbone, **options)
    if saved is not None:
        _inherit_saved(method, stage.inherit, saved)
        return method
    for name in stage.inherit:
        source, target = getattr(before, name, None), getattr(method, name, None)
        if before is not None and not (
            isinstance(source, nn.Module) and isinstance(target, nn.Module)
        ):
            owners = [n for n, _ in method.named_children()]
            raise ValueError(f"inherit: both stages need a module '{name}'{nearest(name, owners)}")
        if isinstance(source, nn.Module) and isinstance(target, nn.Module):
            target.load_state_dict(source.state_dict())
    return method


def _inherit_saved(method: Method, names: Sequence[str], saved: Mapping[str, Tensor]) -> None:
    """Give parts of a method the state that an earlier training saved; `all` is all of it.

    Raises:
        ValueError: A part that one of them lacks, or of another shape.
    """
    own = {k: v for k, v in method.state_dict().items() if not k.startswith("backbone.")}
    for name in names:
        there, here = (
            {k: v for k, v in state.items() if f"{k}.".startswith(f"{name}.") or name == "all"}
            for state in ({k: v for k, v in saved.items() if not k.startswith("backbone.")}, own)
        )
        if not here or here.keys() != there.keys():
            known = {key.partition(".")[0] for key in saved.keys() & own.keys()}
            raise ValueError(
                f"stages[0].inherit: '{name}' is not the same part in both trainings"
                f"{nearest(name, sorted(known))}"
            )
        if odd := [key for key in here if here[key].shape != there[key].shape]:
            raise ValueError(
                f"stages[0].inherit: {odd[0]} is {tuple(there[odd[0]].shape)} in init and "
                f"{tuple(here[odd[0]].shape)} with these options"
            )
        method.load_state_dict(there, strict=False)


def _one_round(
    run: Run,
    method: Method,
    stage: Stage,
    start: Position,
    state: dict[str, Any] | None,
    record: Record,
) -> None:
    """Annotate, then train from `start` to the end of the round."""
    recipe = run.recipe
    method.to(run.accelerator.device)
    notes = _notes(run, method, start)
    dataset = ViewDataset(
        run.train, method.views(recipe.data.image_size), _round_seed(recipe, start), notes
    )
    job = Fit(
        train=stage.train,
        dataset=dataset,
        accelerator=run.accelerator,
        folder=run.folder,
        start=start,
        state=state,
        measure=lambda: {
            **run.monitor(method.backbone, run.accelerator),
            **run.monitor.own_accuracy(method, run.accelerator),
        },
        measure_every=recipe.monitor.every,
        measure_ends=lambda: _part_scores(run, method),
        num_workers=recipe.data.num_workers,
        first_step=_steps_before(run, start),
        channels_last=run.switches.channels_last,
        record=record,
        title=_title(recipe, start),
    )
    fit(method, job)
    run.accelerator.free_memory()


def _round_seed(recipe: Recipe, at: Position) -> int:
    """Another order and other views in every round."""
    return recipe.seed + 1000 * at.stage + 100_000 * at.round


def _title(recipe: Recipe, at: Position) -> str:
    stage = recipe.stages[at.stage]
    several = len(recipe.stages) > 1 or stage.rounds > 1
    return f"{stage.method} {at.stage}.{at.round}" if several else stage.method


def _notes(run: Run, method: Method, at: Position) -> dict[str, Tensor]:
    """The method's notes of this round, from the file of a run that goes on or taken now.

    Raises:
        ValueError: The run goes on in the midst of a round whose notes are gone.
    """
    from safetensors.torch import load_file, save_file

    path = run.folder.path / "notes" / f"stage{at.stage}_round{at.round}.safetensors"
    if at.step and path.is_file():
        return load_file(path)
    notes = method.annotate(run.train, run.accelerator)
    if notes and at.step:
        raise ValueError(
            f"{path} is gone, and what the weights of then would note cannot be had any more; "
            "put it back, or begin again with overwrite=true"
        )
    if notes and run.accelerator.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(notes, path)
    return notes


def _part_scores(run: Run, method: Method) -> dict[str, float]:
    """How well the parts that the method finds in the training pictures are those that are known.

    The next round finds the same ones, and reads them from the cache.
    """
    maps = method.parts(run.train, run.accelerator) if knows_parts(run.train) else None
    if maps is None:
        return {}
    try:
        return part_agreement(maps, run.train)
    except ValueError as error:  # training does not need these masks
        _log.warning("part scores are left out: %s", error)
        return {}


def _steps_before(run: Run, at: Position) -> int:
    """Optimizer steps of the rounds before a position."""
    before = 0
    for number, stage in enumerate(run.recipe.stages[: at.stage + 1]):
        order = Order(len(run.train), stage.train.batch_size, run.recipe.seed)
        rounds = at.round if number == at.stage else stage.rounds
        before += rounds * total_steps(stage.train, order)
    return before


# --------------------------------------------------------------------------- results


def _pretraining(run: Run, method: Method) -> Pretraining:
    """The last stage's method as whoever goes on with it needs it."""
    stage = run.recipe.stages[-1]
    options = all_options(stage.method, complete_options(stage.method, stage.options, run.train))
    return Pretraining(stage.method, method.options_of_saved(options), method.state_dict())


def _finish(run: Run, backbone: Backbone, record: Record, pretraining: Pretraining) -> None:
    """Write results and the exported folder, print the table and the lines that load it."""
    if run.accelerator.is_main_process:
        results = _results(run, record)
        run.say(f"trained   {record.images_seen} images at {record.images_per_second:.1f} images/s")
        text = json.dumps(results, indent=2) + "\n"
        (run.folder.path / "results.json").write_text(text, encoding="utf-8")
        export(backbone, run.folder.export, run.recipe, results, pretraining)
        run.say("\n" + results_table(results["rows"]))
        run.say(f"\nexported to {run.folder.export}; load it with\n")
        run.say(usage_lines(run.folder.export, run.recipe))
    run.accelerator.wait_for_everyone()


def _finish_companion(run: Run, name: str, companion: Backbone, record: Record) -> None:
    """Score another network of the method, as it is and untrained, and export it.

    A second network of the recipe's kind, such as a teacher, started as the first one did; any
    other is compared with random weights.
    """
    companion.eval().to(memory_format=torch.contiguous_format)
    torch.manual_seed(run.recipe.seed)
    init = run.recipe.init if companion.name == run.recipe.backbone else "scratch"
    size, options = companion.image_size, companion.options
    start = create_backbone(companion.name, init=init, image_size=size, **options)
    start.mean, start.std = companion.mean, companion.std
    rows = [
        {"name": row, "init": network.init, **_plain(run.monitor(network, run.accelerator))}
        for row, network in (
            ("untrained" if init == "scratch" else "start", start),
            ("trained", companion),
        )
    ]
    if run.accelerator.is_main_process:
        recipe = replace(run.recipe, name=f"{run.recipe.name}_{name}")
        folder = run.folder.path / f"export_{name}"
        results = {**_results(run, record), "name": recipe.name, "companion": name, "rows": rows}
        results.pop("curve")
        export(companion, folder, recipe, results)
        run.say(f"\nexported its {name} to {folder}\n\n{results_table(rows)}")
    run.accelerator.wait_for_everyone()


def _results(run: Run, record: Record) -> dict[str, Any]:
    """The record a card is rendered from: rows, protocol, all that could move a number."""
    recipe = run.recipe
    rows = [
        {"name": name, "init": recipe.init, **_plain(measured)}
        for name, measured in (
            ("untrained" if recipe.init == "scratch" else "start", record.measurements[0]),
            ("trained", record.measurements[-1]),
        )
    ]
    entry = CATALOG.get(recipe.data.name)
    papers = [paper for stage in recipe.stages for paper in method_class(stage.method).papers]
    return {
        "name": recipe.name,
        "seed": recipe.seed,
        "commit": run.commit,
        "versions": versions(),
        "hardware": f"{describe_hardware()}; {run.processes}; {run.switches}",
        "data": {
            "name": recipe.data.name,
            "terms": entry.terms if entry else None,
            "num_train": len(run.train),
            "num_test": len(run.test) if run.test is not None else 0,
            "num_classes": len(run.train.classes),
            "image_size": recipe.data.image_size,
            "fingerprint": fingerprint(run.train),
            "test_fingerprint": fingerprint(run.test) if run.test is not None else None,
        },
        "protocol": {
            "knn": {
                "k": recipe.monitor.k,
                "temperature": recipe.monitor.temperature,
                "similarity": "cosine",
                "crop_pct": recipe.data.crop_pct,
                "max_images": recipe.monitor.max_images,
            }
        },
        "rows": rows,
        "curve": record.measurements,
        "train": {
            "steps": int(record.measurements[-1]["step"]),
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
        "with_labels": any(method_class(s.method).needs_labels for s in recipe.stages),
        "recipe": as_dict(recipe),
    }


def _plain(measured: dict[str, float]) -> dict[str, float]:
    return {key.removeprefix("eval/"): value for key, value in measured.items() if key != "step"}


# --------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: a recipe and dotted overrides; a wrong word ends with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Pretrain a backbone without labels and export it.",
        epilog=f"Without a recipe: {DEFAULT_RECIPE}, under 3 minutes on two cores, no download.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE or key.path=value",
        help="a recipe (file or name), and overrides such as stages[0].train.epochs=2",
    )
    words = parser.parse_args(arguments).words
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _quiet_libraries()
    try:
        pretrain(recipe_of(words))
    except Interrupted as stopped:
        print(stopped.message, file=sys.stderr)  # noqa: T201
        raise
    except KeyboardInterrupt:
        print("stopped between checkpoints; run the same command again to go on", file=sys.stderr)  # noqa: T201
        raise SystemExit(128 + signal.SIGINT) from None
    except (ValueError, TrainingStopped, Collapsed, checkpoint.CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def _quiet_libraries() -> None:
    """Messages of libraries that a user can do nothing about."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
