"""Part discovery: agreement of parts found by clustering frozen features with annotated parts.

    fgssl eval MODEL --data cub --protocols part_discovery --part-discovery num_parts=20

The features of some training images are clustered as in PARTICLE (`parts/discovery.py`; a part
number means the same in all images). Test images are assigned to the same clusters, and
`part_scores` compares them with masks or keypoints. Discovery reads no labels: masks are read for
the score only, and keypoints of training images for the regression only.

The settings of each metric hold `by_place`, the score of the same number of fixed pieces of the
frame, which do not depend on the image. If objects fill their images, this score is high.
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
"""Side of the map that divides the frame into fixed pieces."""


@dataclass(frozen=True)
class PartDiscovery:
    """Options of the protocol; `discovery_for` gives the defaults of options that are not set.

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
        """Fields of `parts.Discovery` that differ from its defaults."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            key: value
            for key, value in given.items()
            if key not in ("pictures", "draws") and value is not None
        }


STANDARD = PartDiscovery()


def part_discovery(task: Task, options: PartDiscovery = STANDARD) -> list[Outcome]:
    """The outcomes of `part_scores`; NaN for test images that are not read.

    `parts_fg_iou` is left out if no part is background, as for a CNN.

    Args:
        task: The images are read again; the pooled features are not used.
        options: Options of the protocol.

    Raises:
        ValueError: There are neither masks nor keypoints, they are invalid, or the discovery
            options do not fit the network.
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
    """Cluster the training images once, and score the parts in the test images."""
    found = discovery_for(task.backbone, {**options.changes, "scope": "dataset", "seed": seed})
    maps: list[Tensor] = []
    for images in (shown, seen):  # the clusters of `seen` are kept until its maps are computed
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
    """Metric -> score of fixed pieces of the frame, which do not depend on the images."""
    lines = (torch.arange(SIDE) + 0.5) / SIDE
    places = torch.cartesian_prod(lines, lines)
    pieces = kmeans(places[None], num_parts, [0], restarts=5).labels.reshape(1, SIDE, SIDE) + 1
    train_maps, test_maps = (pieces.expand(len(images), -1, -1) for images in (train, test))
    return {
        outcome.metric: outcome.value for outcome in part_scores(train_maps, train, test_maps, test)
    }


def _some(indices: Tensor, options: PartDiscovery) -> np.ndarray:
    """Numbers of the images that are read, chosen among the readable ones."""
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
