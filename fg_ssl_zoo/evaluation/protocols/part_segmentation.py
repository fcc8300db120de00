"""Few-shot part segmentation: train a small decoder on 1 to 150 part masks.

    fgssl eval MODEL --data carparts --protocols part_segmentation --part-segmentation steps=200

Protocol of PARTICLE (Saha & Maji, 2023, arXiv 2309.13822, and its code): an up-convolution decoder
on the last map (`layers.decoder`); cross entropy over parts and background, or one sigmoid per part
if parts overlap; Adam, batches of 8, mirror images with left and right exchanged.

Score: the mean IoU of the parts, with and without background; pixels are summed over all test
images. Logits are upsampled to the size of each mask, so models of different input sizes are
scored on the same pixels.

Deviations:
- few training images, drawn by the seed; a short list is the beginning of a longer one;
- the backbone is frozen (paper: `backbone=finetuned`);
- a fixed number of steps with a cosine schedule instead of 200 epochs;
- the checkpoint is chosen on a fifth of the list (paper: on test images, `protocol=particle`);
- the whole image is read (paper: a crop to the annotated box, which needs the labels of test
  images, `gt_box_crop=true`).
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
"""One in this many images of a list chooses the checkpoint; a shorter list uses the last one."""
FOLDS = 5
"""Number of folds of the test images for `protocol=particle`."""


def part_segmentation(task: Task, options: PartSegmentation = STANDARD) -> list[Outcome]:
    """`part_miou_10`, `part_miou_10_fg`, ...: mean IoU with and without background, for each size.

    The value of an image is its influence on the mean IoU (`statistics.influence_values`); the
    settings hold the plain mean over images. Independent parts have no background: only `_fg`.

    Args:
        task: The images are read again; the pooled features are not used.
        options: Options of the protocol.

    Raises:
        ValueError: There are no masks, they are invalid, test masks contain background only, or
            there are fewer training images than the smallest of `shots`.
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
            f"{min(map(len, lists))} training images; use that many or fewer"
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
    """Training images in a random order; a list of n is the first n of them.

    The order depends only on the seed and the number of images, so it is the same for all models.

    Raises:
        ValueError: A mask is invalid.
    """
    order = np.random.default_rng([seed, len(images)]).permutation(len(images))
    spare = 5  # replace unreadable images
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
    """Train on the beginnings of one list and count the pixels of the test images.

    A frozen backbone reads the longest list and the test images once, for all sizes.
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
    """A network trained on one list, and its checkpoints that are scored on the test images.

    Attributes:
        segmenter: The network.
        held_out: Number of images of the list that were used to choose the checkpoint.
        checkpoint: Number of the chosen checkpoint, from 1; 0 for the last one, or if all are
            scored for the folds.
        decoders: Decoders of the scored checkpoints, if the backbone is frozen. They are scored
            later, together with those of other lists, since all read the same maps.
        passes: Counts of the test images at the scored checkpoints, if the backbone is trained.
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
    """Train on a list without its held-out images, which choose the checkpoint."""
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
    """Index of the best score, the latest of equal ones; NaN (no part is shown) is the worst."""
    known = [-math.inf if math.isnan(score) else score for score in scores]
    return max(range(len(known)), key=lambda number: (known[number], number))


def _held_out_score(
    segmenter: Segmenter,
    held: Few,
    maps: Float[Tensor, "n d _ _"] | None,
    options: PartSegmentation,
    task: Task,
) -> float:
    """Mean IoU of the held-out images; NaN if they show no part."""
    if maps is None:
        maps = map_pictures(segmenter, held.images, task.accelerator)
    truth = list(held.truth.numpy())
    counts = map_counts(segmenter.decoder, maps, truth, task.accelerator, options.exclusive)
    return float(mean_iou_values(counts).mean())


def _passes(
    task: Task, learned: Sequence[Learned], view: PartView
) -> list[list[Int64[Tensor, "m 3 c"]]]:
    """For each list, the counts of the test images at its scored checkpoints."""
    first = learned[0].segmenter
    if not first.frozen:
        return [one.passes for one in learned]
    decoders = [decoder for one in learned for decoder in one.decoders]
    counts = iter(_count_test(task, first, decoders, view))
    return [[next(counts) for _ in one.decoders] for one in learned]


def _count_test(
    task: Task, segmenter: Segmenter, decoders: Sequence[nn.Module], view: PartView
) -> Int64[Tensor, "r m 3 c"]:
    """`overlaps` of all test images."""
    indices = task.test.indices.tolist()
    return set_counts(segmenter, decoders, task.test_images, indices, view, task.accelerator)


def chosen_by_folds(
    passes: list[Int64[Tensor, "m 3 c"]], seed: int
) -> list[tuple[Bool[np.ndarray, " m"], Int64[Tensor, "m 3 c"]]]:
    """PARTICLE's rule: each fold selects a checkpoint, which is scored on the other four folds.

    Args:
        passes: Counts of the test images at every checkpoint.
        seed: Seed of the folds.

    Returns:
        For each fold, which images are scored, and the counts of its checkpoint.

    Raises:
        ValueError: There are fewer than two images per fold.
    """
    count = len(passes[0])
    if count < 2 * FOLDS:
        raise ValueError(
            f"part_segmentation.protocol: particle splits the test images into {FOLDS} folds; "
            f"there are {count} images, and at least {2 * FOLDS} are needed"
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
    """Outcomes with and without background; independent parts have no background."""
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
        Metric("part_miou_{}", "part masks", detail="mIoU, {} images", main=True),
        Metric("part_miou_{}_fg", "part masks", detail="mIoU, {} images, objects"),
    ),
    summary="a small decoder is trained on the part masks of N images; mean IoU with background, "
    "and without it (`_fg`) (as PARTICLE)",
    options=PartSegmentation,
    needs_labels=False,
    reads="network",
    check=lambda train, test: part_names(train),
)
