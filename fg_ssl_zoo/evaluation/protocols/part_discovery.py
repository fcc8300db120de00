"""Part discovery: agreement of parts found by clustering frozen features with annotated parts.

    fgssl eval MODEL --data cub --protocols part_discovery --part-discovery num_parts=20

The features of some training pictures are clustered as PARTICLE does it (`parts/discovery.py`, with
numbers that mean the same in all pictures), the same clusters are found in test pictures, and
`part_scores` compares them with masks or keypoints. No label teaches the parts: masks are read
for the score alone, and the keypoints of training pictures for the regression alone.

What clusters of place score is in the settings of every number (`by_place`): as many pieces of the
frame, the same in all pictures. Where objects fill their pictures, that is no low floor.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fg_ssl_zoo.backbones.hypercolumns import MapName
from fg_ssl_zoo.config import Count
from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.parts.scores import part_scores, refuse_unknown_parts
from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task
from fg_ssl_zoo.features.extract import evenly
from fg_ssl_zoo.metrics import PARTS_KEYPOINT_NMI, PARTS_NMI, Metric
from fg_ssl_zoo.ops.clustering import kmeans
from fg_ssl_zoo.parts import discover_parts, discovery_for

SIDE = 64
"""Of the map of places."""


@dataclass(frozen=True)
class PartDiscovery:
    """Options of the protocol; `discovery_for` gives the defaults of those that are not given.

    Attributes:
        pictures: Number of images read from each split, evenly spaced; all if there are fewer.
        draws: Number of clusterings with different seeds; the score is their mean, and the settings
            hold the spread. A single clustering is a noisy measurement: on cub100 the NMI of one
            network was between 0.36 and 0.40 (ResNet-18, ImageNet weights).
        num_parts: Number of clusters; by default 15 for a CNN, 5 and the background for a ViT.
        layers, foreground, stride, pca, smooth: As in PARTICLE's `discovery`; the default of the
            network when not given.
    """

    pictures: Count = 1000
    draws: Count = 3
    num_parts: Count | None = None
    layers: tuple[MapName, ...] | None = None
    foreground: bool | None = None
    stride: int | None = None
    pca: int | None = None
    smooth: int | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """Fields of `parts.Discovery` with other values than its own."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: value
            for key, value in given.items()
            if key not in ("pictures", "draws") and value is not None
        }


STANDARD = PartDiscovery()


def part_discovery(task: Task, options: PartDiscovery = STANDARD) -> list[Outcome]:
    """The outcomes of `part_scores`; test pictures that are not among the chosen ones are NaN.

    `parts_fg_iou` is left out where no part is background, as for a CNN.

    Args:
        task: The pictures are read again; the pooled features are not used.
        options: The variant.

    Raises:
        ValueError: Neither masks nor keypoints, masks or keypoints that are wrong, or a discovery
            that cannot be.
    """
    refuse_unknown_parts(task.test_images)
    train, test = (_some(part.indices, options) for part in (task.train, task.test))
    seen, shown = Subset(task.train_images, train), Subset(task.test_images, test)
    row_of = {int(index): row for row, index in enumerate(task.test.indices)}
    rows = np.array([row_of[int(index)] for index in test])
    draws = [_one_draw(task, seen, shown, options, seed) for seed in task.draw_seeds(options.draws)]
    floors = by_place(draws[0][0].settings["num_parts"], seen, shown)
    outcomes = []
    for drawn in zip(*draws, strict=True):
        metric, settings = drawn[0].metric, drawn[0].settings
        values = np.full(len(task.test.indices), np.nan)
        values[rows] = np.mean([outcome.values for outcome in drawn], axis=0)
        settings = {
            **settings,
            "draws": options.draws,
            "std_over_draws": float(np.std([outcome.value for outcome in drawn])),
            "by_place": floors[metric],
            "train_pictures": len(seen),
            "test_pictures": len(shown),
        }
        outcomes.append(Outcome(metric, values, None, settings))
    return outcomes


def _one_draw(
    task: Task, seen: Images, shown: Images, options: PartDiscovery, seed: int
) -> list[Outcome]:
    """One clustering of the training pictures, and what its parts score in the test pictures."""
    found = discovery_for(task.backbone, {**options.changes, "scope": "dataset", "seed": seed})
    maps: list[Tensor] = []
    for images in (shown, seen):  # the clusters of `seen` are kept until its own maps are made
        parts = discover_parts(
            task.backbone, images, task.accelerator, found,
            learn_from=seen, num_workers=task.num_workers,
        )  # fmt: skip
        maps.append(parts.long() + (not found.foreground))  # 0 is background
    about = {"num_parts": found.num_parts, "layers": list(found.layers_of(task.backbone))}
    return [
        Outcome(outcome.metric, outcome.values, None, {**outcome.settings, **about})
        for outcome in part_scores(maps[1], seen, maps[0], shown)
        if found.foreground or outcome.metric != "parts_fg_iou"
    ]


def by_place(num_parts: int, train: Images, test: Images) -> dict[str, float]:
    """Metric -> value, of parts that are pieces of the frame and know nothing of the pictures."""
    lines = (torch.arange(SIDE) + 0.5) / SIDE
    places = torch.cartesian_prod(lines, lines)
    pieces = kmeans(places[None], num_parts, [0], restarts=5).labels.reshape(1, SIDE, SIDE) + 1
    train_maps, test_maps = (pieces.expand(len(images), -1, -1) for images in (train, test))
    return {
        outcome.metric: outcome.value for outcome in part_scores(train_maps, train, test_maps, test)
    }


def _some(indices: Tensor, options: PartDiscovery) -> np.ndarray:
    """Numbers of the pictures that are looked at, of those that can be read."""
    return indices[torch.as_tensor(evenly(len(indices), options.pictures))].numpy()


PROTOCOL = Protocol(
    part_discovery,
    metrics=(
        PARTS_NMI,
        Metric("parts_ari", "ARI of parts", main=True),
        Metric("parts_fg_nmi", "NMI of parts", detail="objects"),
        Metric("parts_fg_ari", "ARI of parts", detail="objects"),
        Metric("parts_fg_iou", "IoU of foreground", main=True),
        PARTS_KEYPOINT_NMI,
        Metric("parts_keypoint_ari", "ARI with keypoints", main=True),
        Metric(
            "parts_keypoint_error",
            "keypoint error",
            higher_is_better=False,
            main=True,
        ),
    ),
    summary="parts are discovered without labels in 1,000 training images and compared with the"
    " masks or keypoints of 1,000 test images",
    options=PartDiscovery,
    needs_labels=False,
    reads="network",
    check=lambda train, test: refuse_unknown_parts(test),
)
