"""Few-shot part segmentation: train a small decoder on 1 to 150 part masks.

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
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
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
from fg_ssl_zoo.evaluation.parts.segmenter_scores import (
    Draw,
    background_only,
    class_iou,
    map_counts,
    mean_over_pictures,
    set_counts,
)
from fg_ssl_zoo.evaluation.parts.segmenter_training import Few, both_maps, learn, read_few
from fg_ssl_zoo.evaluation.parts.truth import (
    PartView,
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
        raise ValueError(
            f"{task.test_images.name}: test and training masks differ in their part names"
        )
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
    learned = []
    for size in sizes:
        torch.manual_seed(seed)
        own = backbone if options.backbone == "frozen" else copy.deepcopy(backbone)
        segmenter = Segmenter(own, len(names) + options.exclusive, options)
        if segmenter.frozen and maps is None:
            maps = both_maps(segmenter, few, task.accelerator)
        own_maps = None if maps is None else maps[:, :size]
        twins = mirrored(names)
        learned.append(_learned(task, segmenter, view, twins, few[:size], own_maps, options, seed))
    draws = []
    for size, one, passes in zip(sizes, learned, _passes(task, learned, view), strict=True):
        everything = [(np.ones(len(passes[-1]), dtype=bool), passes[-1])]
        folds = options.protocol == "particle"
        scored = chosen_by_folds(passes, seed) if folds else everything
        held, side = one.held_out, one.segmenter.map_side
        draws.append(Draw(pictures[:size], held, side, one.checkpoint, scored))
    return draws


@dataclass(frozen=True)
class Learned:
    """A network that learned from one list, and what of it is scored on the test pictures.

    Attributes:
        segmenter: The network.
        held_out: Pictures of the list that chose the checkpoint.
        checkpoint: The chosen one, from 1; 0 is the last, or all of them for the folds.
        decoders: Of the scored checkpoints, where the backbone is frozen: they are counted later,
            together with those of other lists, since all read the same maps.
        passes: Counts of the test pictures at the scored checkpoints, where the backbone learns.
    """

    segmenter: Segmenter
    held_out: int
    checkpoint: int
    decoders: list[nn.Module]
    passes: list[Int64[Tensor, "m 3 c"]]


def _learned(
    task: Task,
    segmenter: Segmenter,
    view: PartView,
    twins: list[int],
    few: Few,
    maps: Float[Tensor, "2 n d _ _"] | None,
    options: PartSegmentation,
    seed: int,
) -> Learned:
    """Train on a list without its held-out pictures, which choose the checkpoint."""
    held = len(few.images) // HELD_OUT if options.protocol == "held_out" else 0
    held_maps, own_maps = (None, None) if maps is None else (maps[0, :held], maps[:, held:])
    decoders: list[nn.Module] = []
    passes: list[Int64[Tensor, "m 3 c"]] = []

    def keep() -> None:
        if segmenter.frozen:
            decoders.append(copy.deepcopy(segmenter.decoder))
        else:
            passes.append(_count_test(task, segmenter, [segmenter.decoder], view)[0])

    scores: list[float] = []
    best: dict[str, Tensor] = {}
    for _ in learn(segmenter, few[held:], twins, options, task.accelerator, seed, own_maps):
        if options.protocol == "particle":
            keep()
        elif held:
            scores.append(_held_out_score(segmenter, few[:held], held_maps, options, task))
            if best_checkpoint(scores) == len(scores) - 1:
                best = segmenter.trained_state()
    if held:
        segmenter.restore(best)
    if options.protocol != "particle":
        keep()
    chosen = best_checkpoint(scores) + 1 if held else 0
    return Learned(segmenter, held, chosen, decoders, passes)


def best_checkpoint(scores: Sequence[float]) -> int:
    """Number of the best of some scores, the latest of equals; NaN, no part shown, is the worst."""
    known = [-math.inf if math.isnan(score) else score for score in scores]
    return max(range(len(known)), key=lambda number: (known[number], number))


def _held_out_score(
    segmenter: Segmenter,
    held: Few,
    maps: Float[Tensor, "n d _ _"] | None,
    options: PartSegmentation,
    task: Task,
) -> float:
    """Mean IoU of the held-out pictures; NaN where they show no part."""
    if maps is None:
        maps = map_pictures(segmenter, held.images, task.accelerator)
    truth = list(held.truth.numpy())
    counts = map_counts(segmenter.decoder, maps, truth, task.accelerator, options.exclusive)
    return float(mean_iou_values(counts).mean())


def _passes(
    task: Task, learned: Sequence[Learned], view: PartView
) -> list[list[Int64[Tensor, "m 3 c"]]]:
    """For each list, the counts of the test pictures at its scored checkpoints."""
    first = learned[0].segmenter
    if not first.frozen:
        return [one.passes for one in learned]
    decoders = [decoder for one in learned for decoder in one.decoders]
    counts = iter(_count_test(task, first, decoders, view))
    return [[next(counts) for _ in one.decoders] for one in learned]


def _count_test(
    task: Task, segmenter: Segmenter, decoders: Sequence[nn.Module], view: PartView
) -> Int64[Tensor, "r m 3 c"]:
    """`overlaps` of all test pictures."""
    indices = task.test.indices.tolist()
    return set_counts(segmenter, decoders, task.test_images, indices, view, task.accelerator)


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
            f"part_segmentation.protocol: particle splits the test images into {FOLDS} folds; "
            f"there are {count} images, {2 * FOLDS} would do"
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
        "iou": dict(zip(classes, class_iou(draws, there), strict=True)),
    }
    outcomes = []
    for kind, skip in kinds.items():
        values = np.stack([draw.values(skip) for draw in draws])
        folds = [draw.fold_values(skip) for draw in draws]
        settings = {
            **said,
            "std_over_draws": float(values.mean(axis=1).std()),
            "std_over_folds": float(np.std(folds, axis=1).mean()),
            "mean_over_pictures": mean_over_pictures(counts, skip),
            "background_only": background_only(counts, skip) if options.exclusive else 0.0,
        }
        outcomes.append(
            Outcome(f"part_miou_{size}{kind}", values.mean(axis=0), None, settings, notes)
        )
    return outcomes


PROTOCOL = Protocol(
    part_segmentation,
    metrics=(
        Metric("part_miou_{}", "part masks", detail="mIoU, {} pictures", main=True),
        Metric("part_miou_{}_fg", "part masks", detail="mIoU, {} pictures, objects"),
    ),
    summary="a small decoder is trained on the part masks of N images; mean IoU with background, "
    "and without it (`_fg`) (as PARTICLE)",
    options=PartSegmentation,
    needs_labels=False,
    reads="network",
    check=lambda train, test: part_names(train),
)
