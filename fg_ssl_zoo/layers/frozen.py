"""Use a network without changing it; freeze the running statistics of norms."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

TRACKING = "track_running_stats"
"""torch's attribute of norms with running statistics."""

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def frozen(network: Network) -> Iterator[Network]:
    """Inside the context, gradients pass through the network but nothing in it changes.

    Its parameters receive no gradient. Its norms use the statistics of the batch, as in training,
    but do not update the running statistics.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with unremembered(network):
            yield network
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def unremembered(network: Network) -> Iterator[Network]:
    """Inside the context, the network's norms do not update their running statistics.

    In training mode they still use the statistics of the batch.
    """
    tracking = [m for m in network.modules() if getattr(m, TRACKING, False)]
    for norm in tracking:
        setattr(norm, TRACKING, False)
    try:
        yield network
    finally:
        for norm in tracking:
            setattr(norm, TRACKING, True)


def norms_of(network: nn.Module) -> frozenset[str]:
    """Names of the BatchNorms with running statistics, including timm's."""
    return frozenset(
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    )


def norms_with_statistics(network: nn.Module) -> frozenset[str]:
    """Names of the BatchNorms whose running statistics come from data.

    A norm with initial values (mean 0, variance 1) is left out; it belongs to a part that starts at
    random.
    """
    return frozenset(
        name for name in norms_of(network) if not _is_initial(network.get_submodule(name))
    )


def _is_initial(norm: nn.Module) -> bool:
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return not norm.running_mean.any() and bool((norm.running_var == 1).all())


def keep_statistics(network: nn.Module, names: Collection[str]) -> None:
    """Make BatchNorms use their running statistics without updating them, also in training.

    Scale and shift are still trained. The effect ends with the next `network.train()`.

    Args:
        network: Changed in place.
        names: Names that `norms_of` returned.
    """
    for name in names:
        network.get_submodule(name).eval()
