"""A network that is used without being changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

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
