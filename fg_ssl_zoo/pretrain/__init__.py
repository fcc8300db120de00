"""Recipe -> trained and exported Backbone: stages, and rounds inside a stage.

accelerate launch train.py [RECIPE or FOLDER] [key.path=value ...]
python -m fg_ssl_zoo.pretrain [RECIPE or FOLDER] [key.path=value ...]

    own_pictures  chooses a recipe for a folder of images by their number and the machine
    run           the state that all stages share
    stages        trains stage after stage around one backbone
    inherit       modules that a stage takes over besides the backbone
    rounds        notes on the images, then training
    results       the record: scores before and after, protocol, settings
    export        writes this record and the networks as folders
"""

import argparse
import atexit
import logging
import os
import signal
import sys
from collections.abc import Sequence

import fg_ssl_zoo.quick_imports  # noqa: F401, before the imports below

# isort: split
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors import SafetensorError

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.build import check_options as check_backbone_options
from fg_ssl_zoo.config import (
    DEFAULT_RECIPE,
    Recipe,
    bound_hub_client,
    check_cache,
    check_folder,
    disk_error,
    encodable,
    memory_error,
    printable,
    refuse_empty,
    show_any_name,
    to_yaml,
)
from fg_ssl_zoo.data.datasets import load_splits
from fg_ssl_zoo.data.decode import max_pixels
from fg_ssl_zoo.data.loader import worker_failure
from fg_ssl_zoo.data.order import order_of
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import checkpoint, hardware
from fg_ssl_zoo.engine.log import check_trackers, quiet_writer
from fg_ssl_zoo.engine.loop import TrainingStopped, refuse_broken
from fg_ssl_zoo.engine.optim import check_optimizer
from fg_ssl_zoo.engine.signals import Interrupted, ending_at_once
from fg_ssl_zoo.evaluation.monitor import Collapsed, below_start
from fg_ssl_zoo.method import HasCompanions, Method
from fg_ssl_zoo.methods import check_options, check_queue, long_queue, method_class
from fg_ssl_zoo.ops.distributed import is_peer_failure
from fg_ssl_zoo.pretrain.export import export_backbone, export_companion, pretraining_of
from fg_ssl_zoo.pretrain.own_pictures import Splits, recipe_of_words
from fg_ssl_zoo.pretrain.run import Run, open_run, prepare_backbone
from fg_ssl_zoo.pretrain.stages import check_methods, options_on, run_stages

_log = logging.getLogger(__name__)


def pretrain(recipe: Recipe, summary: str | None = None, splits: Splits | None = None) -> Backbone:
    """Train every stage of a recipe, or continue a stopped run, and export the backbone.

    Args:
        recipe: The recipe.
        summary: Text that is printed instead of the recipe's YAML.
        splits: Images of `recipe.data`, if they are already listed.

    Returns:
        The trained backbone, in evaluation mode.

    Raises:
        ValueError: The recipe does not fit; nothing was trained or deleted.
        TrainingStopped, Collapsed: The run diverged or collapsed, or start weights are not finite.
        Interrupted: A signal was received; the checkpoint is written.
    """
    max_pixels()  # refuses an unsupported launch
    check_folder(recipe.folder, "output")
    if encodable(str(recipe.folder)) != str(recipe.folder):
        raise ValueError(
            f"output: {printable(recipe.folder)} holds bytes that are not UTF-8, which TensorBoard "
            "cannot write; name another folder with output=FOLDER"
        )
    _check_stages(recipe)
    set_seed(recipe.seed)
    switches, backbone = prepare_backbone(recipe)
    refuse_broken(backbone.model.state_dict(), f"init: {recipe.init}")
    accelerator = hardware.create_accelerator(switches)
    train, test = splits or load_splits(recipe.data, seed=recipe.seed)
    _check_stages_on(recipe, train, accelerator)
    check_methods(recipe, backbone, train, accelerator)
    run = open_run(recipe, switches, accelerator, train, test, summary)
    try:
        _train_and_export(run, backbone)
    finally:
        run.folder.lock.release()
    return backbone


def _train_and_export(run: Run, backbone: Backbone) -> None:
    method, record = run_stages(run, backbone)
    backbone.eval().to(memory_format=torch.contiguous_format)  # as in the loaded export
    export_backbone(run, backbone, record, pretraining_of(run, method))
    companions = method.companions() if isinstance(method, HasCompanions) else {}
    for name, companion in companions.items():
        export_companion(run, name, companion, record)
    if line := below_start(record.measurements):
        run.say(f"\n# {line}")  # a comment: the lines above can be pasted into Python
    if (
        run.accelerator.num_processes > 1
    ):  # not now, since another run of this process needs the group
        atexit.register(run.accelerator.state.destroy_process_group)


def _check_stages(recipe: Recipe) -> None:
    """Refuse settings that fit no data, before weights and images are loaded."""
    check_backbone_options(recipe.backbone_options)
    check_trackers(recipe.trackers)
    for number, stage in enumerate(recipe.stages):
        where = f"stages[{number}].options"
        options = check_options(stage.method, stage.options, where=where)
        at_once = stage.train.batch_size // stage.train.accumulate
        check_queue(options, at_once, where=where)
        try:
            method_class(stage.method).outside_teachers(options)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from error
        check_optimizer(stage.train, where=f"stages[{number}].train")
        if method_class(stage.method).annotate is not Method.annotate:
            check_cache()


def _check_stages_on(recipe: Recipe, train: Images, accelerator: Accelerator) -> None:
    """Refuse settings that do not fit these images, before the run's folder is changed."""
    for number, stage in enumerate(recipe.stages):
        where = f"stages[{number}].options"
        options = check_options(stage.method, options_on(stage, train, where), where)
        order_of(train, stage.train.batch_size, recipe.seed)  # refuses a batch that is too large
        if accelerator.is_main_process and method_class(stage.method).keeps_queue(options):
            if "queue_size" not in stage.options:
                size = options["queue_size"]
                _log.info("%s.queue_size: %d, by the number of training images", where, size)
            elif line := long_queue(options, len(train)):
                _log.warning("%s.%s", where, line)


# --------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None, prog: str = "train.py") -> None:
    """The command: a recipe or a folder, and overrides; an error is one line and status 2."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Pretrain a backbone without labels and export it.",
        epilog=f"Without a recipe: {DEFAULT_RECIPE}, 2 to 5 minutes on two cores, no download.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RECIPE, FOLDER or key.path=value",
        help="a recipe (file or name) or a folder of images, for which a recipe is chosen, and "
        "overrides such as stages.0.train.steps=200",
    )
    parser.add_argument("--print-recipe", action="store_true", help="print the YAML and stop")
    chosen = parser.parse_intermixed_args(arguments)
    words = chosen.words
    show_any_name()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _quiet_libraries()
    try:
        refuse_empty(words)
        bound_hub_client()
        recipe, summary, splits = recipe_of_words(words)
        if chosen.print_recipe:
            print(to_yaml(recipe), end="")  # noqa: T201
            return
        with ending_at_once(GO_ON):
            pretrain(recipe, summary, splits)
    except Interrupted as stopped:
        raise _said(stopped) from None
    except KeyboardInterrupt:
        between = f"stopped between checkpoints; {GO_ON}"
        raise _said(Interrupted(between, signal.SIGINT)) from None
    except Exception as error:
        if (line := _line_of(error)) is None:
            raise
        print(f"error: {printable(line)}{_launcher_note()}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


GO_ON = "run the same command again to continue"


def _said(stopped: Interrupted) -> Interrupted:
    """Print the message of the interrupt, and return it."""
    print(f"{stopped.message}{_launcher_note()}", file=sys.stderr)  # noqa: T201
    stopped.said = True
    return stopped


def _line_of(error: Exception) -> str | None:
    """Message of an error caused by the user or the machine; `None` for a bug of ours."""
    if isinstance(error, ValueError | TrainingStopped | Collapsed | checkpoint.CheckpointError):
        return str(error)
    if isinstance(error, SafetensorError):  # such as a full disk
        return f"weights could not be read or written ({error}); {GO_ON}"
    if isinstance(error, OSError):
        return f"{disk_error(error)}; {GO_ON}"
    if said := memory_error(error):
        return (
            f"{said}; free some and {GO_ON}, or start another run with a smaller "
            "train.batch_size or a larger train.accumulate"
        )
    if is_peer_failure(error):
        return f"another process of this run has ended, and says why itself; {GO_ON}"
    return worker_failure(error)


def _launcher_note() -> str:
    """A note about the traceback that a launcher prints after every status except 0."""
    if "WORLD_SIZE" in os.environ:  # several processes
        return "\n(a traceback of the launcher follows; it says nothing more)"
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # one process, started by accelerate
        return (
            "\n(a traceback of accelerate's launcher follows; accelerate launch --quiet omits it)"
        )
    return ""


def _quiet_libraries() -> None:
    """Hide messages of libraries that a user cannot act on."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    logging.getLogger("timm").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    quiet_writer()
