"""Keypoint probe: where are beak, tail, left leg? A ridge regression on the last feature map.

Our choice, since the field shares no protocol: the last map is pooled to 4 x 4 means, and a ridge
regression for each keypoint, fitted on the training pictures that show it, gives its x and y as
shares of the crop. Score: PCK@0.1, the share of visible keypoints that are found within a tenth of
the crop's side. What the mean place of each keypoint would score, without looking at the picture,
is in the settings.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fg_ssl_zoo.data.loader import image_loader
from fg_ssl_zoo.data.sample import Images, Sample
from fg_ssl_zoo.evaluation.features import Layer, extract
from fg_ssl_zoo.evaluation.task import Outcome, Task

GRID = 4
WITHIN = 0.1
PENALTY = 1e-2
"""Weight of the L2 penalty, as a share of the mean squared length of the centred features."""


def keypoints(task: Task) -> list[Outcome]:
    """`keypoints_pck`: for each test picture the share of its visible keypoints that are found.

    Raises:
        ValueError: The pictures carry no keypoints.
    """
    names = keypoint_names(task.train_images)
    train, test = (
        extract(
            task.backbone, images, task.accelerator,
            crop_pct=task.crop_pct, num_workers=task.num_workers, read=Layer(-1, GRID),
        ).features
        for images in (task.train_images, task.test_images)
    )  # fmt: skip
    seen, truth = (
        points_of(images, task.crop_pct, task.num_workers)
        for images in (task.train_images, task.test_images)
    )
    values = found_share(ridge_points(train, seen, test), truth)
    blind = mean_places(seen).expand(len(truth), -1, -1)
    settings = {
        "grid": GRID, "within": WITHIN, "penalty": PENALTY, "keypoints": names,
        "mean_place": float(np.nanmean(found_share(blind, truth))),
    }  # fmt: skip
    hidden = int(np.isnan(values).sum())
    notes = (f"{hidden} test pictures show no keypoint",) if hidden else ()
    return [Outcome("keypoints_pck", values, None, settings, notes)]


def keypoint_names(images: Images) -> list[str]:
    """Names of the keypoints that the pictures carry.

    Raises:
        ValueError: They carry none.
    """
    names: list[str] = getattr(images, "keypoints", [])
    if not names:
        raise ValueError(
            f"{images.name} has no keypoints; drawn, the official CUB_200_2011 folder and folders "
            "with a parts.csv have (docs/data.md)"
        )
    return names


def ridge_points(
    train: Float[Tensor, "n d"], seen: Float[Tensor, "n k 3"], test: Float[Tensor, "m d"]
) -> Float[Tensor, "m k 2"]:
    """Predicted places; each keypoint is fitted on the pictures where it is visible.

    Solved in the space of the pictures (dual form), as there are fewer of them than features. The
    features are centred on the pictures of each fit, so that the intercept has no penalty.
    """
    train, test, seen = train.double(), test.double(), seen.double()
    gram, across = train @ train.T, test @ train.T
    penalty = PENALTY * (train - train.mean(dim=0)).square().sum(dim=1).mean()
    places = mean_places(seen)
    found = places.expand(len(test), -1, -1).clone()
    for k in range(seen.shape[1]):
        rows = seen[:, k, 2] > 0
        if rows.any():
            inner, outer = gram[rows][:, rows], across[:, rows]
            outer = outer - outer.mean(dim=1, keepdim=True) - inner.mean(dim=0) + inner.mean()
            inner = inner - inner.mean(dim=1, keepdim=True) - inner.mean(dim=0) + inner.mean()
            damped = inner + penalty * torch.eye(len(inner), dtype=inner.dtype)
            found[:, k] += outer @ torch.linalg.solve(damped, seen[rows, k, :2] - places[k])
    return found


def mean_places(seen: Float[Tensor, "n k 3"]) -> Float[Tensor, "k 2"]:
    """Mean x and y of every keypoint where it is visible."""
    visible = seen[..., 2:]
    return (seen[..., :2] * visible).sum(dim=0) / visible.sum(dim=0).clamp(min=1)


def found_share(
    predicted: Float[Tensor, "m k 2"], truth: Float[Tensor, "m k 3"]
) -> Float64[np.ndarray, " m"]:
    """Share of the visible keypoints within reach; NaN for pictures that show none."""
    distance = (predicted.double() - truth[..., :2].double()).norm(dim=-1)
    visible = truth[..., 2] > 0
    hits = ((distance <= WITHIN) & visible).sum(dim=1).double()
    return (hits / visible.sum(dim=1)).numpy()


def points_of(images: Images, crop_pct: float, num_workers: int = 0) -> Float[Tensor, "n k 3"]:
    """Keypoints of all readable pictures: x, y in 0..1 of the centre crop, and visible in it."""
    loader = image_loader(
        images, PointsInCrop(crop_pct), range(len(images)), batch_size=256, num_workers=num_workers
    )
    return torch.cat([batch["keypoints"] for batch in loader if batch])


@dataclass(frozen=True)
class PointsInCrop:
    """`keypoints` (k, 3) as shares of the centre crop; one outside of it is not visible."""

    crop_pct: float

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """The keypoints of one sample."""
        assert "keypoints" in sample
        height, width = sample["image"].shape[:2]
        side = min(height, width) * self.crop_pct
        points = sample["keypoints"].copy()
        points[:, :2] = (points[:, :2] - 0.5) * (width, height) / side + 0.5
        points[:, 2] *= ((points[:, :2] >= 0) & (points[:, :2] <= 1)).all(axis=1)
        return {"keypoints": np.nan_to_num(points)}
