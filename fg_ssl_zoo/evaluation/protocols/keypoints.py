"""Keypoint probe: ridge regression of keypoint positions from the last feature map.

    fgssl eval MODEL --data cub --protocols keypoints --keypoints shots=[10,50] draws=3

Our choice, since there is no common protocol: the last map is averaged to 4 x 4 cells. One ridge
regression per keypoint, fitted on the training images that show it, predicts x and y as shares of
the crop. Score: PCK@0.1, the share of visible keypoints that are predicted within a tenth of the
crop's side.

It is fitted on all training images, and on several small random lists of them (at least two
images). A keypoint that no image of a list shows counts as not found. The settings hold the score
of the mean position of each keypoint, which does not look at the image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fg_ssl_zoo.config import Count
from fg_ssl_zoo.evaluation.parts.points import keypoint_names, points_of
from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task
from fg_ssl_zoo.features.extract import Layer, centre_view, extract
from fg_ssl_zoo.metrics import Metric

GRID = 4
WITHIN = 0.1
PENALTY = 1e-2
"""Weight of the L2 penalty relative to the mean squared length of the centred features."""


@dataclass(frozen=True)
class Keypoints:
    """Options of the protocol.

    Attributes:
        shots: Numbers of training images of the few-shot fits. Numbers above the size of the data
            set are left out and named in the notes.
        draws: Number of random lists of each size; a smaller list is the beginning of a larger one.
    """

    shots: tuple[Annotated[int, Ge(2)], ...] = (5, 10, 50, 150)
    draws: Count = 5


STANDARD = Keypoints()


def keypoints(task: Task, options: Keypoints = STANDARD) -> list[Outcome]:
    """`keypoints_pck`, `keypoints_5_pck`, ...: share of the visible keypoints that are found.

    Args:
        task: The last feature maps of its images are read, not the pooled features.
        options: Sizes and number of the few-shot lists.

    Raises:
        ValueError: The images have no keypoints, or visible ones outside of the image.
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
        points_of(images, centre_view(task.backbone, task.crop_pct), task.num_workers)
        for images in (task.train_images, task.test_images)
    )
    fitted = _Fits(names, train, seen, test, truth)
    total = len(train)
    left_out = [f"keypoints_{count}_pck" for count in options.shots if count > total]
    notes = [f"no {', '.join(left_out)}: there are {total} training images"] if left_out else []
    outcomes = [fitted.outcome("keypoints_pck", [torch.arange(total)], {}, notes)]
    seeds = task.draw_seeds(options.draws)
    for count in (shot for shot in options.shots if shot <= total):
        rows = [few_shot_rows(total, count, seed) for seed in seeds]
        said = {"shots": count, "draws": options.draws, "seed": task.seed}
        outcomes.append(fitted.outcome(f"keypoints_{count}_pck", rows, said))
    return outcomes


def few_shot_rows(total: int, count: int, seed: int) -> Int64[Tensor, " count"]:
    """Draw `count` of the readable training images; a smaller count gives a subset of a larger one.

    The draw depends only on the seed and the number of images, so it is the same for all models.
    """
    return torch.from_numpy(np.random.default_rng([seed, total]).permutation(total)[:count])


@dataclass(frozen=True)
class _Fits:
    """The data that all fits share."""

    names: list[str]
    train: Float[Tensor, "n d"]
    seen: Float[Tensor, "n k 3"]
    test: Float[Tensor, "m d"]
    truth: Float[Tensor, "m k 3"]

    def outcome(
        self,
        metric: str,
        draws: list[Int64[Tensor, " _"]],
        said: dict[str, Any],
        notes: Sequence[str] = (),
    ) -> Outcome:
        """Share of keypoints found, averaged over fits on these rows of the training images."""
        fits = [ridge_points(self.train[rows], self.seen[rows], self.test) for rows in draws]
        values = np.stack([found_share(fit, self.truth) for fit in fits])
        blind = np.stack([self._blind(rows) for rows in draws])
        settings = {
            "grid": GRID, "within": WITHIN, "penalty": PENALTY, "keypoints": self.names, **said,
            "mean_place": _over_pictures(blind).mean().item(),
        }  # fmt: skip
        if said:
            settings["std_over_draws"] = _over_pictures(values).std().item()
            settings["mean_place_std_over_draws"] = _over_pictures(blind).std().item()
        lines = [*notes, *self._unseen(draws)]
        if hidden := int(np.isnan(values[0]).sum()):
            lines.append(f"{hidden} test images show no keypoint")
        return Outcome(metric, values.mean(axis=0), None, settings, tuple(lines))

    def _blind(self, rows: Int64[Tensor, " _"]) -> Float64[np.ndarray, " m"]:
        places = mean_places(self.seen[rows]).expand(len(self.truth), -1, -1)
        return found_share(places, self.truth)

    def _unseen(self, draws: list[Int64[Tensor, " _"]]) -> Iterator[str]:
        """A line for every keypoint of the test images that is missing in some draw."""
        tested = (self.truth[..., 2] > 0).any(dim=0)
        lacking = torch.stack([~(self.seen[rows, :, 2] > 0).any(dim=0) for rows in draws])
        for name, there, count in zip(
            self.names, tested.tolist(), lacking.sum(dim=0).tolist(), strict=True
        ):
            if there and count:
                yield f"{name}: shown by no image of {count} of {len(draws)} draws, not found"


def _over_pictures(values: Float64[np.ndarray, "r m"]) -> Float64[np.ndarray, " r"]:
    """Mean of every draw over the images that show keypoints; 0 if none does."""
    scored = values[:, ~np.isnan(values[0])]
    return scored.sum(axis=1) / max(scored.shape[1], 1)


def ridge_points(
    train: Float[Tensor, "n d"], seen: Float[Tensor, "n k 3"], test: Float[Tensor, "m d"]
) -> Float[Tensor, "m k 2"]:
    """Predicted positions; each keypoint is fitted on the images where it is visible.

    If one image shows a keypoint, its position is predicted; if none does, the prediction is NaN.
    Solved in the dual form, since there are fewer images than features. The features are centred
    on the images of each fit, so the intercept has no penalty.
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
    """Mean x and y of every keypoint over the images that show it; NaN if none does."""
    visible = seen[..., 2:]
    return (seen[..., :2] * visible).sum(dim=0) / visible.sum(dim=0)


def found_share(
    predicted: Float[Tensor, "m k 2"], truth: Float[Tensor, "m k 3"]
) -> Float64[np.ndarray, " m"]:
    """Share of the visible keypoints that are found; NaN for images that show none.

    A keypoint without a prediction (NaN) counts as not found.
    """
    distance = (predicted.double() - truth[..., :2].double()).norm(dim=-1)
    visible = truth[..., 2] > 0
    hits = ((distance <= WITHIN) & visible).sum(dim=1).double()
    return (hits / visible.sum(dim=1)).numpy()


PROTOCOL = Protocol(
    keypoints,
    metrics=(
        Metric("keypoints_pck", "keypoints", detail="PCK@0.1, all"),
        Metric("keypoints_{}_pck", "keypoints", detail="PCK@0.1, {} images"),
    ),
    summary="ridge regression from the last feature map, averaged to 4 x 4, fitted on all "
    "training images or on N; share of keypoints found within a tenth of the crop's "
    "side",
    options=Keypoints,
    needs_labels=False,
    reads="network",
    check=lambda train, test: keypoint_names(train),
)
