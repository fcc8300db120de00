"""Modules that a stage inherits besides the backbone, from the stage before or an earlier run."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fg_ssl_zoo.config import nearest
from fg_ssl_zoo.method import Method


def inherit(method: Method, names: Sequence[str], before: Method | None) -> None:
    """Copy the state of modules from the modules of the same name in the stage before.

    Nothing is copied if `before` is `None`: the run is continued, and its checkpoint has the state.

    Raises:
        ValueError: A module is missing in one of the stages, or has another shape.
    """
    if before is None:
        return
    for name in names:
        source, target = getattr(before, name, None), getattr(method, name, None)
        if not (isinstance(source, nn.Module) and isinstance(target, nn.Module)):
            owners = [n for n, _ in method.named_children()]
            raise ValueError(f"inherit: both stages need a module '{name}'{nearest(name, owners)}")
        there, here = (
            {key: tuple(value.shape) for key, value in module.state_dict().items()}
            for module in (source, target)
        )
        odd = [key for key in {**there, **here} if there.get(key) != here.get(key)]
        if odd:
            old, new = (state.get(odd[0], "missing") for state in (there, here))
            raise ValueError(
                f"inherit: {name}.{odd[0]} is {old} in the stage before and {new} in this one; "
                "give both stages the same options for it"
            )
        target.load_state_dict(source.state_dict())


def inherit_saved(method: Method, names: Sequence[str], saved: Mapping[str, Tensor]) -> None:
    """Copy the saved state of modules from an earlier training; `all` copies all modules.

    Raises:
        ValueError: A module is missing in one of them, or has another shape.
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
                f"stages[0].inherit: '{name}' is not the same module in both trainings"
                f"{nearest(name, sorted(known))}"
            )
        if odd := [key for key in here if here[key].shape != there[key].shape]:
            raise ValueError(
                f"stages[0].inherit: {odd[0]} is {tuple(there[odd[0]].shape)} in init and "
                f"{tuple(here[odd[0]].shape)} with these options"
            )
        method.load_state_dict(there, strict=False)
