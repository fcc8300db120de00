"""Weak dimensions: the feature dimensions that distinguish images least.

Paper: Wang, Liu, Figueroa Weston, Tian & Li, ECCV 2024 (arXiv 2407.14676), which calls them
non-discriminative and gives two criteria. All numbers are our choice, since no details were
published.

    variance     v_d of h_d over the data; relative: v_d / (mean_d^2 + eps)
    importance   a_d, mean over images of |dL/dh_d h_d| or |dL/dh_d|: Grad-CAM of the SSL loss
    S            the share with the smallest v, the share with the smallest a, their union, ...
    replacement  the values of a perturbed h' in S: h plus noise, h of another image, zero, or mean
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fg_ssl_zoo.layers.feature_statistics import FeatureBank, MovingMean, MovingMoments
from fg_ssl_zoo.ops.distributed import gather, mean_over_processes

Criterion = Literal["variance", "gradcam", "union", "intersection"]

Perturbation = Literal["gauss", "swap", "zero", "mean"]

EPS = 1e-6
"""Constant of the relative variance, in squared units of the features."""


class WeakDimensions(nn.Module):
    """The set S of weak dimensions and the statistics for its selection; equal on every process.

    Defaults and their sources are in `methods/synthesized_pairs.py`.

    Args:
        statistics: Collects the moments of features.
        width: `d`.
        criterion: Criterion for weak dimensions.
        relative: Whether the variance is divided by the squared mean.
        variance_share: Share of the dimensions that count as of low variance.
        importance_share: Share of the dimensions that count as of low importance.
        per_sample: Whether every image has its own weak dimensions, by its own importance.
        random_share: Share of S that is replaced by dimensions drawn once from all.
        every: Share of the stage after which S is selected again.
        perturbation: Kind of change, as for `replacement`.
        strength: Standard deviation of the noise, relative to the mean of all dimensions.

    Attributes:
        chosen: (d,) S, by the importance over many images. Empty before the first selection.
        overlap: () intersection over union of S and the previous S; 0 if both are empty.
        mean, variance: (d,) moments of the features at the last selection.
    """

    chosen: Tensor
    low_variance: Tensor
    mean: Tensor
    variance: Tensor
    overlap: Tensor
    window: Tensor
    drawn: Tensor

    def __init__(
        self,
        statistics: FeatureBank | MovingMoments,
        width: int,
        *,
        criterion: Criterion,
        relative: bool,
        variance_share: float,
        importance_share: float,
        per_sample: bool,
        random_share: float,
        every: float,
        perturbation: Perturbation,
        strength: float,
    ) -> None:
        super().__init__()
        self.statistics = statistics
        self.importance = MovingMean(width)
        self.criterion, self.relative = criterion, relative
        self.variance_share, self.importance_share = variance_share, importance_share
        self.per_sample, self.random_share, self.every = per_sample, random_share, every
        self.perturbation, self.strength = perturbation, strength
        for name in ("chosen", "low_variance"):
            self.register_buffer(name, torch.zeros(width, dtype=torch.bool))
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(width))
        self.register_buffer("overlap", torch.zeros(()))
        self.register_buffer("window", torch.full((), -1, dtype=torch.int64))
        self.register_buffer("drawn", torch.randperm(width))

    @torch.no_grad()
    def observe(self, h: Float[Tensor, "n d"], importance: Float[Tensor, "n d"]) -> None:
        """Add the features of this process's images and the importance of their dimensions."""
        self.statistics.push(gather(h.float()))
        self.importance.push(mean_over_processes(importance.mean(0)))

    @torch.no_grad()
    def reselect(self, progress: float) -> None:
        """Select S again if it is due at this progress."""
        window = int(progress / self.every + 1e-6)
        if window == int(self.window):
            return
        self.window.fill_(window)
        mean, variance = self.statistics.moments()
        spread = variance / (mean.square() + EPS) if self.relative else variance
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.low_variance.copy_(lowest(spread, self.variance_share))
        weak = self._combined(lowest(self.importance.value, self.importance_share))
        weak = partly_random(weak, self.drawn, self.random_share)
        both, either = (weak & self.chosen).sum(), (weak | self.chosen).sum()
        self.overlap.copy_(both / either.clamp_min(1))
        self.chosen.copy_(weak)

    def of(self, importance: Float[Tensor, "n d"]) -> Bool[Tensor, "_ d"]:
        """S of these images: one row for all, or with `per_sample` one row per image."""
        if not self.per_sample:
            return self.chosen[None]
        return self._combined(lowest(importance, self.importance_share))

    def _combined(self, low_importance: Bool[Tensor, "*n d"]) -> Bool[Tensor, "*n d"]:
        if self.criterion == "variance":
            return self.low_variance.expand_as(low_importance)
        if self.criterion == "gradcam":
            return low_importance
        if self.criterion == "union":
            return self.low_variance | low_importance
        return self.low_variance & low_importance

    @torch.no_grad()
    def replacement(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The values of h' in S, computed for all dimensions.

        Clamped at zero if no feature is negative, since a decoder after a ReLU was not trained on
        negative values.
        """
        if self.perturbation == "gauss":
            found = h + self.strength * self.variance.sqrt().mean() * torch.randn_like(h)
        elif self.perturbation == "swap":
            step = torch.randint(1, max(len(h), 2), (), device=h.device)
            found = h[(torch.arange(len(h), device=h.device) + step) % len(h)]
        else:
            found = self.mean.expand_as(h) * float(self.perturbation == "mean")
        return torch.where((h >= 0).all(), found.clamp_min(0), found)

    @torch.no_grad()
    def describe(
        self, h: Float[Tensor, "n d"], weak: Bool[Tensor, "_ d"]
    ) -> dict[str, Float[Tensor, ""]]:
        """For the log: size of S, overlap with the previous S, variances, neighbours without S."""
        return {
            "train/weak_share": weak.float().mean(),
            "train/weak_overlap": self.overlap.clone(),
            "train/variance_weak": _mean_where(self.variance, weak),
            "train/variance_kept": _mean_where(self.variance, ~weak),
            "train/neighbours_kept": neighbours_kept(h, weak),
        }


def lowest(values: Float[Tensor, "*n d"], share: float) -> Bool[Tensor, "*n d"]:
    """True at the round(share d) smallest values of each row; ties by index."""
    count = round(share * values.shape[-1])
    order = values.argsort(dim=-1, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, order[..., :count], True)


def partly_random(
    chosen: Bool[Tensor, " d"], drawn: Int[Tensor, " d"], share: float
) -> Bool[Tensor, " d"]:
    """Replace a share of the chosen dimensions by others in a random order; the size is kept.

    With a share of 1, the result is the beginning of the order: a random set of the same size,
    which does not change as long as the order is the same.

    Args:
        chosen: S.
        drawn: All dimensions in a random order.
        share: Share of S that is replaced.
    """
    count = int(chosen.sum())
    leave = round(share * count)
    ordered = chosen[drawn]
    kept = ordered & (ordered.cumsum(0) > leave)  # the first `leave` of S in that order are removed
    new = ~kept & ((~kept).cumsum(0) <= leave)
    return torch.zeros_like(chosen).scatter(0, drawn, kept | new)


@torch.no_grad()
def neighbours_kept(h: Float[Tensor, "n d"], weak: Bool[Tensor, "_ d"]) -> Float[Tensor, ""]:
    """Share of rows whose nearest other row by cosine similarity is the same without S.

    A label-free check that S does not distinguish images.

    Args:
        h: Features of a batch.
        weak: One S for all rows, or one per row; then that of the query row is used.
    """
    nearest = []
    h = h.float()
    with torch.autocast(h.device.type, enabled=False):
        for mask in (torch.ones_like(weak).float(), (~weak).float()):
            lengths = (mask @ h.square().T).sqrt().clamp_min(1e-12)  # per row and mask
            cosine = (h * mask) @ h.T / lengths
            nearest.append(cosine.fill_diagonal_(float("-inf")).argmax(1))
    return (nearest[0] == nearest[1]).float().mean()


def _mean_where(values: Float[Tensor, " d"], where: Bool[Tensor, "_ d"]) -> Float[Tensor, ""]:
    return (values * where).sum() / where.sum().clamp_min(1)
