"""A backbone and its linear classifier, fine-tuned together (`--head finetune`).

The classifier starts as the logistic regression on the frozen features, so that the first steps do
not distort them (Kumar et al., 2022, arXiv 2202.10054: linear probing, then fine-tuning).

Our choice: SGD, momentum 0.9, learning rate 0.01 for both, cosine, batch 32, crops of at least a
third of the image, horizontal flip. BatchNorms keep their running statistics, since few images
would not give good ones.
"""

import copy
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.head import Head
from fg_ssl_zoo.evaluation.protocols.finetune import Classifier, Finetune, train_classifier

EPOCHS = 20
"""Passes over the labelled images."""

OPTIONS = Finetune(batch_size=32, lr=0.01, backbone_rate=1.0)


def fine_tuned(
    backbone: Backbone,
    head: Head,
    images: Images,
    accelerator: Accelerator,
    *,
    epochs: float = EPOCHS,
    seed: int = 0,
    num_workers: int = 0,
) -> tuple[Backbone, Head]:
    """Train a copy of a backbone together with a fitted classifier.

    Args:
        backbone: Backbone whose features the classifier reads; not changed.
        head: Classifier fitted on these images.
        images: Labelled images of all classes of the head.
        accelerator: Device, precision and processes.
        epochs: Passes over the images.
        seed: Seed of order and crops.
        num_workers: Loader processes.

    Returns:
        The new backbone in evaluation mode, and its classifier with the same classes.

    Raises:
        TrainingStopped: The loss is not finite.
    """
    assert images.labels is not None
    counts = torch.from_numpy(images.labels).bincount(minlength=len(images.classes))
    present = counts.nonzero().flatten()
    assert tuple(images.classes[number] for number in present.tolist()) == head.classes
    method = Classifier(copy.deepcopy(backbone), counts, OPTIONS)
    last = method.classifier[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight[present] = head.weight
        last.bias[present] = head.bias
    train = replace(OPTIONS.train, epochs=epochs, norm="frozen")
    train_classifier(
        method.to(accelerator.device), images, train, accelerator,
        seed=seed, num_workers=num_workers,
    )  # fmt: skip
    weight, bias = (p.detach().cpu()[present] for p in (last.weight, last.bias))
    return method.backbone, Head(weight, bias, head.classes)
