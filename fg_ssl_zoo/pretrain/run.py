"""The state that all stages of a run share, and how a run is opened."""

from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import layers_of, start_of
from fg_ssl_zoo.config import Recipe, encodable, to_yaml
from fg_ssl_zoo.data.datasets import fingerprint
from fg_ssl_zoo.data.loader import resolve_num_workers
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine import hardware
from fg_ssl_zoo.engine.optim import describe_lr
from fg_ssl_zoo.engine.provenance import commit
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.monitor import OnlineMonitor
from fg_ssl_zoo.progress import tell


@dataclass(frozen=True)
class Run:
    """The state that all stages share.

    Attributes:
        recipe: The resolved recipe.
        folder: Folder of the run.
        accelerator: Devices, precision and processes.
        train, test: Training images, and labelled test images or `None`.
        switches: Resolved hardware switches.
        monitor: Measurements during training.
        commit: Commit of the code when the run started.
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
        """Number of training processes."""
        count = self.accelerator.num_processes
        sharded = ", weights sharded (FSDP2)" if self.accelerator.is_fsdp2 else ""
        return "1 process" if count == 1 else f"{count} processes{sharded}"

    @property
    def measures_start_later(self) -> bool:
        """Whether the start may be measured on all images after the first step."""
        return self.monitor.samples_start or not self.recipe.monitor.at_start

    def say(self, text: str) -> None:
        """Print a line on standard output, in the main process only."""
        if self.accelerator.is_main_process:
            tell(encodable(text))


def prepare_backbone(recipe: Recipe) -> tuple[hardware.Switches, Backbone]:
    """Set the switches of the whole process, then build the start weights."""
    layers = layers_of(recipe)
    switches = hardware.choose(recipe.speed, convolutional=hardware.is_convolutional(layers))
    hardware.switch_on(switches)
    return switches, start_of(recipe)


def open_run(
    recipe: Recipe,
    switches: hardware.Switches,
    accelerator: Accelerator,
    train: Images,
    test: Images | None,
    summary: str | None = None,
) -> Run:
    """Lock the run's folder, prepare the measurements, and print what is trained.

    Args:
        recipe: The resolved recipe.
        switches: Switches that `prepare_backbone` returned.
        accelerator: Accelerator created with these switches.
        train: Training images.
        test: Labelled test images, or `None`.
        summary: Text that is printed instead of the recipe's YAML.

    Raises:
        ValueError: The processes have different recipes or images, or the folder contains a run
            of another recipe or of other images; nothing in it was changed.
    """
    if accelerator.num_processes > 1:
        free = replace(recipe, output=None, data=replace(recipe.data, path=None))  # one per machine
        pictures = [None if images is None else fingerprint(images) for images in (train, test)]
        refuse_differences(accelerator, "the same recipe", to_yaml(free))
        same = "the same images: bring the folders of all machines to one state"
        refuse_differences(accelerator, same, pictures)
    folder = RunFolder(recipe.folder)
    if accelerator.is_main_process:
        folder.claim(recipe, {"train": train, "test": test})
    accelerator.wait_for_everyone()
    workers = resolve_num_workers(recipe.data.num_workers, accelerator.num_processes)
    monitor = OnlineMonitor(train, test, recipe.monitor, recipe.data.crop_pct, workers)
    run = Run(recipe, folder, accelerator, train, test, switches, monitor, commit())
    run.say(_headline(run, summary))
    return run


def refuse_differences(accelerator: Accelerator, needed: str, mine: Any) -> None:
    """Refuse to train if processes differ, which would cause wrong weights or a deadlock.

    Args:
        accelerator: All its processes call this together.
        needed: What must be equal, for the error.
        mine: The value of this process.

    Raises:
        ValueError: On every process; names the first one that differs from the main process.
    """
    if accelerator.num_processes == 1:
        return
    every = gather_object([mine])
    for number, other in enumerate(every):
        if other != every[0]:
            raise ValueError(f"process {number} and process 0 need {needed}")


def _headline(run: Run, summary: str | None) -> str:
    labelled = "unlabelled" if run.test is None else f"{len(run.test)} test images"
    lines = [
        summary or to_yaml(run.recipe).rstrip(),
        f"run       {run.folder.path}",
        f"data      {run.train.name}: {len(run.train)} training images, {labelled}",
        f"hardware  {run.switches}; {run.processes}",
    ]
    stages = enumerate(run.recipe.stages)
    lines += [f"lr        stages[{number}]: {describe_lr(stage.train)}" for number, stage in stages]
    return "\n".join(lines)
