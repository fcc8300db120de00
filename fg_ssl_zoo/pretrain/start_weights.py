"""Tensors of a run that cannot be computed again: the weights that its stages started from."""

from pathlib import Path

from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.tensor_cache import load_tensors, write_tensors
from fg_ssl_zoo.pretrain.run import Run

RESTORE = (
    "it cannot be computed again from the current weights: restore the file, or start again with "
    "overwrite=true"
)


def keep_start(run: Run, backbone: Backbone, number: int, at_start: bool = True) -> None:
    """Write the weights that a stage starts from, once: a resumed run reads them.

    The first stage starts from weights that every run of the recipe has again.

    Args:
        run: Its folder gets them.
        backbone: With the weights that the stage starts from, if `at_start`.
        number: Number of the stage.
        at_start: Whether no step of the stage was done yet.

    Raises:
        ValueError: The file of a later stage that has begun is gone.
    """
    path = start_file(run, number)
    is_there = path.is_file()
    run.accelerator.wait_for_everyone()
    if not is_there and not at_start and number:
        raise ValueError(f"{path} is gone; {RESTORE}")
    if run.accelerator.is_main_process and not is_there:
        state = backbone.model.state_dict()
        write_tensors(path, {key: value.clone() for key, value in state.items()})
    run.accelerator.wait_for_everyone()


def start_weights(run: Run, number: int) -> dict[str, Tensor]:
    """The weights that a stage started from; errors as `read_kept`."""
    return read_kept(start_file(run, number))


def read_kept(path: Path) -> dict[str, Tensor]:
    """Tensors of a file among the run's notes.

    Raises:
        ValueError: It is damaged.
    """
    try:
        return load_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); {RESTORE}") from error


def start_file(run: Run, number: int) -> Path:
    """Where the weights that a stage starts from are kept."""
    return run.folder.notes / f"stage{number}_start.safetensors"
