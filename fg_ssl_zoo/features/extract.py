"""Compute the features of all images of a data set."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.datasets import why_unreadable
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import TooManyCorruptImages, image_loader
from fg_ssl_zoo.data.sample import CorruptImage, Images
from fg_ssl_zoo.engine.hardware import is_convolutional
from fg_ssl_zoo.engine.loop import MOST_CORRUPT
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.ops.distributed import rank, world_size

Read = Callable[[Backbone, Tensor], Tensor]
"""Function of normalised images (b, 3, h, w) that returns features (b, d)."""


@dataclass(frozen=True)
class Features:
    """Features of a data set.

    Attributes:
        features: (n, d) float32 on the CPU, in the order of the data set.
        labels: (n,) int64, or `None`.
        indices: (n,) numbers of these images in the data set; unreadable images are missing.
    """

    features: Tensor
    labels: Tensor | None
    indices: Tensor


def centre_view(backbone: Backbone, crop_pct: float | None = None) -> CentreView:
    """The centre crop of a model: as in its exported config, or with another `crop_pct`."""
    changed = {"crop_pct": crop_pct} if crop_pct else {}
    return CentreView(**{**backbone.centre_view, **changed})


def extract(
    backbone: Backbone,
    images: Images,
    accelerator: Accelerator,
    *,
    crop_pct: float | None = None,
    max_images: int | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    read: Read = Backbone.__call__,
    title: str = "features",
    lines_every: float | None = None,
) -> Features:
    """Pooled features in evaluation mode; each process computes a share and receives all.

    Args:
        backbone: Backbone without a DDP wrapper.
        images: Read through a centre crop of the backbone's size.
        accelerator: Its device and precision are used.
        crop_pct: Share of the shorter side that the crop keeps; the model's own when not given.
        max_images: Largest number of images, evenly spaced over the data set.
        batch_size: Batch size of the forward passes.
        num_workers: Loader processes.
        read: Function that computes the features; pooled features by default.
        title: Title of the progress bar.
        lines_every: As for `progress.shown`.
    """
    mine = evenly(len(images), max_images)[rank() :: world_size()]
    features, indices = torch.zeros(0, backbone.num_features), torch.zeros(0, dtype=torch.int64)
    done = 0
    for rows, which in stream(
        backbone, images, accelerator, mine,
        crop_pct=crop_pct, batch_size=batch_size, num_workers=num_workers, read=read,
        title=title, lines_every=lines_every,
    ):  # fmt: skip
        if not done:  # gathered once, since small tensors kept between batches fragment the memory
            features, indices = rows.new_empty(len(mine), rows.shape[1]), which.new_empty(len(mine))
        features[done : done + len(rows)], indices[done : done + len(rows)] = rows, which
        done += len(rows)
    features, indices = features[:done], indices[:done]
    if world_size() > 1:
        gathered = gather_object([(features, indices)])
        features = torch.cat([part for part, _ in gathered])
        indices = torch.cat([part for _, part in gathered])
    order = indices.argsort()
    features, indices = features[order].clone(), indices[order]
    labels = images.labels
    return Features(
        features=features,
        labels=None if labels is None else torch.from_numpy(np.asarray(labels))[indices],
        indices=indices,
    )


def stream(
    backbone: Backbone,
    images: Images,
    accelerator: Accelerator,
    indices: Sequence[int],
    *,
    crop_pct: float | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    read: Read = Backbone.__call__,
    title: str = "features",
    lines_every: float | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of these images in this process, batch by batch; arguments as for `extract`.

    Yields:
        For every `batch_size` indices: (b, d) float32 on the CPU, and (b,) numbers of the images.
        Unreadable images are missing; a batch may be empty.
    """
    loader = image_loader(
        images, centre_view(backbone, crop_pct), indices,
        batch_size=batch_size, num_workers=num_workers, title=title, lines_every=lines_every,
    )  # fmt: skip
    with evaluating(backbone):
        for batch in loader:
            if not batch:
                yield torch.zeros(0, backbone.num_features), torch.zeros(0, dtype=torch.int64)
                continue
            with accelerator.autocast(), torch.inference_mode():
                pixels = batch["image"].to(accelerator.device, non_blocking=True)
                features = read(backbone, backbone.normalize(pixels)).float().cpu()
            yield features, batch["index"]


def unreadable(images: Images, found: Features, asked: Sequence[int] | None = None) -> list[str]:
    """A line for each image without features because it is unreadable.

    Args:
        images: The data set.
        found: Its features.
        asked: Numbers of the requested images; all when not given.

    Raises:
        TooManyCorruptImages: All images are unreadable.
    """
    asked = range(len(images)) if asked is None else asked
    missing = sorted({*asked} - {*found.indices.tolist()})
    lines = [why_unreadable(images, index) for index in missing]
    if lines and len(lines) == len(asked):
        raise TooManyCorruptImages(
            f"none of the {len(lines)} images of {images.name} can be read ({some(lines)}); "
            "replace or remove them"
        )
    return lines


def few_unreadable(images: Images, found: Features) -> list[str]:
    """`unreadable`, for scores: refuses data with many unreadable images.

    Raises:
        TooManyCorruptImages: More than 1 % of the images, or all images of a class.
    """
    lines = unreadable(images, found)
    if len(lines) > MOST_CORRUPT * len(images):
        raise TooManyCorruptImages(
            f"{len(lines)} of {len(images)} images of {images.name} cannot be read, more than "
            f"{MOST_CORRUPT:.0%} ({some(lines)}); replace or remove them"
        )
    if images.labels is not None:
        lost = {*images.labels.tolist()} - {*images.labels[found.indices].tolist()}
        if lost:
            names = ", ".join(images.classes[label] for label in sorted(lost)[:3])
            raise TooManyCorruptImages(
                f"{images.name}: no image of class {names} can be read ({some(lines)}); "
                "replace them, or remove the class"
            )
    return lines


def some(lines: Sequence[str]) -> str:
    """The first three lines, joined for a one-line message."""
    return "; ".join(lines[:3]) + ("; ..." if len(lines) > 3 else "")


def any_readable(images: Images, indices: Iterable[int]) -> bool:
    """Whether an image that was unreadable is readable now (repaired, or a higher pixel limit).

    Args:
        images: The data set.
        indices: Numbers of the images without stored features.
    """
    for index in indices:
        with contextlib.suppress(CorruptImage):
            images[index]
            return True
    return False


@dataclass(frozen=True)
class Layer:
    """Reads the mean over one feature map instead of the pooled features.

    Attributes:
        number: Stage of a CNN or block of a ViT; negative numbers count from the end.
        grid: The map is averaged to grid x grid cells; 1 is the mean over the whole map.
    """

    number: int = -1
    grid: int = 1

    def __call__(
        self, backbone: Backbone, images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b _"]:
        """Means of the map, (b, d * grid * grid)."""
        (found,) = backbone.feature_maps(images, [self.number])
        return nn.functional.adaptive_avg_pool2d(found, self.grid).flatten(1)


def evenly(count: int, most: int | None) -> list[int]:
    """At most `most` numbers of 0..count-1, evenly spaced."""
    if most is None or most >= count:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, most).round()]


def ready(backbone: Backbone, accelerator: Accelerator) -> Backbone:
    """Prepare the backbone for features: device, evaluation mode, fast memory layout."""
    backbone.to(accelerator.device).eval()
    if is_convolutional(backbone.model):
        nn.Module.to(backbone, memory_format=torch.channels_last)
    return backbone
