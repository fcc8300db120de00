"""The first model of a page, the images it is applied to, and its predictions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import printable
from fg_ssl_zoo.data.loader import resolve_num_workers
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.candidates import opened, row_name
from fg_ssl_zoo.evaluation.evaluate import Evaluation, make_task
from fg_ssl_zoo.evaluation.report.pictures import Thumbnails
from fg_ssl_zoo.features.cache import features_of
from fg_ssl_zoo.features.extract import (
    Features,
    Layer,
    Read,
    centre_view,
    few_unreadable,
    ready,
)
from fg_ssl_zoo.ops.distributed import world_size


@dataclass(frozen=True)
class InspectedModel:
    """The first model of a page and its images.

    Attributes:
        name: Name of the model.
        backbone: The backbone on its device.
        read: Function that computes its features.
        classes: Class names as shown on the page; empty without labels.
        seen: Features of the images on the page: the test images, or all images without labels.
        seen_pictures: The images of `seen`.
        known: Features that neighbours are searched in: the training images, or `seen` itself.
        known_pictures: The images of `known`.
        linear, knn: Class numbers that two classifiers predict for `seen`; `None` without labels.
        device: Device of the forward passes.
        seed: Seed of every random draw.
    """

    name: str
    backbone: Backbone
    read: Read
    classes: list[str]
    seen: Features
    seen_pictures: Thumbnails
    known: Features
    known_pictures: Thumbnails
    linear: Int64[np.ndarray, " m"] | None
    knn: Int64[np.ndarray, " m"] | None
    device: torch.device
    seed: int = 0

    @property
    def labels(self) -> Int64[np.ndarray, " m"] | None:
        """True class numbers of `seen`."""
        labels = self.seen.labels
        return None if labels is None or self.linear is None else labels.numpy()

    def file(self, row: int) -> str:
        """File name of an image of the page."""
        return self.seen_pictures.name(int(self.seen.indices[row]))

    def uri(self, row: int, size: int) -> str:
        """An image of the page as a data URI."""
        return self.seen_pictures.uri(int(self.seen.indices[row]), size)

    def inputs(self, rows: Sequence[int]) -> Float[Tensor, "b 3 s s"]:
        """Images of the page as the backbone reads them."""
        size = self.backbone.image_size
        crops = [self.seen_pictures.pixels(int(self.seen.indices[row]), size) for row in rows]
        pixels = torch.from_numpy(np.stack(crops)).to(self.device)
        return self.backbone.normalize(pixels)


def labelled_model(
    words: str,
    evaluation: Evaluation,
    train: Images,
    test: Images,
    accelerator: Accelerator,
    *,
    cache: Path | None = None,
) -> InspectedModel:
    """The first model of an evaluation; its features come from the cache of that evaluation."""
    settings = evaluation.settings
    backbone, layer = opened(words, settings["image_size"], seed=settings["seed"])
    task = make_task(
        backbone, train, test, accelerator,
        crop_pct=settings["crop_pct"], layer=layer, seed=settings["seed"], cache=cache,
    )  # fmt: skip
    first, view = evaluation.rows[0], centre_view(backbone, task.crop_pct)
    return InspectedModel(
        name=first.name,
        backbone=backbone,
        read=_reader(layer),
        classes=readable(task.classes),
        seen=task.test,
        seen_pictures=Thumbnails(test, view),
        known=task.train,
        known_pictures=Thumbnails(train, view),
        linear=first.outcomes["linear_top1"].predictions,
        knn=first.outcomes["knn_top1"].predictions,
        device=accelerator.device,
        seed=task.seed,
    )


def unlabelled_model(
    words: str,
    images: Images,
    accelerator: Accelerator,
    *,
    image_size: int | None,
    crop_pct: float | None,
    seed: int,
    cache: Path | None,
) -> InspectedModel:
    """A model on images without labels; each image can be a neighbour of the others."""
    backbone, layer = opened(words, image_size, seed=seed)
    ready(backbone, accelerator)
    workers = resolve_num_workers("auto", world_size())
    features = features_of(
        backbone, images, accelerator,
        crop_pct=crop_pct, layer=layer, num_workers=workers, cache=cache,
    )  # fmt: skip
    few_unreadable(images, features)  # refuses more than 1 % unreadable images
    pictures = Thumbnails(images, centre_view(backbone, crop_pct))
    return InspectedModel(
        name=row_name(words, backbone, pretrained=True),
        backbone=backbone,
        read=_reader(layer),
        classes=[],
        seen=features,
        seen_pictures=pictures,
        known=features,
        known_pictures=pictures,
        linear=None,
        knn=None,
        device=accelerator.device,
        seed=seed,
    )


def _reader(layer: int | None) -> Read:
    return Backbone.__call__ if layer is None else Layer(layer)


def readable(classes: Sequence[str]) -> list[str]:
    """Class names without number and with spaces: `001.Black_footed_Albatross`.

    The names are not changed if two of them would become equal.
    """
    classes = [printable(name) for name in classes]
    names = [re.sub(r"^\d+\.", "", name).replace("_", " ").strip() or name for name in classes]
    return names if len(set(names)) == len(names) else list(classes)
