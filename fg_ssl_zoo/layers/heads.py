"""Projection heads."""

from itertools import pairwise

from torch import nn


def mlp(
    widths: list[int], *, norm: bool = True, last_norm: bool = False, bias: bool = False
) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them.

    Args:
        widths: Input, hidden and output sizes.
        norm: BatchNorm behind hidden layers; without it they have a bias.
        last_norm: BatchNorm on the output, without scale and shift.
        bias: Of the last layer when no norm follows it.
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths[:-1]):
        layers += [nn.Linear(width_in, width_out, bias=not norm)]
        layers += [nn.BatchNorm1d(width_out)] if norm else []
        layers += [nn.ReLU(inplace=True)]
    layers += [nn.Linear(widths[-2], widths[-1], bias=bias and not last_norm)]
    if last_norm:
        layers += [nn.BatchNorm1d(widths[-1], affine=False)]
    return nn.Sequential(*layers)


def layer_norm_mlp(width: int, hidden_size: int, width_out: int) -> nn.Sequential:
    """Two linear layers with LayerNorm and ReLU between them, as in cvl-umass/PARTICLE.

    What a row becomes does not depend on the other rows, so empty or doubled ones do no harm.
    """
    return nn.Sequential(
        nn.Linear(width, hidden_size),
        nn.LayerNorm(hidden_size),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_size, width_out),
    )
