"""Projection heads."""

from itertools import pairwise

from torch import nn


def mlp(
    widths: list[int], *, norm: bool = True, last_norm: bool = False, bias: bool = False
) -> nn.Sequential:
    """Linear layers with BatchNorm and ReLU between them.

    Args:
        widths: Input, hidden and output sizes.
        norm: Whether BatchNorms follow the hidden layers; otherwise these have a bias.
        last_norm: Whether a BatchNorm without scale and shift follows the last layer.
        bias: Whether the last layer has a bias if no norm follows it.
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


def moco_projector(
    width: int, projection_size: int, hidden_size: int | None = None
) -> nn.Sequential:
    """Head of MoCo v2: two linear layers with biases and ReLU between them, no norm.

    He et al., 2020 (arXiv 1911.05722) with the head of Chen et al., 2020 (arXiv 2003.04297), as in
    facebookresearch/moco.

    Args:
        width: `d`, of the features.
        projection_size: Size of queries and keys; 128 in the papers.
        hidden_size: `d` when not given, as in the official code.
    """
    return mlp([width, hidden_size or width, projection_size], norm=False, bias=True)


def simsiam_projector(width: int, projection_size: int) -> nn.Sequential:
    """Three linear layers, each followed by a norm (Chen & He, 2021, arXiv 2011.10566, section 3).

    Args:
        width: `d`, of the features.
        projection_size: Size of `z` and of the two hidden layers; 2,048 in the paper.
    """
    return mlp([width, *[projection_size] * 3], last_norm=True)


def simsiam_predictor(projection_size: int, predictor_size: int) -> nn.Sequential:
    """Two linear layers with a bottleneck; no norm on the output (ibid.).

    Args:
        projection_size: Size of `z` and `p`.
        predictor_size: Width of the hidden layer; 512 in the paper, a quarter of `z`.
    """
    return mlp([projection_size, predictor_size, projection_size], bias=True)


def layer_norm_mlp(width: int, hidden_size: int, width_out: int) -> nn.Sequential:
    """Two linear layers with LayerNorm and ReLU between them, as in cvl-umass/PARTICLE.

    The output of a row does not depend on other rows, so empty or duplicate rows are harmless.
    """
    return nn.Sequential(
        nn.Linear(width, hidden_size),
        nn.LayerNorm(hidden_size),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_size, width_out),
    )
