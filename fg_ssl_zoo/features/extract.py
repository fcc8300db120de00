"""Features of every picture of a set, the ground of all cheap protocols."""

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
"""Normalised images (b, 3, h, w) become features (b, d)."""


@dataclass(frozen=True)
class Features:
    """What a backbone says of a set.

    Attributes:
        features: (n, d) float32 on the CPU, in the order of the set.
        labels: (n,) int64, or `None`.
        indices: (n,) which pictures these are; those that cannot be decoded are missing.
    """

    features: Tensor
    labels: Tensor | None
    indices: Tensor


def centre_view(backbone: Backbone, crop_pct: float | None = None) -> CentreView:
    """How a model is shown a picture: as its exported config says, or with another `crop_pct`."""
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
    """Pooled features in evaluation mode; each process takes a share, every process gets all.

    Args:
        backbone: Not wrapped.
        images: Read through a centre crop of the backbone's size.
        accelerator: Its device and precision are used.
        crop_pct: Share of the shorter side that the crop keeps; the model's own when not given.
        max_images: Take this many, evenly spaced over the set.
        batch_size: Of the forward passes.
        num_workers: Loader processes.
        read: What is taken from the backbone; its pooled features by default.
        title: Of the progress.
        lines_every: As of `progress.shown`.
    """
    mine = evenly(len(images), max_images)[rank() :: world_size()]
    features, indices = torch.zeros(0, backbone.num_features), torch.zeros(0, dtype=torch.int64)
    done = 0
    for rows, which in stream(
        backbone, images, accelerator, mine,
        crop_pct=crop_pct, batch_size=batch_size, num_workers=num_workers, read=read,
        title=title, lines_every=lines_every,
    ):  # fmt: skip
        if not done:  # made once: what is kept between the passes splits the memory they use again
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
    """Features of these pictures in this process, a batch at a time; arguments as `extract`.

    Yields:
        For every `batch_size` of the indices, (b, d) float32 on the CPU and (b,) which pictures
        these are; what cannot be decoded is missing, and all of a batch may be.
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
    """A line for each picture that is missing from features because it cannot be read.

    Args:
        images: The set.
        found: Its features.
        asked: Pictures that were to be read; all when not given.

    Raises:
        TooManyCorruptImages: Not one picture can be read.
    """
    asked = range(len(images)) if asked is None else asked
    missing = sorted({*asked} - {*found.indices.tolist()})
    lines = [why_unreadable(images, index) for index in missing]
    if lines and len(lines) == len(asked):
        raise TooManyCorruptImages(
            f"none of the {len(lines)} pictures of {images.name} can be read ({some(lines)}); "
            "replace or remove them"
        )
    return lines


def few_unreadable(images: Images, found: Features) -> list[str]:
    """`unreadable`, for scores that would not mean anything without many pictures or a class.

    Raises:
        TooManyCorruptImages: More than one picture in a hundred, or every picture of a class.
    """
    lines = unreadable(images, found)
    if len(lines) > MOST_CORRUPT * len(images):
        raise TooManyCorruptImages(
            f"{len(lines)} of {len(images)} pictures of {images.name} cannot be read, more than "
            f"{MOST_CORRUPT:.0%} ({some(lines)}); replace or remove them"
        )
    if images.labels is not None:
        lost = {*images.labels.tolist()} - {*images.labels[found.indices].tolist()}
        if lost:
            names = ", ".join(images.classes[label] for label in sorted(lost)[:3])
            raise TooManyCorruptImages(
                f"{images.name}: no picture of class {names} can be read ({some(lines)}); "
                "replace them, or remove the class"
            )
    return lines


def some(lines: Sequence[str]) -> str:
    """The first three of some lines, for a message of one."""
    return "; ".join(lines[:3]) + ("; ..." if len(lines) > 3 else "")


def any_readable(images: Images, indices: Iterable[int]) -> bool:
    """Whether a picture that could not be read once can be now: repaired, or the bound is higher.

    Args:
        images: The set.
        indices: Those that are missing from features that were kept.
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
        number: Stage of a CNN or block of a ViT; negative ones count from the end.
        grid: The map is pooled to grid x grid means, 1 being one mean over all of it.
    """

    number: int = -1
    grid: int = 1

    def __call__(
        self, backbone: Backbone, images: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b _"]:
        """(b, d * grid * grid)."""
        (found,) = backbone.feature_maps(images, [self.number])
        return nn.functional.adaptive_avg_pool2d(found, self.grid).flatten(1)


def evenly(count: int, most: int | None) -> list[int]:
    """At most `most` numbers of 0..count-1, evenly spaced."""
    if most is None or most >= count:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, most).round()]


def ready(backbone: Backbone, accelerator: Accelerator) -> Backbone:
    """The same backbone for features: on its device, evaluating, in the layout that is fast."""
    backbone.to(accelerator.device).eval()
    if is_convolutional(backbone.model):
        nn.Module.to(backbone, memory_format=torch.channels_last)
    return backbone
