"""Keypoints of images: names, and positions in the image and in its centre crop."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fg_ssl_zoo.data.datasets import image_name
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import image_loader
from fg_ssl_zoo.data.sample import Images, Sample, keypoints_known


def keypoint_names(images: Images) -> list[str]:
    """Names of the keypoints of the images.

    Raises:
        ValueError: They have none.
    """
    names = keypoints_known(images)
    if not names:
        raise ValueError(
            f"{images.name} has no keypoints; drawn, the official CUB_200_2011 folder and folders "
            "with a parts.csv have keypoints (docs/data.md)"
        )
    return names


def points_of(images: Images, view: CentreView, num_workers: int = 0) -> Float[Tensor, "n k 3"]:
    """Keypoints of all readable images: x, y in 0..1 of the centre crop, and visible in it.

    Raises:
        ValueError: A visible keypoint lies outside of its image.
    """
    loader = image_loader(
        images,
        PointsInCrop(view),
        range(len(images)),
        batch_size=256,
        num_workers=num_workers,
        title="keypoints",
    )
    batches = [batch for batch in loader if batch]
    whole, indices = (torch.cat([batch[key] for batch in batches]) for key in ("whole", "index"))
    refuse_points_outside(images, whole, indices)
    return torch.cat([batch["keypoints"] for batch in batches])


def refuse_points_outside(
    images: Images, points: Float[Tensor, "n k 3"], indices: Int64[Tensor, " n"]
) -> None:
    """Refuse visible keypoints outside of their image.

    Args:
        images: The data set.
        points: x, y as shares of the image, and whether the keypoint is visible.
        indices: Numbers of these images in the data set.

    Raises:
        ValueError: Some are outside; the message counts them and names the first.
    """
    off = ((points[..., :2] < 0) | (points[..., :2] > 1)).any(dim=-1) & (points[..., 2] > 0)
    if off.any():
        row, k = off.nonzero()[0].tolist()
        x, y = points[row, k, :2].tolist()
        raise ValueError(
            f"{images.name}: {int(off.sum())} visible keypoints lie outside of their image, as "
            f"{keypoint_names(images)[k]} of {image_name(images, int(indices[row]))} at x {x:.3g}, "
            f"y {y:.3g} (shares of the image)"
        )


@dataclass(frozen=True)
class PointsInCrop:
    """`keypoints` (k, 3) as shares of the centre crop; keypoints outside of it are not visible.

    `whole` holds the same keypoints as shares of the image.
    """

    view: CentreView

    def __call__(self, sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
        """The keypoints of one sample."""
        assert "keypoints" in sample
        height, width = sample["image"].shape[:2]
        tall, wide, top, left = self.view.place(height, width)
        points = sample["keypoints"].copy()
        points[:, :2] = (points[:, :2] * (wide, tall) - (left, top)) / self.view.size
        points[:, 2] *= ((points[:, :2] >= 0) & (points[:, :2] <= 1)).all(axis=1)
        return {"keypoints": np.nan_to_num(points), "whole": np.nan_to_num(sample["keypoints"])}
