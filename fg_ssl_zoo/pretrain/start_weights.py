"""Start weights of a run's stages, which cannot be computed again."""

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
    """Write the start weights of a stage once; a continued run reads them.

    Start weights of the first stage can be built again from the recipe.

    Args:
        run: Run whose folder receives them.
        backbone: Backbone with the start weights of the stage, if `at_start`.
        number: Number of the stage.
        at_start: Whether the stage has not made a step yet.

    Raises:
        ValueError: The file of a later stage that has begun is missing.
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
    """The start weights of a stage; errors as for `read_kept`."""
    return read_kept(start_file(run, number))


def read_kept(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file in the run's notes.

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
