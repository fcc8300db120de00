"""What the details of a page are about: one model, the pictures it is shown, what it says."""

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
    """The first model of a page and its pictures.

    Attributes:
        name: Of the model.
        backbone: On its device.
        read: How its features are read.
        classes: Class names as they are shown; empty without labels.
        seen: Features of the pictures that are shown: test, or all where nothing is labelled.
        seen_pictures: Those pictures.
        known: Features that neighbours come from: train, or the same again.
        known_pictures: Those pictures.
        linear, knn: Class numbers that the two classifiers name for `seen`; `None` without labels.
        device: Of the forward passes.
        seed: Of every draw.
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
        """Name of a shown picture."""
        return self.seen_pictures.name(int(self.seen.indices[row]))

    def uri(self, row: int, size: int) -> str:
        """A shown picture for an `src`."""
        return self.seen_pictures.uri(int(self.seen.indices[row]), size)

    def inputs(self, rows: Sequence[int]) -> Float[Tensor, "b 3 s s"]:
        """Shown pictures as the backbone reads them."""
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
    """The first model of an evaluation; its features are read from the files of that evaluation."""
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
    """A model on pictures without labels: every one is shown and is a neighbour of the others."""
    backbone, layer = opened(words, image_size, seed=seed)
    ready(backbone, accelerator)
    workers = resolve_num_workers("auto", world_size())
    features = features_of(
        backbone, images, accelerator,
        crop_pct=crop_pct, layer=layer, num_workers=workers, cache=cache,
    )  # fmt: skip
    few_unreadable(images, features)  # refuses more than one in a hundred
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
    """Class names without their number and with spaces: `001.Black_footed_Albatross`.

    As they are where two would become one.
    """
    classes = [printable(name) for name in classes]
    names = [re.sub(r"^\d+\.", "", name).replace("_", " ").strip() or name for name in classes]
    return names if len(set(names)) == len(names) else list(classes)
