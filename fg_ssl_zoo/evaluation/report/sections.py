"""Sections of the page as plain data: confused pairs, classes, neighbours, attribution maps."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool

from fg_ssl_zoo.evaluation.report import attribution
from fg_ssl_zoo.evaluation.report.confusion import class_scores, confused_pairs
from fg_ssl_zoo.evaluation.report.inspected_model import InspectedModel
from fg_ssl_zoo.evaluation.report.pictures import jpeg_uri
from fg_ssl_zoo.ops.neighbours import nearest

THUMBNAIL, LARGE = 144, 224
"""Side of the images in pixels; the page shows them at half to two thirds of it."""

NUM_PAIRS, PER_SIDE = 6, 5
NUM_QUERIES, NUM_NEIGHBOURS = 8, 8
NUM_LOOKS = 6


@dataclass(frozen=True)
class Shown:
    """One image.

    Attributes:
        uri: Data URI.
        text: Description for screen readers: class and prediction.
        caption: Text below the image; may be empty.
        mark: `right`, `wrong`, or empty.
    """

    uri: str
    text: str
    caption: str = ""
    mark: str = ""


def confusions(
    inspected: InspectedModel, labels: np.ndarray, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """The most confused pairs: both classes, with wrong and correct images."""
    found = []
    for pair in confused_pairs(labels, predicted, NUM_PAIRS):
        sides = []
        for own, other, mistaken in (
            (pair.first, pair.second, pair.first_as_second),
            (pair.second, pair.first, pair.second_as_first),
        ):
            name, taken = inspected.classes[own], inspected.classes[other]
            right = np.flatnonzero((labels == own) & (predicted == own)).tolist()
            rest = np.flatnonzero((labels == own) & (predicted != own)).tolist()
            examples = right or [row for row in rest if row not in mistaken] or rest
            sides.append(
                {
                    "number": own,
                    "name": name,
                    "other": taken,
                    "total": int((labels == own).sum()),
                    "num_mistaken": len(mistaken),
                    "mistaken": [
                        _shown(inspected, row, f"{name}, taken for {taken}", "wrong")
                        for row in mistaken[:PER_SIDE]
                    ],
                    "right": [
                        _shown(inspected, row, f"{name}, recognised", "right")
                        for row in right[:PER_SIDE]
                    ],
                    "example": _shown(inspected, examples[0], name, ""),
                }
            )
        found.append(
            {"sides": sides, "num_confused": pair.num_confused, "num_pictures": pair.num_pictures}
        )
    return found


def class_bars(
    inspected: InspectedModel, labels: np.ndarray, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """Accuracy of each class, the best first."""
    return [
        {"name": inspected.classes[score.number], "number": score.number, **vars(score)}
        | {"accuracy": score.accuracy}
        for score in class_scores(labels, predicted)
    ]


def choose_queries(
    right: Bool[np.ndarray, " m"] | None, length: int, count: int, seed: int
) -> list[int]:
    """Rows drawn at random, half of them wrong if there are enough; the wrong ones come first.

    Args:
        right: Whether each image is classified correctly; `None` without labels.
        length: Number of images.
        count: Number of rows to draw.
        seed: Seed of the draw.
    """
    order = np.random.default_rng([seed, length]).permutation(length)
    if right is None:
        return order[:count].tolist()
    wrong, good = order[~right[order]], order[right[order]]
    num_wrong = min(len(wrong), max(count // 2, count - len(good)))
    return [*wrong[:num_wrong].tolist(), *good[: count - num_wrong].tolist()]


def neighbourhoods(inspected: InspectedModel) -> list[dict[str, Any]]:
    """Queries with their nearest images."""
    labels, knn = inspected.labels, inspected.knn
    right = None if labels is None or knn is None else labels == knn
    features = inspected.seen.features
    rows = choose_queries(right, len(features), NUM_QUERIES, inspected.seed)
    own = torch.tensor(rows) if inspected.known is inspected.seen else None
    found, similarity = nearest(features[rows], inspected.known.features, NUM_NEIGHBOURS, own)
    queries = []
    for row, indices, values in zip(rows, found.tolist(), similarity.tolist(), strict=True):
        truth = inspected.classes[labels[row]] if labels is not None else ""
        verdict = ""
        if labels is not None and knn is not None:
            good = labels[row] == knn[row]
            verdict = "recognised" if good else f"taken for {inspected.classes[knn[row]]}"
        query = _shown(
            inspected, row, f"{truth or 'Query'} {verdict}".strip(), _mark(verdict == "recognised")
            if verdict else "",
        )  # fmt: skip
        neighbours = [
            _neighbour(inspected, index, value, None if labels is None else int(labels[row]))
            for index, value in zip(indices, values, strict=True)
        ]
        queries.append(
            {
                "query": query,
                "file": inspected.file(row),
                "name": truth,
                "verdict": verdict,
                "neighbours": neighbours,
                "num_right": sum(each.mark == "right" for each in neighbours),
            }
        )
    return queries


def _neighbour(inspected: InspectedModel, row: int, similarity: float, truth: int | None) -> Shown:
    index = int(inspected.known.indices[row])
    uri = inspected.known_pictures.uri(index, THUMBNAIL)
    if truth is None or inspected.known.labels is None:
        name = inspected.known_pictures.name(index)
        return Shown(uri, f"{name}, similarity {similarity:.2f}", f"{similarity:.2f}")
    label = int(inspected.known.labels[row])
    name = inspected.classes[label]
    verdict = "the same class" if label == truth else "another class"
    return Shown(uri, f"{name}, {verdict}", name, _mark(label == truth))


def looks(inspected: InspectedModel) -> tuple[list[dict[str, Any]], str]:
    """Images with evidence and patch colours; a note if the model supports neither."""
    labels, predicted = inspected.labels, inspected.linear
    right = None if labels is None or predicted is None else labels == predicted
    rows = choose_queries(right, len(inspected.seen.features), NUM_LOOKS, inspected.seed + 1)
    inputs = inspected.inputs(rows)
    try:
        colours = attribution.patch_colours(attribution.patch_maps(inspected.backbone, inputs))
        warm = _evidence(inspected, rows, inputs)
    except ValueError as error:
        return [], f"{error}: where it looks cannot be shown."
    found = []
    for number, row in enumerate(rows):
        pixels = inspected.seen_pictures.pixels(int(inspected.seen.indices[row]), LARGE)
        truth = inspected.classes[labels[row]] if labels is not None else inspected.file(row)
        good = right is None or bool(right[row])
        views = [
            {
                "title": title,
                "uri": jpeg_uri(attribution.glow(pixels, heat)),
                "text": f"{title}, lit up",
            }
            for title, heat in warm[number]
        ]
        found.append(
            {
                "name": truth,
                "file": inspected.file(row),
                "mark": "" if right is None else _mark(good),
                "taken": "" if good or predicted is None else inspected.classes[predicted[row]],
                "uri": jpeg_uri(pixels),
                "views": views,
                "patches": jpeg_uri(attribution.enlarged(colours[number], LARGE)),
            }
        )
    return found, ""


def _evidence(
    inspected: InspectedModel, rows: list[int], inputs: torch.Tensor
) -> list[list[tuple[str, np.ndarray]]]:
    """For each image, titles and heat maps: the predicted class and, if it is wrong, the true one.

    Without labels: the evidence for the similarity of an image to its nearest neighbour.
    """
    labels, predicted = inspected.labels, inspected.linear
    asked: list[tuple[int, str, torch.Tensor]] = []  # number of the image, title, weights
    if labels is None or predicted is None:
        unit = F.normalize(inspected.seen.features, dim=-1)
        found, _ = nearest(unit[rows], unit, 1, torch.tensor(rows))
        for number, (neighbour,) in enumerate(found.tolist()):
            direction = unit[neighbour] - unit.mean(dim=0)
            asked.append((number, "like its nearest neighbour", direction))
    else:
        known = inspected.known.labels
        assert known is not None
        directions: dict[int, torch.Tensor] = {}
        for number, row in enumerate(rows):
            for label in dict.fromkeys((int(predicted[row]), int(labels[row]))):
                if label not in directions:
                    directions[label] = attribution.class_direction(
                        inspected.known.features, known, label
                    )
                title = f"evidence for {inspected.classes[label]}"
                asked.append((number, title, directions[label]))
    weights = torch.stack([direction for _, _, direction in asked])
    pictures = inputs[[number for number, _, _ in asked]]
    maps = attribution.heat(
        attribution.evidence(inspected.backbone, pictures, weights, read=inspected.read)
    )
    found_views: list[list[tuple[str, np.ndarray]]] = [[] for _ in rows]
    for (number, title, _), heat in zip(asked, maps.numpy(), strict=True):
        found_views[number].append((title, heat))
    return found_views


def _shown(inspected: InspectedModel, row: int, text: str, mark: str) -> Shown:
    return Shown(inspected.uri(row, THUMBNAIL), text, inspected.file(row), mark)


def _mark(right: bool) -> str:
    return "right" if right else "wrong"
