"""The linear classifier that `fgssl classifier` writes.

It is fitted as in the protocol `linear` (multinomial logistic regression, C = 1, features not
scaled), so its accuracy is the score of that protocol.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fg_ssl_zoo.evaluation.protocols.linear import MAX_ITERATIONS


@dataclass(frozen=True)
class Head:
    """logits = features @ weight.T + bias.

    Attributes:
        weight: (c, d) float32.
        bias: (c,) float32.
        classes: Class names in the order of the rows.
    """

    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]
    classes: tuple[str, ...]

    def probabilities(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Softmax of the logits."""
        return (features @ self.weight.T + self.bias).softmax(dim=1)


def fit_head(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], classes: list[str]
) -> Head:
    """Fit a logistic regression; a class without labelled images is left out.

    Args:
        features: Features of the labelled images.
        labels: Class numbers of the images.
        classes: Class names.

    Raises:
        ValueError: All images have the same class.
    """
    present = labels.unique()
    if len(present) < 2:
        raise ValueError("a classifier needs 2 classes or more; the labelled images have one")
    fit = LogisticRegression(C=1.0, max_iter=MAX_ITERATIONS)
    fit.fit(features.numpy(), labels.numpy())
    weight, bias = fit.coef_, fit.intercept_
    if len(present) == 2:  # one row z stands for the logits -z / 2 and z / 2
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    names = tuple(classes[number] for number in present.tolist())
    return Head(torch.from_numpy(weight).float(), torch.from_numpy(bias).float(), names)
