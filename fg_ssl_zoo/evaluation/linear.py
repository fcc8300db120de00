"""Linear probes: logistic regression (fast), and SGD with a rate chosen on a part of train.

Logistic regression with C = 1, not normalised, is the protocol of PARTICLE (arXiv 2309.13822 and
its code); it is one fit without anything to choose. The SGD probe takes batch, epochs and momentum
from LCR (arXiv 2303.01669); its rate is the best of four on a tenth of train, never on test.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fg_ssl_zoo.evaluation.task import Outcome, Task, classified, labels_of
from fg_ssl_zoo.ops.schedules import cosine

MAX_ITERATIONS = 10_000
RATES = (0.1, 1.0, 10.0, 30.0)
EPOCHS, BATCH_SIZE, MOMENTUM = 100, 256, 0.9
HELD_OUT = 0.1
"""Share of train that chooses the rate of the SGD probe."""


def linear(task: Task, *, c: float = 1.0, l2_normalize: bool = False) -> list[Outcome]:
    """`linear_top1`: logistic regression by L-BFGS until it converges.

    Args:
        task: Features of both splits.
        c: Inverse weight of the L2 penalty.
        l2_normalize: Features to unit length first.
    """
    train, test = task.train.features, task.test.features
    if l2_normalize:
        train, test = F.normalize(train, dim=-1), F.normalize(test, dim=-1)
    predicted, converged = logistic_regression(train, labels_of(task.train), test, c=c)
    notes = () if converged else (f"did not converge in {MAX_ITERATIONS} iterations",)
    settings = {"c": c, "l2_normalize": l2_normalize, "solver": "lbfgs", "max_iter": MAX_ITERATIONS}
    return [classified("linear_top1", predicted, task.test, settings, notes)]


def logistic_regression(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    c: float = 1.0,
) -> tuple[Int64[np.ndarray, " m"], bool]:
    """Class of each test row, and whether the fit converged.

    In single precision, as the features are: on real features as many pictures are right as in
    double, in half the time. With fewer pictures than features both are turned into the span of the
    training features: the penalty is the same in every direction, so the solution is too, and the
    fit is much cheaper.
    """
    if len(train) < train.shape[1]:
        basis = torch.linalg.qr(train.T).Q  # (d, n)
        train, test = train @ basis, test @ basis
    names = labels.unique()
    if len(names) == 1:
        return np.full(len(test), int(names)), True
    fit = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", ConvergenceWarning)
        fit.fit(train.numpy(), labels.numpy())
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in seen)
    return np.asarray(fit.predict(test.numpy())), converged


def linear_sgd(task: Task) -> list[Outcome]:
    """`linear_sgd_top1`: a linear layer on features of unit mean length, by SGD.

    The four rates are trained side by side on nine tenths of train and the best on the last tenth
    is trained again on all of it.
    """
    train, labels = task.train.features, labels_of(task.train)
    scale = train.norm(dim=1).mean()
    train, test = train / scale, task.test.features / scale
    generator = torch.Generator().manual_seed(task.seed)
    shuffled = torch.randperm(len(train), generator=generator)
    held, kept = shuffled.split(
        [round(HELD_OUT * len(train)), len(train) - round(HELD_OUT * len(train))]
    )
    num_classes = len(task.classes)
    on_held = sgd_logits(train[kept], labels[kept], train[held], RATES, num_classes, task.seed)
    right = (on_held.argmax(-1) == labels[held]).double().mean(dim=1)
    rate = RATES[int(right.argmax())]
    logits = sgd_logits(train, labels, test, (rate,), num_classes, task.seed)[0]
    settings = {
        "rate": rate, "rates": list(RATES), "epochs": EPOCHS, "batch_size": BATCH_SIZE,
        "momentum": MOMENTUM, "weight_decay": 0.0, "held_out": HELD_OUT, "seed": task.seed,
    }  # fmt: skip
    return [classified("linear_sgd_top1", logits.argmax(-1).numpy(), task.test, settings)]


def sgd_logits(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    rates: tuple[float, ...],
    num_classes: int,
    seed: int,
) -> Float[Tensor, "r m c"]:
    """Test logits of one linear layer for each rate, all trained on the same batches."""
    weight = torch.zeros(len(rates), train.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(len(rates), 1, num_classes, requires_grad=True)
    pace = torch.tensor(rates)[:, None, None]
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(train), generator=generator).split(BATCH_SIZE):
            logits = train[rows] @ weight + bias  # (r, b, c)
            target = labels[rows].expand(len(rates), -1)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten()) * len(rates)
            optimizer.zero_grad()
            loss.backward()
            for parameter in (weight, bias):
                assert parameter.grad is not None
                parameter.grad *= pace  # a rate of its own for each layer
            optimizer.param_groups[0]["lr"] = cosine(1.0, 0.0, epoch / EPOCHS)
            optimizer.step()
    return (test @ weight + bias).detach()
