"""Few-shot part segmentation: a small decoder learns parts from 1 to 150 masks.

    fgssl eval MODEL --data carparts --protocols part_segmentation --part-segmentation steps=200

Protocol of PARTICLE (Saha & Maji, 2023, arXiv 2309.13822, and its code): an up-convolution decoder
on the last map (`layers.decoder`), cross entropy over parts and background or, for parts that
overlap, a sigmoid for each; Adam, batches of 8, mirror images with left and right exchanged.

Score: the IoU of each part, its pixels summed over all test pictures, and the plain mean, with and
without background. The logits are enlarged to each mask's own size, so that models of different
input sizes are scored on the same pixels.

Deviations: the training pictures are few and drawn by a stored seed, the smaller lists being the
beginnings of the larger ones; the backbone is frozen (`backbone=finetuned` is the paper's); a fixed
number of steps with a cosine in place of 200 epochs; the checkpoint is chosen on a fifth of the
list (`protocol=particle` is the paper's rule, which chooses it on test pictures); the whole picture
is seen, as the paper's crop to the true box needs the labels of test pictures (`gt_box_crop=true`).
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.data.datasets import image_name
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.evaluation.parts.segmenter import (
    STANDARD,
    PartSegmentation,
    Segmenter,
    map_pictures,
)
from fg_ssl_zoo.evaluation.parts.segmenter_scores import map_counts, set_counts
from fg_ssl_zoo.evaluation.parts.segmenter_training import Few, both_maps, learn, read_few
from fg_ssl_zoo.evaluation.parts.truth import (
    PartView,
    iou,
    mean_iou_values,
    merged,
    mirrored,
    occurring,
    part_names,
    refuse_no_parts,
    usable,
)
from fg_ssl_zoo.evaluation.protocol import Outcome, Protocol, Task
from fg_ssl_zoo.metrics import Metric

HELD_OUT = 5
"""One of so many pictures of a list chooses the checkpoint; shorter lists keep the last one."""
FOLDS = 5
"""Of the test pictures, under `protocol=particle`."""


def part_segmentation(task: Task, options: PartSegmentation = STANDARD) -> list[Outcome]:
    """`part_miou_10`, `part_miou_10_fg`, ...: mean IoU with and without background, for each size.

    The value of a picture is its share of the set's mean IoU (`statistics.influence_values`); the
    plain mean over pictures is in the settings. Independent parts have no background: `_fg` alone.

    Args:
        task: The pictures are read again; the pooled features are not used.
        options: The variant.

    Raises:
        ValueError: No masks, masks that are wrong, test masks of background alone, or fewer
            training pictures than every size.
    """
    names, table = merged(part_names(task.train_images), options.drop_words)
    if part_names(task.test_images) != part_names(task.train_images):
        raise ValueError(f"{task.test_images.name}: test and training masks name other parts")
    view = PartView(
        task.backbone.image_size,
        tuple(table),
        options.exclusive,
        options.gt_box_crop,
        options.cut_bottom,
        task.backbone.interpolation,
    )
    tested = usable(task.test_images, range(len(task.test_images)))
    lists = [
        few_shot_list(task.train_images, options.shots, seed)
        for seed in task.draw_seeds(options.draws)
    ]
    sizes = [size for size in options.shots if size <= min(map(len, lists))]
    if not sizes:
        raise ValueError(
            f"part_segmentation.shots: {min(options.shots)} is more than the "
            f"{min(map(len, lists))} training pictures; that many or less would do"
        )
    assert len(tested) == len(task.test.indices)
    refuse_no_parts(task.test_images, tested)
    backbone = copy.deepcopy(task.backbone)
    drawn = [
        _one_draw(task, backbone, view, names, chosen, sizes, options, seed)
        for chosen, seed in zip(lists, task.draw_seeds(options.draws), strict=True)
    ]
    outcomes = []
    for size, draws in zip(sizes, zip(*drawn, strict=True), strict=True):
        outcomes += _outcomes(task, size, names, list(draws), options)
    return outcomes


def few_shot_list(images: Images, sizes: tuple[int, ...], seed: int) -> list[int]:
    """Training pictures in the order in which they are taken; a list of n is the first n of them.

    It depends on the seed and the number of pictures alone, so all models share it.

    Raises:
        ValueError: A mask is wrong.
    """
    order = np.random.default_rng([seed, len(images)]).permutation(len(images))
    spare = 5  # in place of pictures that cannot be read
    return usable(images, order[: max(sizes) + spare].tolist())


# --------------------------------------------------------------------------- one list


@dataclass
class Draw:
    """What one list of training pictures led to.

    Attributes:
        pictures: Their names.
        held_out: How many of them chose the checkpoint.
        map_side: Of the map that the decoder read.
        checkpoint: The one that is scored, from 1; 0 is the last, or one for each fold.
        scored: Which test pictures are scored, and the counts of all, for every fold; one that
            holds all pictures without folds.
    """

    pictures: list[str]
    held_out: int
    map_side: int
    checkpoint: int = 0
    scored: list[tuple[Bool[np.ndarray, " m"], Int64[Tensor, "m 3 c"]]] = field(
        default_factory=list
    )

    def values(self, skip: int) -> Float64[np.ndarray, " m"]:
        """Values of the test pictures, whose mean is the mean IoU, averaged over the folds."""
        found = np.zeros(len(self.scored[0][0]))
        for rows, counts in self.scored:
            weight = len(rows) / rows.sum() / len(self.scored)
            found[rows] += weight * mean_iou_values(counts[torch.from_numpy(rows)], skip=skip)
        return found

    def fold_values(self, skip: int) -> list[float]:
        """Mean IoU of each fold."""
        return [
            float(mean_iou_values(counts[torch.from_numpy(rows)], skip=skip).mean())
            for rows, counts in self.scored
        ]


def _one_draw(
    task: Task,
    backbone: Backbone,
    view: PartView,
    names: list[str],
    chosen: list[int],
    sizes: list[int],
    options: PartSegmentation,
    seed: int,
) -> list[Draw]:
    """Train on the beginnings of one list and count the pixels of the test pictures.

    A frozen backbone sees the longest list and the test pictures once, whatever the sizes.
    """
    longest = chosen[: max(sizes)]
    few, maps = read_few(task.train_images, longest, view), None
    pictures = [image_name(task.train_images, index) for index in longest]
    learners = []
    for size in sizes:
        torch.manual_seed(seed)
        own = backbone if options.backbone == "frozen" else copy.deepcopy(backbone)
        segmenter = Segmenter(own, len(names) + options.exclusive, options)
        if segmenter.frozen and maps is None:
            maps = both_maps(segmenter, few, task.accelerator)
        held = size // HELD_OUT if options.protocol == "held_out" else 0
        draw = Draw(pictures[:size], held, segmenter.map_side)
        learner = _Learner(task, segmenter, view, options, seed, draw)
        learner.learn(few[:size], maps if maps is None else maps[:, :size], mirrored(names))
        learners.append(learner)
    if options.backbone == "frozen":
        _count_together(learners)
    for learner in learners:
        learner.conclude()
    return [learner.draw for learner in learners]


class _Learner:
    """A decoder that learns from one list, looked at at every checkpoint as the protocol says.

    What is to be scored on the test pictures is kept in `decoders`, and counted once the backbone
    moves on: at once where it learns, together with the other lists where it is frozen.
    """

    def __init__(
        self,
        task: Task,
        segmenter: Segmenter,
        view: PartView,
        options: PartSegmentation,
        seed: int,
        draw: Draw,
    ) -> None:
        self.task, self.segmenter, self.view = task, segmenter, view
        self.options, self.seed, self.draw = options, seed, draw
        self.scores: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.decoders: list[nn.Module] = []
        self.passes: list[Int64[Tensor, "m 3 c"]] = []

    def learn(self, few: Few, maps: Float[Tensor, "2 n d _ _"] | None, twins: list[int]) -> None:
        """Train on the list without its held-out pictures; choose the checkpoint on those."""
        held, segmenter = self.draw.held_out, self.segmenter
        self.held, self.held_maps = few[:held], None if maps is None else maps[0, :held]
        rest = None if maps is None else maps[:, held:]
        accelerator = self.task.accelerator
        learn(segmenter, few[held:], twins, self.options, accelerator, self.seed, self.look, rest)
        if self.options.protocol != "particle":
            if held:
                segmenter.restore(self.best)
                self.best = {}  # a whole network where the backbone learns
                best = max(range(len(self.scores)), key=lambda i: (self.scores[i], i))
                self.draw.checkpoint = best + 1
            self._keep()

    def look(self) -> None:
        """Score the held-out pictures, or keep the checkpoint for the folds of test pictures."""
        if self.options.protocol == "particle":
            self._keep()
        elif self.draw.held_out:
            maps, accelerator = self.held_maps, self.task.accelerator
            if maps is None:
                maps = map_pictures(self.segmenter, self.held.images, accelerator)
            truth, decoder = list(self.held.truth.numpy()), self.segmenter.decoder
            counts = map_counts(decoder, maps, truth, accelerator, self.options.exclusive)
            score = float(mean_iou_values(counts).mean())
            self.scores.append(-math.inf if math.isnan(score) else score)  # they show no part
            if self.scores[-1] >= max(self.scores):  # the latest of equals
                self.best = self.segmenter.trained_state()

    def _keep(self) -> None:
        if self.segmenter.frozen:
            self.decoders.append(copy.deepcopy(self.segmenter.decoder))
        else:
            self.passes.append(_count_test(self, [self.segmenter.decoder])[0])

    def conclude(self) -> None:
        """Which pictures are scored, with which counts."""
        if self.options.protocol == "particle":
            self.draw.scored = chosen_by_folds(self.passes, self.seed)
        else:
            (counts,) = self.passes
            self.draw.scored = [(np.ones(len(counts), dtype=bool), counts)]


def _count_together(learners: list[_Learner]) -> None:
    """Count the test pictures for all lists, whose decoders share the maps of one backbone."""
    decoders = [decoder for learner in learners for decoder in learner.decoders]
    counts = iter(_count_test(learners[0], decoders))
    for learner in learners:
        learner.passes = [next(counts) for _ in learner.decoders]


def _count_test(learner: _Learner, decoders: Sequence[nn.Module]) -> Int64[Tensor, "r m 3 c"]:
    """`overlaps` of all test pictures."""
    task, indices = learner.task, learner.task.test.indices.tolist()
    return set_counts(
        learner.segmenter, decoders, task.test_images, indices, learner.view, task.accelerator
    )


def chosen_by_folds(
    passes: list[Int64[Tensor, "m 3 c"]], seed: int
) -> list[tuple[Bool[np.ndarray, " m"], Int64[Tensor, "m 3 c"]]]:
    """PARTICLE's rule: each fold picks a checkpoint, which is scored on the other four.

    Args:
        passes: Counts of the test pictures at every checkpoint.
        seed: Of the folds.

    Returns:
        For each fold which pictures are scored, and the counts of its checkpoint.

    Raises:
        ValueError: There are less than two pictures for a fold.
    """
    count = len(passes[0])
    if count < 2 * FOLDS:
        raise ValueError(
            f"part_segmentation.protocol: particle makes {FOLDS} folds of the test pictures; there "
            f"are {count}, {2 * FOLDS} would do"
        )
    fold_of = np.random.default_rng([seed, count]).permutation(count) % FOLDS
    found = []
    for fold in range(FOLDS):
        inside = torch.from_numpy(fold_of == fold)
        scores = [mean_iou_values(counts[inside]).mean() for counts in passes]
        found.append((fold_of != fold, passes[int(np.argmax(scores))]))
    return found


# --------------------------------------------------------------------------- what is reported


def _outcomes(
    task: Task, size: int, names: list[str], draws: list[Draw], options: PartSegmentation
) -> list[Outcome]:
    """With and without background; independent parts have none."""
    kinds = {"": 0, "_fg": 1} if options.exclusive else {"_fg": 0}
    classes = ["background", *names] if options.exclusive else names
    _, counts = draws[0].scored[0]
    there = occurring(counts)
    absent = [name for name, seen in zip(classes, there, strict=True) if not seen]
    notes = (f"no test mask shows {', '.join(absent)}",) if absent else ()
    said = {
        **asdict(options),
        "shots": size,
        "seed": task.seed,
        "pictures": [draw.pictures for draw in draws],
        "held_out": draws[0].held_out,
        "map_side": draws[0].map_side,
        "checkpoint": [draw.checkpoint for draw in draws],
        "iou": dict(zip(classes, _class_iou(draws, there), strict=True)),
    }
    outcomes = []
    for kind, skip in kinds.items():
        values = np.stack([draw.values(skip) for draw in draws])
        folds = [draw.fold_values(skip) for draw in draws]
        settings = {
            **said,
            "std_over_draws": float(values.mean(axis=1).std()),
            "std_over_folds": float(np.std(folds, axis=1).mean()),
            "mean_over_pictures": _mean_over_pictures(counts, skip),
            "background_only": background_only(counts, skip) if options.exclusive else 0.0,
        }
        outcomes.append(
            Outcome(f"part_miou_{size}{kind}", values.mean(axis=0), None, settings, notes)
        )
    return outcomes


def background_only(counts: Int64[Tensor, "m 3 c"], skip: int = 0) -> float:
    """The mean IoU of calling every pixel background: the floor."""
    true = counts[:, 2].sum(dim=0)
    share = true[0] / true.sum()
    return 0.0 if skip else float(share / occurring(counts).sum())


def _class_iou(draws: list[Draw], there: Bool[Tensor, " c"]) -> list[float | None]:
    """IoU of every class over the set, mean over draws and folds; `None` where no truth has it."""
    found = [
        iou(counts[torch.from_numpy(rows)].sum(dim=0).double())
        for draw in draws
        for rows, counts in draw.scored
    ]
    mean = torch.stack(found).nanmean(dim=0)
    return [float(value) if seen else None for value, seen in zip(mean, there, strict=True)]


def _mean_over_pictures(counts: Int64[Tensor, "m 3 c"], skip: int) -> float:
    """Mean over pictures of the mean IoU of the classes that each shows; of the first list."""
    rows = [
        iou(picture[:, shown].double()).mean()
        for picture in counts[:, :, skip:]
        if (shown := picture[2] > 0).any()
    ]
    return float(torch.stack(rows).mean())


def _check(train: Images, test: Images) -> None:
    """The training pictures have part masks."""
    part_names(train)


PROTOCOL = Protocol(
    part_segmentation,
    metrics=(
        Metric("part_miou_{}", "part masks", detail="mIoU, {} pictures", main=True),
        Metric("part_miou_{}_fg", "part masks", detail="mIoU, {} pictures, objects"),
    ),
    summary="a small decoder learns part masks from so many pictures; mean IoU with and without "
    "(`_fg`) background (PARTICLE)",
    options=PartSegmentation,
    needs_labels=False,
    reads="network",
    check=_check,
)
