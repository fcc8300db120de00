"""Linear probe by SGD, with a learning rate chosen on a part of the training images.

Batch size, epochs and momentum are those of LCR (arXiv 2303.01669). The learning rate is the best
of four on a tenth of the training images; test images are not used for this choice.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task, classified, labels_of
from fg_ssl_zoo.metrics import Metric
from fg_ssl_zoo.ops.schedules import cosine
from fg_ssl_zoo.progress import shown

RATES = (0.1, 1.0, 10.0, 30.0)
EPOCHS, BATCH_SIZE, MOMENTUM = 100, 256, 0.9
HELD_OUT = 0.1
"""Share of the training images on which the learning rate is chosen."""


def linear_sgd(task: Task) -> list[Outcome]:
    """`linear_sgd_top1`: a linear layer on features of unit mean length, by SGD.

    Four learning rates are trained in parallel on nine tenths of the training images. The best one
    on the last tenth is trained again on all training images.
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
    """Test logits of one linear layer per learning rate, all trained on the same batches."""
    weight = torch.zeros(len(rates), train.shape[1], num_classes, requires_grad=True)
    bias = torch.zeros(len(rates), 1, num_classes, requires_grad=True)
    pace = torch.tensor(rates)[:, None, None]
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=MOMENTUM)
    generator = torch.Generator().manual_seed(seed)
    for epoch in shown(range(EPOCHS), EPOCHS, "epochs"):
        for rows in torch.randperm(len(train), generator=generator).split(BATCH_SIZE):
            logits = train[rows] @ weight + bias  # (r, b, c)
            target = labels[rows].expand(len(rates), -1)
            loss = F.cross_entropy(logits.flatten(0, 1), target.flatten()) * len(rates)
            optimizer.zero_grad()
            loss.backward()
            for parameter in (weight, bias):
                assert parameter.grad is not None
                parameter.grad *= pace  # each layer has its own learning rate
            optimizer.param_groups[0]["lr"] = cosine(1.0, 0.0, epoch / EPOCHS)
            optimizer.step()
    return (test @ weight + bias).detach()


PROTOCOL = Protocol(
    linear_sgd,
    metrics=(Metric("linear_sgd_top1", "linear top-1", detail="by SGD"),),
    summary="linear classifier trained by SGD: batch 256, 100 epochs, momentum 0.9, cosine; "
    "learning rate of 0.1, 1, 10 or 30 chosen on a tenth of the training images",
)
