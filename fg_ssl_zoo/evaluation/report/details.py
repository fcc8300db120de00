"""The pictures of the page: confused pairs, classes, neighbours, looks; each as plain data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fg_ssl_zoo.evaluation.report import looks as look
from fg_ssl_zoo.evaluation.report.confusion import class_scores, confused_pairs
from fg_ssl_zoo.evaluation.report.neighbours import choose_queries, nearest
from fg_ssl_zoo.evaluation.report.pictures import jpeg_uri
from fg_ssl_zoo.evaluation.report.subject import Subject

THUMBNAIL, LARGE = 144, 224
"""Side of the pictures in pixels; they are shown at half to two thirds of it."""

NUM_PAIRS, PER_SIDE = 6, 5
NUM_QUERIES, NUM_NEIGHBOURS = 8, 8
NUM_LOOKS = 6


@dataclass(frozen=True)
class Shown:
    """One picture.

    Attributes:
        uri: For an `src`.
        text: What it shows and what became of it, for those who do not see it.
        caption: Below it; may be empty.
        mark: `right`, `wrong`, or empty.
    """

    uri: str
    text: str
    caption: str = ""
    mark: str = ""


def confusions(subject: Subject, labels: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """The most confused pairs: both classes, mistaken pictures and recognised ones."""
    found = []
    for pair in confused_pairs(labels, predicted, NUM_PAIRS):
        sides = []
        for own, other, mistaken in (
            (pair.first, pair.second, pair.first_as_second),
            (pair.second, pair.first, pair.second_as_first),
        ):
            name, taken = subject.classes[own], subject.classes[other]
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
                        _shown(subject, row, f"{name}, taken for {taken}", "wrong")
                        for row in mistaken[:PER_SIDE]
                    ],
                    "right": [
                        _shown(subject, row, f"{name}, recognised", "right")
                        for row in right[:PER_SIDE]
                    ],
                    "example": _shown(subject, examples[0], name, ""),
                }
            )
        found.append(
            {"sides": sides, "num_confused": pair.num_confused, "num_pictures": pair.num_pictures}
        )
    return found


def class_bars(subject: Subject, labels: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Accuracy of each class, the best first."""
    return [
        {"name": subject.classes[score.number], "number": score.number, **vars(score)}
        | {"accuracy": score.accuracy}
        for score in class_scores(labels, predicted)
    ]


def neighbourhoods(subject: Subject) -> list[dict[str, Any]]:
    """Queries with their nearest pictures."""
    labels, knn = subject.labels, subject.knn
    right = None if labels is None or knn is None else labels == knn
    features = subject.seen.features
    rows = choose_queries(right, len(features), NUM_QUERIES, subject.seed)
    own = torch.tensor(rows) if subject.known is subject.seen else None
    found, similarity = nearest(features[rows], subject.known.features, NUM_NEIGHBOURS, own)
    queries = []
    for row, indices, values in zip(rows, found.tolist(), similarity.tolist(), strict=True):
        truth = subject.classes[labels[row]] if labels is not None else ""
        verdict = ""
        if labels is not None and knn is not None:
            good = labels[row] == knn[row]
            verdict = "recognised" if good else f"taken for {subject.classes[knn[row]]}"
        query = _shown(
            subject, row, f"{truth or 'Query'} {verdict}".strip(), _mark(verdict == "recognised")
            if verdict else "",
        )  # fmt: skip
        neighbours = [
            _neighbour(subject, index, value, None if labels is None else int(labels[row]))
            for index, value in zip(indices, values, strict=True)
        ]
        queries.append(
            {
                "query": query,
                "file": subject.file(row),
                "name": truth,
                "verdict": verdict,
                "neighbours": neighbours,
                "num_right": sum(each.mark == "right" for each in neighbours),
            }
        )
    return queries


def _neighbour(subject: Subject, row: int, similarity: float, truth: int | None) -> Shown:
    index = int(subject.known.indices[row])
    uri = subject.known_pictures.uri(index, THUMBNAIL)
    if truth is None or subject.known.labels is None:
        name = subject.known_pictures.name(index)
        return Shown(uri, f"{name}, similarity {similarity:.2f}", f"{similarity:.2f}")
    label = int(subject.known.labels[row])
    name = subject.classes[label]
    verdict = "the same class" if label == truth else "another class"
    return Shown(uri, f"{name}, {verdict}", name, _mark(label == truth))


def looks(subject: Subject) -> tuple[list[dict[str, Any]], str]:
    """Pictures with their evidence and patch colours; a note where the model allows neither."""
    labels, predicted = subject.labels, subject.linear
    right = None if labels is None or predicted is None else labels == predicted
    rows = choose_queries(right, len(subject.seen.features), NUM_LOOKS, subject.seed + 1)
    inputs = subject.inputs(rows)
    try:
        colours = look.patch_colours(look.patch_maps(subject.backbone, inputs))
        warm = _evidence(subject, rows, inputs)
    except ValueError as error:
        return [], f"{error}: where it looks cannot be shown."
    found = []
    for number, row in enumerate(rows):
        pixels = subject.seen_pictures.pixels(int(subject.seen.indices[row]), LARGE)
        truth = subject.classes[labels[row]] if labels is not None else subject.file(row)
        good = right is None or bool(right[row])
        views = [
            {"title": title, "uri": jpeg_uri(look.glow(pixels, heat)), "text": f"{title}, lit up"}
            for title, heat in warm[number]
        ]
        found.append(
            {
                "name": truth,
                "file": subject.file(row),
                "mark": "" if right is None else _mark(good),
                "taken": "" if good or predicted is None else subject.classes[predicted[row]],
                "uri": jpeg_uri(pixels),
                "views": views,
                "patches": jpeg_uri(look.enlarged(colours[number], LARGE)),
            }
        )
    return found, ""


def _evidence(
    subject: Subject, rows: list[int], inputs: torch.Tensor
) -> list[list[tuple[str, np.ndarray]]]:
    """For each picture, titles and heat: of the class named and, where it is wrong, the true one.

    Without labels it is the evidence that a picture is like its nearest neighbour.
    """
    labels, predicted = subject.labels, subject.linear
    asked: list[tuple[int, str, torch.Tensor]] = []  # number of the picture, title, weights
    if labels is None or predicted is None:
        unit = F.normalize(subject.seen.features, dim=-1)
        found, _ = nearest(unit[rows], unit, 1, torch.tensor(rows))
        for number, (neighbour,) in enumerate(found.tolist()):
            direction = unit[neighbour] - unit.mean(dim=0)
            asked.append((number, "like its nearest neighbour", direction))
    else:
        known = subject.known.labels
        assert known is not None
        directions: dict[int, torch.Tensor] = {}
        for number, row in enumerate(rows):
            for label in dict.fromkeys((int(predicted[row]), int(labels[row]))):
                if label not in directions:
                    directions[label] = look.class_direction(subject.known.features, known, label)
                asked.append((number, f"evidence for {subject.classes[label]}", directions[label]))
    weights = torch.stack([direction for _, _, direction in asked])
    pictures = inputs[[number for number, _, _ in asked]]
    maps = look.heat(look.evidence(subject.backbone, pictures, weights, read=subject.read))
    found_views: list[list[tuple[str, np.ndarray]]] = [[] for _ in rows]
    for (number, title, _), heat in zip(asked, maps.numpy(), strict=True):
        found_views[number].append((title, heat))
    return found_views


def _shown(subject: Subject, row: int, text: str, mark: str) -> Shown:
    return Shown(subject.uri(row, THUMBNAIL), text, subject.file(row), mark)


def _mark(right: bool) -> str:
    return "right" if right else "wrong"
