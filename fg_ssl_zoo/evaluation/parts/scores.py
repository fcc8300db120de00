"""Scores of parts discovered without labels, by part masks and keypoints.

    agreement     NMI and ARI between discovered and annotated parts, over pixels or at keypoints
    foreground    IoU of all discovered parts together with all annotated parts together
    regression    keypoints predicted linearly from the centres of the discovered parts

This is the usual protocol of unsupervised part discovery: the regression is from Hung et al., 2019
(SCOPS, arXiv 1905.01298), NMI and ARI at visible keypoints from Choudhury et al., 2021
("Unsupervised part discovery from contrastive reconstruction", arXiv 2111.06349). A part number
must mean the same in all images (`scope: dataset`); 0 is the background.

A part map (h, w) of any size covers the whole image.

Deviations: the regression also reads whether a part is present (in the papers, parts are heat maps
and always present). The error is a share of the sides of the image; if images are cropped to the
object, as in cub100, these are the sides of its bounding box.
"""

import logging
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, Integer, Num
from torch import Tensor

from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import image_loader
from fg_ssl_zoo.data.sample import Images, keypoints_known, parts_known
from fg_ssl_zoo.evaluation.parts.points import PointsInCrop, refuse_points_outside
from fg_ssl_zoo.evaluation.parts.truth import part_names, usable
from fg_ssl_zoo.evaluation.protocol import Outcome
from fg_ssl_zoo.evaluation.statistics import influence_values
from fg_ssl_zoo.features.extract import evenly

_log = logging.getLogger(__name__)

SCORED = 1024
"""Number of images, evenly spaced over the data set, that are scored during training."""

PartMaps = Integer[Tensor, "n h w"]
"""Part number of every pixel, for all images of a data set in its order; 0 is background."""


def part_scores(
    train_maps: Integer[Tensor, "n h w"],
    train: Images,
    test_maps: Integer[Tensor, "m y x"],
    test: Images,
) -> list[Outcome]:
    """All scores on the test images that their masks and keypoints allow.

    With masks: `parts_nmi`, `parts_ari` over all pixels, `parts_fg_nmi`, `parts_fg_ari` over the
    pixels of annotated parts, `parts_fg_iou`. With keypoints: `parts_keypoint_nmi`,
    `parts_keypoint_ari`, and `parts_keypoint_error` (lower is better), whose regression is fitted
    on the training images.

    Args:
        train_maps: Parts discovered in the training images; read by the regression only.
        train: The training images.
        test_maps: Parts discovered in the test images.
        test: The test images.

    Raises:
        ValueError: There are neither masks nor keypoints, masks are invalid, keypoints lie outside
            of their image, or the number of maps differs from the number of images.
    """
    for maps, images, name in ((train_maps, train, "training"), (test_maps, test, "test")):
        if len(maps) != len(images):
            raise ValueError(f"{len(maps)} part maps for {len(images)} {name} images")
    refuse_unknown_parts(test)
    has_masks, has_points = (bool(getattr(test, key, [])) for key in ("parts", "keypoints"))
    num_parts = int(max(train_maps.max(), test_maps.max())) + 1
    outcomes = []
    if has_masks:
        counts = mask_contingency(test_maps, test, num_parts)
        outcomes += _agreement("parts", counts, {"over": "pixels"})
        outcomes += _agreement("parts_fg", counts[..., 1:], {"over": "pixels of true parts"})
        outcomes.append(_outcome("parts_fg_iou", foreground_iou, counts, {}))
    if has_points:
        seen, truth = keypoints_of(train), keypoints_of(test)
        counts = keypoint_contingency(test_maps, truth, num_parts)
        outcomes += _agreement("parts_keypoint", counts, {"over": "visible keypoints"})
        centres = [part_centres(maps, num_parts) for maps in (train_maps, test_maps)]
        errors = keypoint_errors(centres[0], seen, centres[1], truth)
        blind = mean_place_errors(seen, truth)
        settings = {"regression": "linear", "mean_place": float(np.nanmean(blind))}
        outcomes.append(Outcome("parts_keypoint_error", errors, None, settings))
    return outcomes


def part_agreement(maps: Integer[Tensor, "n h w"], images: Images) -> dict[str, float]:
    """`eval/part_nmi`, `eval/part_ari` of discovered parts on at most `SCORED` images, for the log.

    They compare with part masks over all pixels, or else with visible keypoints. Returns {} if
    there are neither, and {} with a warning if they cannot be used.

    Args:
        maps: Discovered parts; a number means the same part in all images.
        images: Images with or without masks and keypoints.
    """
    if not knows_parts(images):
        return {}
    try:
        return _agreement_of_some(maps, images)
    except ValueError as error:
        _log.warning("part scores are not computed: %s", error)
        return {}


def _agreement_of_some(maps: PartMaps, images: Images) -> dict[str, float]:
    chosen = np.asarray(evenly(len(images), SCORED))
    some, few = maps[torch.from_numpy(chosen)], Subset(images, chosen)
    num_parts = int(maps.max()) + 1
    if few.parts:
        counts = mask_contingency(some, few, num_parts).sum(dim=0)
    else:
        counts = keypoint_contingency(some, keypoints_of(few), num_parts).sum(dim=0)
    if not counts.any():
        return {}
    nmi, ari = normalized_mutual_information(counts), adjusted_rand_index(counts)
    return {"eval/part_nmi": nmi.item(), "eval/part_ari": ari.item()}


def knows_parts(images: Images) -> bool:
    """Whether the images have part masks or keypoints."""
    return bool(parts_known(images) or keypoints_known(images))


def refuse_unknown_parts(images: Images) -> None:
    """Refuse images that discovered parts cannot be compared with.

    Raises:
        ValueError: The images have neither part masks nor keypoints.
    """
    if not knows_parts(images):
        raise ValueError(
            f"{images.name} has neither part masks nor keypoints to score parts with (docs/data.md)"
        )


def _agreement(
    name: str, counts: Int64[Tensor, "n k p"], settings: dict[str, Any]
) -> list[Outcome]:
    return [
        _outcome(f"{name}_nmi", normalized_mutual_information, counts, settings),
        _outcome(f"{name}_ari", adjusted_rand_index, counts, settings),
    ]


def _outcome(
    metric: str, score: Any, counts: Int64[Tensor, "n k p"], settings: dict[str, Any]
) -> Outcome:
    """One value per image; NaN for images without any count."""
    scored = counts.flatten(1).sum(dim=1) > 0
    values = np.full(len(counts), np.nan)
    if scored.any():
        values[scored.numpy()] = influence_values(score, counts[scored])
    return Outcome(metric, values, None, {**settings, "num_parts": counts.shape[1] - 1})


# --------------------------------------------------------------------------- agreement


def contingency(
    found: Integer[Tensor, " m"], true: Integer[Tensor, " m"], shape: tuple[int, int]
) -> Int64[Tensor, "k p"]:
    """Contingency table: how often discovered part i coincides with annotated part j."""
    pairs = found.long() * shape[1] + true.long()
    return pairs.bincount(minlength=shape[0] * shape[1]).reshape(shape)


def mask_contingency(maps: PartMaps, images: Images, num_parts: int) -> Int64[Tensor, "n k p"]:
    """Contingency table of each image over the pixels of its mask; zeros if it is unreadable.

    Raises:
        ValueError: Masks are missing or invalid, or parts overlap.
    """
    shape = (num_parts, len(part_names(images)) + 1)
    counts = torch.zeros(len(images), *shape, dtype=torch.int64)
    for index in usable(images, range(len(images))):
        mask = images[index].get("part_mask")
        if mask is None:
            raise ValueError(
                f"{images.name}: discovered parts cannot be compared with part masks that overlap"
            )
        there = stretched(maps[index], *mask.shape)
        counts[index] = contingency(there.flatten(), torch.from_numpy(mask).flatten(), shape)
    return counts


def stretched(part_map: Integer[Tensor, "h w"], height: int, width: int) -> Int64[Tensor, "y x"]:
    """A part map resized to its image by nearest neighbour."""
    small = part_map.cpu().numpy().astype(np.uint16)
    large = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(large.astype(np.int64))


def normalized_mutual_information(counts: Num[Tensor, "k p"]) -> Float[Tensor, ""]:
    """NMI = 2 I(a; b) / (H(a) + H(b)) of a contingency table; 1 if each side has one part only.

    The normaliser is the arithmetic mean of the entropies, as in scikit-learn and the papers.
    """
    joint = counts.double() / counts.double().sum()
    rows, columns = joint.sum(dim=1), joint.sum(dim=0)
    both = _entropy(rows) + _entropy(columns)
    if both == 0:
        return joint.sum()
    return 2 * (both - _entropy(joint)) / both


def _entropy(shares: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    there = shares[shares > 0]
    return -(there * there.log()).sum()


def adjusted_rand_index(counts: Num[Tensor, "k p"]) -> Float[Tensor, ""]:
    """ARI of a contingency table (Hubert & Arabie, 1985).

    0 by chance, 1 for equal partitions, negative if worse than chance.
    """
    table = counts.double()
    together, in_rows, in_columns = (
        _pairs(part).sum() for part in (table, table.sum(dim=1), table.sum(dim=0))
    )
    expected = in_rows * in_columns / _pairs(table.sum())
    most = (in_rows + in_columns) / 2
    if most == expected:
        return table.sum() / table.sum().detach()
    return (together - expected) / (most - expected)


def _pairs(counts: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return counts * (counts - 1) / 2


def foreground_iou(counts: Num[Tensor, "k p"]) -> Float[Tensor, ""]:
    """IoU of the discovered and the annotated foreground (all numbers except 0)."""
    return counts[1:, 1:].sum() / (counts.sum() - counts[0, 0])


# --------------------------------------------------------------------------- keypoints


def keypoints_of(images: Images) -> Float[Tensor, "n k 3"]:
    """x, y as shares of the image, and visibility; all invisible if an image is unreadable.

    Raises:
        ValueError: A visible keypoint lies outside of its image.
    """
    names = keypoints_known(images)
    points = torch.zeros(len(images), len(names), 3)
    loader = image_loader(
        images,
        PointsInCrop(CentreView(size=1)),
        range(len(images)),
        batch_size=256,
        num_workers=0,
        title="keypoints",
    )
    for batch in loader:
        if batch:
            points[batch["index"]] = batch["whole"]
    refuse_points_outside(images, points, torch.arange(len(images)))
    return points


def keypoint_contingency(
    maps: PartMaps, points: Float[Tensor, "n j 3"], num_parts: int
) -> Int64[Tensor, "n k j"]:
    """Contingency table of each image: part at a visible keypoint, number of the keypoint."""
    n, height, width = maps.shape
    columns = (points[..., 0] * width).long().clamp(0, width - 1)
    rows = (points[..., 1] * height).long().clamp(0, height - 1)
    found = maps[torch.arange(n)[:, None], rows, columns]  # (n, j)
    hits = found[:, None] == torch.arange(num_parts)[:, None]
    return (hits & (points[:, None, :, 2] > 0)).long()


def part_centres(maps: PartMaps, num_parts: int) -> Float64[Tensor, "n k 3"]:
    """Centre x, y of each part as shares of the image, and 1; zeros if the part is absent.

    There are `num_parts` - 1 rows, since the background is left out.
    """
    _, height, width = maps.shape
    there = (maps[:, None] == torch.arange(1, num_parts)[:, None, None]).double()  # (n, k, h, w)
    area = there.sum(dim=(2, 3))
    x = (there.sum(dim=2) * ((torch.arange(width) + 0.5) / width)).sum(dim=-1)
    y = (there.sum(dim=3) * ((torch.arange(height) + 0.5) / height)).sum(dim=-1)
    present = area > 0
    return torch.stack([x, y, area], dim=-1) / torch.where(present, area, 1.0)[..., None]


def keypoint_errors(
    centres: Float64[Tensor, "n k 3"],
    seen: Float[Tensor, "n j 3"],
    test_centres: Float64[Tensor, "m k 3"],
    truth: Float[Tensor, "m j 3"],
) -> Float64[np.ndarray, " m"]:
    """Mean distance of predicted and annotated visible keypoints, in sides of the image.

    Each keypoint has a least-squares fit (minimum norm) on the training images that show it; the
    inputs are all centres, presences and a constant. Predictions are clamped to the image. The
    value is NaN for images without visible keypoints. Keypoints that no training image shows are
    left out.
    """
    inputs, given = _inputs(centres), _inputs(test_centres)
    predicted = torch.full((len(given), truth.shape[1], 2), torch.nan, dtype=torch.float64)
    for j in range(truth.shape[1]):
        rows = seen[:, j, 2] > 0
        if rows.any():
            weights = torch.linalg.pinv(inputs[rows], rtol=1e-9) @ seen[rows, j, :2].double()
            predicted[:, j] = (given @ weights).clamp(0, 1)
    return _distances(predicted, truth)


def mean_place_errors(
    seen: Float[Tensor, "n j 3"], truth: Float[Tensor, "m j 3"]
) -> Float64[np.ndarray, " m"]:
    """The same error if the mean training position is predicted, without looking at the image."""
    shown = seen[..., 2:].double()
    places = (seen[..., :2].double() * shown).sum(dim=0) / shown.sum(dim=0)
    return _distances(places.expand(len(truth), -1, -1), truth)


def _inputs(centres: Float64[Tensor, "n k 3"]) -> Float64[Tensor, "n d"]:
    flat = centres.flatten(1)
    return torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], dim=1)


def _distances(
    predicted: Float64[Tensor, "m j 2"], truth: Float[Tensor, "m j 3"]
) -> Float64[np.ndarray, " m"]:
    distance = (predicted - truth[..., :2].double()).norm(dim=-1)
    visible: Bool[Tensor, "m j"] = (truth[..., 2] > 0) & ~distance.isnan()
    total = torch.where(visible, distance, 0.0).sum(dim=1)
    return (total / visible.sum(dim=1)).numpy()
