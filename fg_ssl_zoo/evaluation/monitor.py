"""Measurements while training: is it learning, or has it collapsed?"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.config import Monitor, printable
from fg_ssl_zoo.data.datasets import file_state, fingerprint
from fg_ssl_zoo.data.decode import max_pixels
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.data.tensor_cache import as_text, cache_file, read_tensors, write_tensors
from fg_ssl_zoo.engine.loop import TrainingStopped
from fg_ssl_zoo.features.extract import (
    Features,
    centre_view,
    evenly,
    extract,
    some,
    unreadable,
)
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.method import Classifies, Method
from fg_ssl_zoo.ops.distributed import rank
from fg_ssl_zoo.ops.neighbours import knn_top1
from fg_ssl_zoo.ops.spectrum import feature_std, rankme

RANK_IMAGES = 2048
"""Pictures that RankMe reads; its value depends on the number, so it is fixed."""

MOST_IMAGES = 50_000
"""Pictures of each split that a measurement reads where the recipe gives no number."""

SAID_EVERY = 15.0
"""Seconds between lines on how far a measurement is, where there is no terminal."""

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
        cache: Folder of kept measurements; `assets/fg_ssl_zoo` of the Hugging Face cache by
            default.
        named: Unreadable pictures that were warned of.
        used: How many pictures of `train` and `test` the last measurement read.
    """

    train: Images
    test: Images | None
    settings: Monitor
    crop_pct: float | None
    num_workers: int = 0
    cache: Path | None = None
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
        return self._measured(backbone, accelerator, self._most)

    @property
    def samples_start(self) -> bool:
        """Whether the measurement before the first step reads less than the others do."""
        sizes = [len(images) for images in (self.train, self.test) if images is not None]
        return min(max(sizes), self._most) > self.settings.start_images

    def sample(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, float]:
        """The same of `monitor.start_images` pictures of each split, as `sample/...`.

        Scores of other pictures are not to be compared, so they have other names. Errors as above.
        """
        found = self._measured(backbone, accelerator, self._most_at_start)
        return _as_sample(found)

    def start(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, float]:
        """What `__call__` gives for start weights, from its file if it was measured before."""
        about = self._about(backbone, accelerator) if accelerator.is_main_process else {}
        found = self.known_start(backbone, accelerator, about)
        if found is None:
            found = self(backbone, accelerator)
            if accelerator.is_main_process and not self.named:
                self._keep(about, found)
        return found

    def known_start(
        self, backbone: Backbone, accelerator: Accelerator, about: dict[str, Any] | None = None
    ) -> dict[str, float] | None:
        """The kept measurement of start weights; every process takes what the main one finds."""
        kept: list[dict[str, float] | None] = [None]
        if accelerator.is_main_process:
            about = about or self._about(backbone, accelerator)
            tensors = read_tensors(cache_file(about, "measurements", self.cache))
            if tensors is not None:
                kept = [{key: value.item() for key, value in tensors.items()}]
        broadcast_object_list(kept)
        if kept[0] is None:
            return None
        self.used.update({k: int(kept[0].pop(k)) for k in ("train", "test") if k in kept[0]})
        return kept[0]

    def _keep(self, about: dict[str, Any], found: dict[str, float]) -> None:
        """Keep a measurement; a cache that cannot be written costs other runs their time alone."""
        values = {
            k: torch.tensor(v, dtype=torch.float64) for k, v in {**found, **self.used}.items()
        }
        path = cache_file(about, "measurements", self.cache)
        try:
            write_tensors(path, values, {"about": as_text(about)})
        except (OSError, SafetensorError) as error:
            _log.warning("the measurement of the start is not kept for other runs: %s", error)

    def _about(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, Any]:
        """All that decides a measurement, on this machine."""
        splits = [self.train] if self.test is None else [self.train, self.test]
        return {
            **identity(backbone),
            "pictures": [[fingerprint(images), file_state(images)] for images in splits],
            "view": asdict(centre_view(backbone, self.crop_pct)),
            "protocol": [self.settings.k, self.settings.temperature, self.settings.max_images],
            "precision": accelerator.mixed_precision,
            "machine": [
                torch.__version__, torch.backends.cpu.get_cpu_capability(), accelerator.device.type,
                accelerator.num_processes, torch.get_num_threads(),
            ],
            "most_pixels": max_pixels(),
            "format": 1,
        }  # fmt: skip

    @property
    def _most_at_start(self) -> int:
        return min(self.settings.start_images, self._most)

    @property
    def _most(self) -> int:
        return self.settings.max_images or MOST_IMAGES

    def read_last(self) -> str:
        """What the last measurement read: `all 16 training and 12 of 40 test pictures`."""
        splits = {"train": (self.train, "training"), "test": (self.test, "test")}
        counts = []
        for key, (images, name) in splits.items():
            if images is not None and key in self.used:
                share = "all" if self.used[key] == len(images) else f"{self.used[key]} of"
                counts.append(f"{share} {len(images)} {name}")
        return f"{' and '.join(counts)} pictures" if counts else ""

    def _measured(
        self, backbone: Backbone, accelerator: Accelerator, most: int
    ) -> dict[str, float]:
        train = self._features(backbone, self.train, accelerator, most)
        measured = {}
        looked_at = train.features
        if self.test is not None and train.labels is not None:
            test = self._features(backbone, self.test, accelerator, most)
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

    def own_accuracy(
        self, method: Method, accelerator: Accelerator, *, sample: bool = False
    ) -> dict[str, float]:
        """`eval/own_top1` (0..1) of a method that names classes itself, on the labelled split.

        Args:
            method: Any; of others it is empty.
            accelerator: Its device and precision are used.
            sample: Read as many pictures as before the first step: `sample/own_top1`.
        """
        if self.test is None or not isinstance(method, Classifies):
            return {}
        with evaluating(method):
            found = extract(
                method.backbone,
                self.test,
                accelerator,
                crop_pct=self.crop_pct,
                max_images=self._most_at_start if sample else self._most,
                num_workers=self.num_workers,
                read=lambda backbone, images: method.classify(images),
            )
        assert found.labels is not None
        right = found.features.argmax(dim=1) == found.labels
        found = {"eval/own_top1": right.double().mean().item()}
        return _as_sample(found) if sample else found

    def _features(
        self, backbone: Backbone, images: Images, accelerator: Accelerator, most: int | None
    ) -> Features:
        found = extract(
            backbone,
            images,
            accelerator,
            crop_pct=self.crop_pct,
            max_images=most,
            num_workers=self.num_workers,
            title="measuring",
            lines_every=SAID_EVERY,
        )
        if bad := int((~found.features.isfinite()).any(dim=1).sum()):
            raise TrainingStopped(
                f"the features of {bad} of {len(found.features)} {images.name} images are not "
                "finite, though the weights are. Try a lower train.lr, train.clip_grad_norm=1, a "
                "longer train.warmup, or speed.precision=fp32"
            )
        self._name_unreadable(images, found, most)
        self.used["test" if images is self.test else "train"] = len(found.indices)
        return found

    def _name_unreadable(self, images: Images, found: Features, most: int | None) -> None:
        """Warn once of pictures that are in no measurement."""
        asked = evenly(len(images), most)
        lines = [line for line in unreadable(images, found, asked) if line not in self.named]
        self.named.update(lines)
        if lines and rank() == 0:  # every process knows them
            _log.warning(
                "%d of %d pictures of %s cannot be read and are not measured: %s",
                len(lines), len(asked), images.name, some([printable(line) for line in lines]),
            )  # fmt: skip


def _as_sample(found: Mapping[str, float]) -> dict[str, float]:
    return {key.replace("eval/", "sample/"): value for key, value in found.items()}


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
