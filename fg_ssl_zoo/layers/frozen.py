"""A network that is used without being changed, and norms that keep their running statistics."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

TRACKING = "track_running_stats"
"""torch's word for a norm that keeps running statistics."""

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def frozen(network: Network) -> Iterator[Network]:
    """The same network as a judge: gradients pass through it, and nothing of it moves.

    Its parameters receive no gradient. Its norms work as in training, with the statistics of what
    they are shown, and leave the running ones and their count alone.
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
    """The same network, whose norms leave their running statistics and their count alone.

    In training mode they still work with the statistics of what they are shown.
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
    """Names of the batch norms that keep running statistics; those of timm are among them."""
    return frozenset(
        name
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    )


def norms_with_statistics(network: nn.Module) -> frozenset[str]:
    """Names of the batch norms whose running statistics come from data.

    A norm that was only initialised (mean 0, variance 1) has seen nothing: the random part of a
    network that starts from a part of its weights.
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
    """Make batch norms normalise with their running statistics, in training too, and keep them.

    Their scale and shift still learn. Lasts until the next `network.train()`.

    Args:
        network: Is changed.
        names: Of `norms_of`.
    """
    for name in names:
        network.get_submodule(name).eval()
