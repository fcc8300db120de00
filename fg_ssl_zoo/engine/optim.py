"""The timm optimizer of a recipe's `train`, and the learning rates of every step."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from timm.optim import (
    create_optimizer_v2,  # pyright: ignore[reportPrivateImportUsage]
    list_optimizers,  # pyright: ignore[reportPrivateImportUsage]
)

from fg_ssl_zoo.config import Train, nearest, printable
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.ops.schedules import cosine, warmup_cosine

LR_BATCH = 256
"""Images that a recipe's learning rate is stated for."""


FUSED = ("adam", "adamw")
"""Optimizers whose step torch computes in one pass over the weights.

A checkpoint records this choice, so an older run continues in the way it began.
"""


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
    """A timm optimizer over the method's groups.

    No weight decay on biases and norms, nor on what a timm model names in `no_weight_decay()`: the
    class token and position embeddings of a ViT. LARS adapts only what is decayed, so these keep
    the plain rate. With Muon, its fallback (AdamW or NAdamW) trains them, as its authors do with
    embeddings; timm alone would give it tables such as Swin's position biases.

    Raises:
        ValueError: Unknown optimizer.
    """
    check_optimizer(train)
    groups = list(_split_decay(method, train.weight_decay))
    if train.optimizer.endswith("muon"):
        groups = [{**group, "use_fallback": not group["decays"]} for group in groups]
    return create_optimizer_v2(
        groups,
        opt=train.optimizer,
        lr=base_lr(train),
        weight_decay=train.weight_decay,
        momentum=train.momentum,
        **_fused(train.optimizer),
    )


def _fused(optimizer: str) -> dict[str, Any]:
    return {"fused": True} if optimizer in FUSED else {}


def check_optimizer(train: Train, where: str = "train") -> None:
    """Refuse an optimizer that timm does not know or that cannot run here.

    Args:
        train: Names it.
        where: Path of `train`, for the error.

    Raises:
        ValueError: One line with the nearest names, or with what it lacks.
    """
    known = [str(name) for name in list_optimizers()]
    if train.optimizer not in known:
        raise ValueError(
            f"{where}.optimizer: unknown '{printable(train.optimizer)}'"
            f"{nearest(train.optimizer, known)}"
        )
    if torch.cuda.is_available() and train.optimizer.startswith(("bnb", "fused")):
        return  # they run there alone, and this process has not chosen its GPU yet
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    try:
        create_optimizer_v2([weight], opt=train.optimizer, lr=0.1, **_fused(train.optimizer)).step()
    except Exception as error:  # of any package that an optimizer may come from
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{where}.optimizer: {train.optimizer} cannot run here ({reason}); try adamw or lars"
        ) from error


def _split_decay(method: Method, weight_decay: float) -> Iterator[dict[str, Any]]:
    """Split each group of the method by backbone or not, and by weight decay or not.

    The groups keep this as `backbone` and `decays`.
    """
    backbone = {id(p) for p in method.backbone.parameters()}
    named = _without_decay(method)
    for group in method.param_groups():
        params = list(group["params"])
        for of_backbone in (True, False):
            for decays in (True, False):
                chosen = [
                    p for p in params
                    if (id(p) in backbone) == of_backbone
                    and (p.ndim > 1 and id(p) not in named) == decays
                ]  # fmt: skip
                if chosen:
                    yield {
                        **group,
                        "params": chosen,
                        "backbone": of_backbone,
                        "decays": decays,
                        "weight_decay": weight_decay if decays else 0.0,
                    }


def _without_decay(method: Method) -> set[int]:
    """Ids of the parameters that a timm model inside the method names in `no_weight_decay()`."""
    models = [m for m in method.modules() if callable(getattr(m, "no_weight_decay", None))]
    names = [(m, name) for m in models for name in cast(Any, m).no_weight_decay()]
    own = {id(m): dict(m.named_parameters()) for m in models}
    return {id(own[id(m)][name]) for m, name in names if name in own[id(m)]}


def schedule(optimizer: torch.optim.Optimizer, train: Train, progress: float) -> float:
    """Give every group its rate and its weight decay for the step at `progress`.

    A group's rate is `lr_at` times its `lr_scale` (1 when it has none); with `constant_lr` it is
    the peak rate instead. The backbone's is `backbone_lr_scale` of that, and 0 as long as
    `head_warmup` lasts.

    Returns:
        The rate of a plain group.
    """
    lr, decay = lr_at(train, progress), weight_decay_at(train, progress)
    for group in optimizer.param_groups:
        rate = base_lr(train) if group.get("constant_lr") else lr
        resting = group["backbone"] and progress < train.head_warmup
        rate *= train.backbone_lr_scale if group["backbone"] else 1.0
        group["lr"] = 0.0 if resting else rate * group.get("lr_scale", 1.0)
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's moments, with names for messages."""
    return {
        f"the optimizer's {key} of parameter {number}": value
        for number, remembered in optimizer.state_dict()["state"].items()
        for key, value in remembered.items()
        if isinstance(value, torch.Tensor)
    }


def weight_decay_at(train: Train, progress: float) -> float:
    """Weight decay after a share of the steps: constant, or a cosine to `weight_decay_end`."""
    end = train.weight_decay_end
    return train.weight_decay if end is None else cosine(train.weight_decay, end, progress)
