"""Fine-tuning: train the network, or its last stage, with a new classifier.

Our choice, stored with each score: SGD, momentum 0.9, learning rate 0.01 for the backbone and 0.1
for the classifier, batch 64, 50 epochs, cosine; crops of at least a third of the image, flips.

    fgssl eval MODEL --data DATA --protocols finetune --finetune train_what=last_stage epochs=20

The other options come from SSL-Cassava (Breiki, Ridzuan & Grandhe, 2021, arXiv 2107.13973): the
last stage or the head alone, a hidden layer, dropout, and class weights.
"""

import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from annotated_types import Ge, Lt
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import parameters_behind, train_up_to_last_map
from fg_ssl_zoo.config import Count, Positive, Train, Weight
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.sample import Images, Sample, Views, refuse_single_pictures
from fg_ssl_zoo.data.views import Augmentation, RandomViews
from fg_ssl_zoo.engine.hardware import is_convolutional
from fg_ssl_zoo.engine.loop import Fit, fit
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task, classified
from fg_ssl_zoo.features.extract import extract
from fg_ssl_zoo.method import Batch, Method, MethodOutput, check_batch
from fg_ssl_zoo.metrics import Metric

Weighting = Literal["none", "inverse", "sqrt_inverse"]

CROPS = Augmentation(crop_scale=(1 / 3, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)


@dataclass(frozen=True)
class Finetune:
    """Options of the protocol.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images in one optimizer step, over all processes; all images if there are fewer.
        lr: Peak learning rate of the classifier; it does not depend on the batch size.
        backbone_rate: Learning rate of the backbone as a share of the classifier's.
        weight_decay: Weight decay of all weights except biases and norms.
        train_what: Trained modules: `all`; `last_stage` and the classifier (a ViT's last block and
            norm); or the `head` alone, which is the classifier. The others keep their weights and
            BatchNorm statistics.
        head: Classifier: one `linear` layer; `mlp`, two layers with LeakyReLU 0.2 between them; or
            `paper`, the SSL-Cassava paper's head on the last feature map.
        hidden_size: Width of the hidden layer of `mlp` and `paper`; 1,024 in the paper's code.
        dropout: Dropout before the last layer; 0.5, 0.7 and 0.9 in the paper's code.
        drop_last_blocks: Number of residual blocks removed from the end of SRGAN's generator; 2, 4,
            6 and 8 of 16 in the paper's code.
        class_weights: Weight of a class in the loss: equal (`none`), or proportional to the
            `inverse` or `sqrt_inverse` of its number of images. The mean weight over the training
            images is 1.
    """

    epochs: Positive = 50
    batch_size: Count = 64
    lr: Positive = 0.1
    backbone_rate: Positive = 0.1
    weight_decay: Weight = 1e-4
    train_what: Literal["all", "last_stage", "head"] = "all"
    head: Literal["linear", "mlp", "paper"] = "linear"
    hidden_size: Count = 1024
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    drop_last_blocks: Annotated[int, Ge(0)] = 0
    class_weights: Weighting = "none"

    @property
    def train(self) -> Train:
        """Settings of the loop."""
        return Train(
            epochs=self.epochs, batch_size=self.batch_size, optimizer="sgd", lr=self.lr,
            lr_scaling="none", weight_decay=self.weight_decay, warmup=0.02, checkpoint_every=1e9,
        )  # fmt: skip


STANDARD = Finetune()


def finetune(task: Task, options: Finetune = STANDARD) -> list[Outcome]:
    """`finetune_top1`: a copy of the backbone is trained on the labels and scored once.

    Args:
        task: The images are read again in every epoch.
        options: Options of the protocol.

    Raises:
        ValueError: The training images have no labels, or only one class.
    """
    counts = class_counts(task)
    torch.manual_seed(task.seed)
    method = Classifier(copy.deepcopy(task.backbone), counts, options).to(task.accelerator.device)
    train = train_classifier(
        method, task.train_images, options.train, task.accelerator,
        seed=task.seed, num_workers=task.num_workers,
    )  # fmt: skip
    found = extract(
        method.backbone,
        task.test_images,
        task.accelerator,
        crop_pct=task.crop_pct,
        num_workers=task.num_workers,
        read=lambda backbone, images: method.classify(images),
    )
    predicted = found.features.argmax(dim=1).numpy()
    settings = {
        **asdict(options),
        **asdict(train),
        "augmentation": asdict(CROPS),
        "seed": task.seed,
    }
    return [classified("finetune_top1", predicted, task.test, settings)]


def train_classifier(
    method: "Classifier",
    images: Images,
    train: Train,
    accelerator: Accelerator,
    *,
    seed: int,
    num_workers: int,
) -> Train:
    """Train a classifier, then set it to evaluation mode, including the head with its dropout.

    Args:
        method: The classifier, on its device.
        images: Labelled images.
        train: Settings; a batch holds all images if there are fewer than `batch_size`.
        accelerator: Device, precision and processes.
        seed: Seed of order and crops.
        num_workers: Loader processes.

    Returns:
        The settings, with the batch size that was used.
    """
    train = replace(train, batch_size=min(train.batch_size, len(images)))
    processes = accelerator.num_processes
    check_batch(method.train(), train, processes, accelerator.device, where="finetune")
    with tempfile.TemporaryDirectory() as scratch:
        job = Fit(
            train=train,
            dataset=ViewDataset(images, method.views(method.backbone.image_size), seed),
            accelerator=accelerator,
            folder=RunFolder(Path(scratch)),
            num_workers=num_workers,
            channels_last=is_convolutional(method.backbone.model),
            title="finetune",
        )
        fit(method, job)
    accelerator.free_memory()
    method.eval()
    return train


def class_counts(task: Task) -> Int64[Tensor, " c"]:
    """Number of training images of every class.

    Raises:
        ValueError: There are no labels, or only one class.
    """
    if task.train.labels is None:
        raise ValueError("finetune needs labels; put each class into a folder of its own")
    counts = task.train.labels.bincount(minlength=len(task.classes))
    if (counts > 0).sum() < 2:
        raise ValueError("finetune needs 2 classes or more; the training images have one")
    refuse_single_pictures(task.train.labels.numpy(), task.classes, "finetune")
    return counts


def weights_of(counts: Int64[Tensor, " c"], weighting: Weighting) -> Float[Tensor, " c"]:
    """Weight of each class in the loss, for `n_c` training images of class c.

        none            w_c = 1
        inverse         w_c ~ 1 / n_c           every class contributes equally
        sqrt_inverse    w_c ~ 1 / sqrt(n_c)     between the two

    Scaled so that the mean over the training images is 1: sum_c n_c w_c = sum_c n_c. A class
    without images has weight 0.
    """
    power = {"none": 0.0, "inverse": -1.0, "sqrt_inverse": -0.5}[weighting]
    n = counts.double()
    weights = torch.where(n > 0, n**power, 0.0)
    return (weights * n.sum() / (n * weights).sum()).float()


def paper_head(
    channels: int, side: int, hidden: int, dropout: float, num_classes: int
) -> nn.Sequential:
    """The classifier of SSL-Cassava's notebooks on a generator's map (b, channels, side, side).

    Convolution to 3 channels with stride 2, BatchNorm, LeakyReLU 0.2, and two linear layers on all
    pixels. SRGAN's whole generator has a map of 352 x 352 for images of 88 pixels, so the first
    linear layer has 3 * 176 * 176 * 1024 = 95 million weights.
    """
    return nn.Sequential(
        nn.Conv2d(channels, 3, 3, stride=2, padding=1),
        nn.BatchNorm2d(3),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(3 * math.ceil(side / 2) ** 2, hidden),
        nn.LeakyReLU(0.2),
        nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )


def _drop_last_blocks(backbone: Backbone, count: int) -> None:
    """Remove residual blocks from the end of SRGAN's generator.

    Raises:
        ValueError: It is another network, or no block would be left.
    """
    drop = getattr(backbone.model, "drop_last_blocks", None)
    if drop is None:
        raise ValueError(
            f"finetune.drop_last_blocks: {backbone.name} is not the generator of SRGAN "
            "(fgssl_srresnet); use 0"
        )
    drop(count)


class Classifier(Method):
    """Cross entropy of a classifier on the pooled features.

    Args:
        backbone: Trained as far as `options` says; the rest is frozen.
        counts: Number of training images of every class.
        options: Options of the protocol.
    """

    def __init__(
        self, backbone: Backbone, counts: Int64[Tensor, " c"], options: Finetune = STANDARD
    ) -> None:
        if options.drop_last_blocks:
            _drop_last_blocks(backbone, options.drop_last_blocks)
        super().__init__(backbone)
        backbone.requires_grad_(options.train_what == "all")
        if options.train_what == "last_stage":
            for parameter in parameters_behind(backbone, -2):
                parameter.requires_grad_(True)
        self.reads_map = options.head == "paper"
        hidden, dropout, last = options.hidden_size, nn.Dropout(options.dropout), len(counts)
        if self.reads_map:
            channels, side = train_up_to_last_map(backbone, backbone.image_size)
            self.classifier = paper_head(channels, side, hidden, options.dropout, last)
        elif options.head == "mlp":
            first = nn.Linear(backbone.num_features, hidden)
            self.classifier = nn.Sequential(
                first, nn.LeakyReLU(0.2), dropout, nn.Linear(hidden, last)
            )
        else:
            self.classifier = nn.Sequential(dropout, nn.Linear(backbone.num_features, last))
        self.backbone_rate = options.backbone_rate
        self.weights: Tensor
        self.register_buffer("weights", weights_of(counts, options.class_weights))

    def views(self, image_size: int) -> Views:
        """One random crop with its label."""
        return LabelledView(image_size)

    def forward(self, batch: Batch) -> MethodOutput:
        """Mean of the weighted cross entropies, and the accuracy."""
        images, labels = self.backbone.normalize(batch["images"][:, 0]), batch["label"]
        logits = self.classify(images)
        right = (logits.argmax(dim=1) == labels).float().mean()
        loss = (self.weights[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()
        return MethodOutput(loss, {"train/accuracy": right.detach()})

    def classify(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c"]:
        """Logits of normalised images."""
        if self.reads_map:
            return self.classifier(self.backbone.feature_maps(images, [-1])[0])
        return self.classifier(self.backbone(images))

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """The classifier at the full learning rate, the backbone at a share of it."""
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        yield {"params": trained, "lr_scale": self.backbone_rate}
        yield {"params": list(self.classifier.parameters())}

    def train(self, mode: bool = True) -> "Classifier":
        """Frozen modules stay in evaluation mode: no BatchNorm update, no dropout."""
        super().train(mode)
        _rest_where_frozen(self.backbone)
        return self


def _rest_where_frozen(module: nn.Module) -> None:
    """Set every module to evaluation mode whose parameters are all frozen."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _rest_where_frozen(child)


@dataclass(frozen=True)
class LabelledView:
    """`images` (1, s, s, 3) uint8 and `label`."""

    size: int

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """A random crop of one sample."""
        assert "label" in sample
        views = RandomViews(self.size, (CROPS,), (None,))
        return {**views(sample, generator), "label": sample["label"]}


PROTOCOL = Protocol(
    finetune,
    metrics=(Metric("finetune_top1", "fine-tuned top-1", main=True),),
    summary="the whole network trained by SGD: learning rate 0.01 (backbone) and 0.1 "
    "(classifier), batch 64, 50 epochs, cosine; crops of at least a third of the image,"
    " horizontal flip",
    options=Finetune,
    reads="network",
)
