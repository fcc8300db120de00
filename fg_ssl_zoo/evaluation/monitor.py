"""Measurements while training: is it learning, or has it collapsed?"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Monitor, printable
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.engine.loop import TrainingStopped
from fg_ssl_zoo.features.extract import Features, evenly, extract, some, unreadable
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.method import Classifies, Method
from fg_ssl_zoo.ops.distributed import rank
from fg_ssl_zoo.ops.neighbours import knn_top1
from fg_ssl_zoo.ops.spectrum import feature_std, rankme

RANK_IMAGES = 2048
"""Pictures that RankMe reads; its value depends on the number, so it is fixed."""

COLLAPSED_STD = 1e-3
"""Feature std below which features are one point; 1 is evenly spread, untrained is 0.1 and more."""


_LOSING = (
    "the start is being lost: {} {} before the training, {} now. Try train.norm=frozen, a lower "
    "train.lr or train.backbone_lr_scale=0.1, train.head_warmup=0.1, or start_distillation=1"
)

_SCORES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("eval/knn_top1", "kNN accuracy", lambda x: f"{100 * x:.1f} %"),
    ("eval/rankme", "RankMe", lambda x: f"{x:.3g}"),
)
"""What tells how good the features are, the first that is measured, and how it is written."""

_log = logging.getLogger(__name__)
_ADVICE = (
    "below its start: {} {} before the training, {} after it. Try a lower train.lr (a tenth), "
    "train.head_warmup=0.1 for a start that is good already, other views (options.preset, "
    "options.augmentation), more pictures or steps, or another method"
)


class Collapsed(RuntimeError):
    """All pictures have the same features; the message says what was seen and what to try."""


@dataclass(frozen=True)
class OnlineMonitor:
    """kNN accuracy on the labelled split where there is one; RankMe and feature std always.

    Attributes:
        train: Pictures that vote, and that RankMe reads when there is no test split.
        test: Labelled pictures to classify, or `None`.
        settings: The recipe's.
        crop_pct: Of the centre crop; the model's own when not given.
        num_workers: Loader processes.
        named: Unreadable pictures that were warned of.
        used: How many pictures of `train` and `test` the last measurement read.
    """

    train: Images
    test: Images | None
    settings: Monitor
    crop_pct: float | None
    num_workers: int = 0
    named: set[str] = field(default_factory=set)
    used: dict[str, int] = field(default_factory=dict)

    def __call__(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, float]:
        """`eval/knn_top1` (0..1), `eval/rankme`, `eval/feature_std`, equal on every process.

        Another number of processes makes batches of other sizes. In bf16 their rounding differs, so
        these numbers may differ in their last digits.

        Raises:
            Collapsed: The features do not tell pictures apart.
            TooManyCorruptImages: Not one picture of a split can be read.
            TrainingStopped: The features are no numbers.
        """
        train = self._features(backbone, self.train, accelerator)
        measured = {}
        looked_at = train.features
        if self.test is not None and train.labels is not None:
            test = self._features(backbone, self.test, accelerator)
            looked_at = test.features
            if test.labels is not None:
                measured["eval/knn_top1"] = knn_top1(
                    train.features,
                    train.labels,
                    test.features,
                    test.labels,
                    k=self.settings.k,
                    temperature=self.settings.temperature,
                )
        sample = looked_at[evenly(len(looked_at), RANK_IMAGES)]
        measured |= {"eval/rankme": rankme(sample), "eval/feature_std": feature_std(sample)}
        _check(measured)
        return measured

    def own_accuracy(self, method: Method, accelerator: Accelerator) -> dict[str, float]:
        """`eval/own_top1` (0..1) of a method that names classes itself, on the labelled split."""
        if self.test is None or not isinstance(method, Classifies):
            return {}
        with evaluating(method):
            found = extract(
                method.backbone,
                self.test,
                accelerator,
                crop_pct=self.crop_pct,
                max_images=self.settings.max_images,
                num_workers=self.num_workers,
                read=lambda backbone, images: method.classify(images),
            )
        assert found.labels is not None
        right = found.features.argmax(dim=1) == found.labels
        return {"eval/own_top1": right.double().mean().item()}

    def _features(self, backbone: Backbone, images: Images, accelerator: Accelerator) -> Features:
        found = extract(
            backbone,
            images,
            accelerator,
            crop_pct=self.crop_pct,
            max_images=self.settings.max_images,
            num_workers=self.num_workers,
        )
        if bad := int((~found.features.isfinite()).any(dim=1).sum()):
            raise TrainingStopped(
                f"the features of {bad} of {len(found.features)} {images.name} images are not "
                "finite, though the weights are. Try a lower train.lr, train.clip_grad_norm=1, a "
                "longer train.warmup, or speed.precision=fp32"
            )
        self._name_unreadable(images, found)
        self.used["test" if images is self.test else "train"] = len(found.indices)
        return found

    def _name_unreadable(self, images: Images, found: Features) -> None:
        """Warn once of pictures that are in no measurement."""
        asked = evenly(len(images), self.settings.max_images)
        lines = [line for line in unreadable(images, found, asked) if line not in self.named]
        self.named.update(lines)
        if lines and rank() == 0:  # every process knows them
            _log.warning(
                "%d of %d pictures of %s cannot be read and are not measured: %s",
                len(lines), len(asked), images.name, some([printable(line) for line in lines]),
            )  # fmt: skip


def _check(measured: dict[str, float]) -> None:
    spread = measured["eval/feature_std"]
    if not spread > COLLAPSED_STD:  # also when it is no number
        raise Collapsed(
            f"the features have collapsed: their std is {spread:.2g} (1 is evenly spread, "
            "an untrained network has 0.1 and more) and their effective rank "
            f"{measured['eval/rankme']:.1f}. Try a lower train.lr, a longer train.warmup, "
            "a larger train.batch_size, or stronger views"
        )


LOST = 0.9
"""Share of the start's score below which a start is being lost."""


def losing_start(measured: Sequence[Mapping[str, float]]) -> str | None:
    """What to say of a run that has lost more than a tenth of its start's score so far.

    Arguments and result as for `below_start`.
    """
    return _said_below(measured, LOST, _LOSING)


def below_start(measured: Sequence[Mapping[str, float]]) -> str | None:
    """What to say of a run whose last measurement is below its first, and what to try.

    Args:
        measured: Measurements of a run from its start on, and other lines of its log.

    Returns:
        One sentence on kNN accuracy, on RankMe where no labels are known; `None` if it is not
        below.
    """
    return _said_below(measured, 1.0, _ADVICE)


def _said_below(measured: Sequence[Mapping[str, float]], share: float, sentence: str) -> str | None:
    """The sentence with both scores, if the last one is below this share of the first."""
    for key, name, shown in _SCORES:
        found = [line[key] for line in measured if key in line]
        if found:
            first, last = found[0], found[-1]
            said = sentence.format(name, shown(first), shown(last))
            return said if last < share * first else None
    return None
