"""Write results and exported folders after the last step of a run."""

import json
from dataclasses import replace

import torch

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone, start_of
from fg_ssl_zoo.config import write_whole
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.hub.card import results_table
from fg_ssl_zoo.hub.export import export, usage_lines
from fg_ssl_zoo.hub.pretraining import Pretraining
from fg_ssl_zoo.method import Method, options_of_saved
from fg_ssl_zoo.methods import all_options
from fg_ssl_zoo.pretrain.results import results_of, table_rows
from fg_ssl_zoo.pretrain.run import Run
from fg_ssl_zoo.pretrain.stages import options_on


def export_backbone(
    run: Run, backbone: Backbone, record: Record, pretraining: Pretraining | None
) -> None:
    """Write results and the exported folder, print the table and the lines that load it."""
    if run.accelerator.is_main_process:
        results = results_of(run, record)
        run.say(f"trained   {record.images_seen} images at {record.images_per_second:.1f} images/s")
        write_whole(run.folder.results, json.dumps(results, indent=2) + "\n")
        export(backbone, run.folder.export, run.recipe, results, pretraining)
        run.say("\n" + results_table(results["rows"]))
        run.say(f"\nexported to {run.folder.export}; load it with\n")
        run.say(usage_lines(run.folder.export))
    run.accelerator.wait_for_everyone()


def export_companion(run: Run, name: str, companion: Backbone, record: Record) -> None:
    """Measure another network of the method, trained and before training, and export it.

    A network of the recipe's architecture, such as a teacher, is compared with the recipe's start;
    any other with random weights.
    """
    companion.eval().to(memory_format=torch.contiguous_format)
    if companion.name == run.recipe.backbone:
        start = start_of(run.recipe)
    else:
        torch.manual_seed(run.recipe.seed)
        start = create_backbone(
            companion.name, image_size=companion.image_size, **companion.options
        )
    start.mean, start.std = companion.mean, companion.std
    start.to(run.accelerator.device)
    rows = table_rows(
        start=(start.init, run.monitor(start, run.accelerator)),
        trained=(companion.init, run.monitor(companion, run.accelerator)),
    )
    if run.accelerator.is_main_process:
        recipe = replace(run.recipe, name=f"{run.recipe.name}_{name}")
        folder = run.folder.path / f"export_{name}"
        results = {**results_of(run, record), "name": recipe.name, "companion": name, "rows": rows}
        results.pop("curve")
        export(companion, folder, recipe, results)
        run.say(f"\nexported its {name} to {folder}\n\n{results_table(rows)}")
    run.accelerator.wait_for_everyone()


def pretraining_of(run: Run, method: Method) -> Pretraining | None:
    """The last stage's method, to continue its training; `None` if its state is not complete."""
    if method.has_outside_teacher:
        return None
    stage = run.recipe.stages[-1]
    options = all_options(stage.method, options_on(stage, run.train))
    return Pretraining(stage.method, options_of_saved(type(method), options), method.state_dict())
