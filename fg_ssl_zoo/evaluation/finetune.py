"""Fine-tuning: the whole network with a linear classifier, by the loop that pretrains.

Protocol (our choice, stated with each number): SGD with momentum 0.9, 0.01 for the backbone and 0.1
for the classifier, batch 64, 50 epochs, cosine; random crops of at least a third and mirror images.
"""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.sample import Sample, Views
from fg_ssl_zoo.data.views import Augmentation, RandomViews
from fg_ssl_zoo.engine.hardware import is_convolutional
from fg_ssl_zoo.engine.loop import Fit, fit
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.features import extract
from fg_ssl_zoo.evaluation.task import Outcome, Task, classified
from fg_ssl_zoo.method import Batch, Method, MethodOutput

TRAIN = Train(
    epochs=50, batch_size=64, optimizer="sgd", lr=0.1, lr_scaling="none", weight_decay=1e-4,
    warmup=0.02, checkpoint_every=1e9,
)  # fmt: skip
BACKBONE_RATE = 0.1
"""Rate of the backbone as a share of the classifier's."""

CROPS = Augmentation(crop_scale=(1 / 3, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)


def finetune(task: Task, *, train: Train = TRAIN) -> list[Outcome]:
    """`finetune_top1`: the task's backbone is copied, trained with its labels and scored once.

    Args:
        task: The pictures are read again in every epoch.
        train: Settings of the loop.
    """
    torch.manual_seed(task.seed)
    method = Classifier(copy.deepcopy(task.backbone), len(task.classes)).to(task.accelerator.device)
    size = task.backbone.image_size
    with tempfile.TemporaryDirectory() as scratch:
        job = Fit(
            train=train,
            dataset=ViewDataset(task.train_images, method.views(size), task.seed),
            accelerator=task.accelerator,
            folder=RunFolder(Path(scratch)),
            num_workers=task.num_workers,
            channels_last=is_convolutional(method.backbone.model),
            title="finetune",
        )
        fit(method, job)
    task.accelerator.free_memory()
    found = extract(
        method.backbone,
        task.test_images,
        task.accelerator,
        crop_pct=task.crop_pct,
        num_workers=task.num_workers,
        read=lambda backbone, images: method.classifier(backbone(images)),
    )
    predicted = found.features.argmax(dim=1).numpy()
    settings = {
        **asdict(train),
        "backbone_rate": BACKBONE_RATE,
        "augmentation": asdict(CROPS),
        "seed": task.seed,
    }
    return [classified("finetune_top1", predicted, task.test, settings)]


class Classifier(Method):
    """Cross entropy of a linear classifier on the pooled features.

    Args:
        backbone: Trained with it, at a tenth of its rate.
        num_classes: Rows of the classifier.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone)
        self.classifier = nn.Linear(backbone.num_features, num_classes)

    def views(self, image_size: int) -> Views:
        """One random crop with its label."""
        return LabelledView(image_size)

    def forward(self, batch: Batch) -> MethodOutput:
        """Cross entropy, and the share that is right."""
        images = self.backbone.normalize(batch["images"][:, 0])
        logits = self.classifier(self.backbone(images))
        right = (logits.argmax(dim=1) == batch["label"]).float().mean()
        loss = F.cross_entropy(logits, batch["label"])
        return MethodOutput(loss, {"train/accuracy": right.detach()})

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """The classifier at the full rate, the backbone at a share of it."""
        yield {"params": list(self.backbone.parameters()), "lr_scale": BACKBONE_RATE}
        yield {"params": list(self.classifier.parameters())}


@dataclass(frozen=True)
class LabelledView:
    """`images` (1, s, s, 3) uint8 and `label`."""

    size: int

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """A random crop of one sample."""
        assert "label" in sample
        views = RandomViews(self.size, (CROPS,), (None,))
        return {**views(sample, generator), "label": sample["label"]}
