"""From a recipe's `train` to a timm optimizer, and the learning rate of every step."""

from collections.abc import Iterator
from typing import Any

import torch
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage]
    list_optimizers,  # pyright: ignore[reportPrivateImportUsage]
)

from fg_ssl_zoo.config import Train, nearest
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.ops.schedules import warmup_cosine

LR_BATCH = 256
"""Images that a recipe's learning rate is stated for."""


def base_lr(train: Train) -> float:
    """Peak learning rate: the recipe's, scaled by batch / 256 (or its root)."""
    ratio = train.batch_size / LR_BATCH
    return train.lr * {"linear": ratio, "sqrt": ratio**0.5, "none": 1.0}[train.lr_scaling]


def describe_lr(train: Train) -> str:
    """The peak rate and how it follows from the batch: `0.075 = 0.3 x 64 / 256`."""
    factor = {"linear": "{} / {}", "sqrt": "sqrt({} / {})", "none": ""}[train.lr_scaling]
    how = f" x {factor}".format(train.batch_size, LR_BATCH) if factor else " at any batch"
    return f"{base_lr(train):g} = {train.lr:g}{how}"


def lr_at(train: Train, progress: float) -> float:
    """Learning rate after a share of the steps: warm-up, then a cosine."""
    return base_lr(train) * warmup_cosine(progress, train.warmup, train.lr_end)


def create_optimizer(method: Method, train: Train) -> torch.optim.Optimizer:
    """A timm optimizer over the method's groups; biases and norms have no weight decay.

    LARS adapts only what is decayed, so biases and norms keep the plain rate.

    Raises:
        ValueError: Unknown optimizer.
    """
    known = [str(name) for name in list_optimizers()]
    if train.optimizer not in known:
        raise ValueError(
            f"train.optimizer: unknown '{train.optimizer}'{nearest(train.optimizer, known)}"
        )
    return create_optimizer_v2(
        list(_split_decay(method, train.weight_decay)),
        opt=train.optimizer,
        lr=base_lr(train),
        weight_decay=train.weight_decay,
        momentum=train.momentum,
    )


def _split_decay(method: Method, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Each group of the method as one with weight decay and one without."""
    for group in method.param_groups():
        params = list(group["params"])
        own = {"weight_decay": weight_decay, **{k: v for k, v in group.items() if k != "params"}}
        for decayed in (True, False):
            chosen = [p for p in params if (p.ndim > 1) == decayed]
            if chosen:
                yield {**own, "params": chosen, **({} if decayed else {"weight_decay": 0.0})}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate: `lr` times the group's `lr_scale`, 1 when it has none."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
