"""What a number is called, how it is written, and which way is better: one record a metric.

The metrics of a protocol are declared in its file. Those that cards and listings show stand here,
since cards know no protocols; the others of this file are measured while training.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Metric:
    """One kind of number.

    Attributes:
        name: Its key in results files; `{}` stands for a number: `low_shot_{}_top1`.
        title: Heads a column; `{}` likewise.
        detail: Second line of that heading, where there is room for one.
        meaning: One clause on what a value counts, for the head of a report; empty if it is not
            shown there.
        format: How a value is written.
        higher_is_better: Which of two values is the better one.
        main: Whether it is shown where a table has no room for all.
    """

    name: str
    title: str
    detail: str = ""
    meaning: str = ""
    format: str = "{:.1%}"
    higher_is_better: bool = True
    main: bool = False

    def named(self, name: str) -> "Metric | None":
        """This record with the number of `name` filled in; `None` if it is another metric."""
        pattern = re.escape(self.name).replace(re.escape("{}"), r"(\d+)")
        match = re.fullmatch(pattern, name)
        if match is None:
            return None
        title, detail = (text.format(*match.groups()) for text in (self.title, self.detail))
        return replace(self, name=name, title=title, detail=detail)


def metric_of(name: str, known: Iterable[Metric]) -> Metric:
    """The record of a metric; one that is not known is headed by its name.

    Args:
        name: Key of a results file.
        known: Records to search.
    """
    found = (metric.named(name) for metric in known)
    return next((metric for metric in found if metric), Metric(name, name, format="{:.4g}"))


KNN = Metric(
    "knn_top1",
    "kNN top-1",
    detail="k = 20",
    meaning="named rightly by the 20 most similar images",
    main=True,
)
LINEAR = Metric(
    "linear_top1",
    "linear top-1",
    meaning="named rightly by a linear classifier on all labels",
    main=True,
)

LOW_SHOT_1 = Metric("low_shot_1_top1", "1 label a class", main=True)
LOW_SHOT_5 = Metric(
    "low_shot_5_top1", "5 labels", meaning="named rightly from five labelled images a class"
)
LOW_SHOT_10 = Metric("low_shot_10_top1", "10 labels", main=True)
RANK_1 = Metric(
    "retrieval_rank1",
    "rank 1",
    meaning="whose most similar test image is of their class",
    main=True,
)
MEAN_AVERAGE_PRECISION = Metric("retrieval_map", "mAP", main=True)
PARTS_NMI = Metric("parts_nmi", "NMI of parts", main=True)
PARTS_KEYPOINT_NMI = Metric("parts_keypoint_nmi", "NMI with keypoints", main=True)

ON_CARDS = (
    KNN,
    LINEAR,
    LOW_SHOT_1,
    LOW_SHOT_5,
    LOW_SHOT_10,
    RANK_1,
    MEAN_AVERAGE_PRECISION,
    PARTS_NMI,
    PARTS_KEYPOINT_NMI,
    Metric("own_top1", "top-1 of its own classifier"),
    Metric("rankme", "RankMe", format="{:.1f}"),
    Metric("feature_std", "feature std", format="{:.3f}"),
    Metric("part_nmi", "NMI of found and true parts", format="{:.3f}"),
    Metric("part_ari", "ARI of found and true parts", format="{:.3f}"),
)
"""What a card's tables have columns for, in their order."""
