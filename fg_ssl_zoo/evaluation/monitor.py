"""Measurements during training: kNN accuracy, RankMe, and detection of a collapse."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.config import Monitor, printable
from fg_ssl_zoo.data.datasets import file_state, fingerprint
from fg_ssl_zoo.data.decode import max_pixels
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.data.tensor_cache import (
    as_text,
    cache_file,
    is_empty,
    read_tensors,
    write_tensors,
)
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
"""Images that RankMe reads; its value depends on the number, so it is fixed."""

MOST_IMAGES = 50_000
"""Images of each split that a measurement reads where the recipe gives no number."""

SAID_EVERY = 15.0
"""Seconds between progress lines of a measurement without a terminal."""

COLLAPSED_STD = 1e-3
"""Feature std below which features count as collapsed. Most random networks have 0.01 to 0.5; CaiT,
whose residual branches begin near 0, has 1e-5."""


_LOSING = (
    "the start is being lost: {} {} before the training, {} now. Try train.norm=frozen, a lower "
    "train.lr or train.backbone_lr_scale=0.1, train.head_warmup=0.1, or start_distillation=1"
)

_SCORES: tuple[tuple[str, str, Callable[[float], str], str], ...] = (
    ("eval/knn_top1", "kNN accuracy", lambda x: f"{100 * x:.1f} %", ""),
    (
        "eval/rankme", "RankMe", lambda x: f"{x:.3g}",
        ". RankMe is a weak sign: random weights can have a higher one than trained weights",
    ),
)  # fmt: skip
"""Keys of quality measures, the preferred one first, how each is written, and a remark."""

_log = logging.getLogger(__name__)
_ADVICE = (
    "below its start: {} {} before the training, {} after it. Try a lower train.lr (a tenth), "
    "train.head_warmup=0.1 for a start that is good already, other views (options.preset, "
    "options.augmentation), more images or steps, or another method"
)


class Collapsed(RuntimeError):
    """All images have nearly the same features; the message has the numbers and remedies."""


@dataclass(frozen=True)
class OnlineMonitor:
    """kNN accuracy if there is a labelled test split; RankMe and feature std always.

    Attributes:
        train: Images whose labels vote; RankMe reads them if there is no test split.
        test: Labelled images to classify, or `None`.
        settings: The recipe's `monitor`.
        crop_pct: Share of the image that the centre crop keeps; the model's own when not given.
        num_workers: Loader processes.
        cache: Folder of stored measurements; `assets/fg_ssl_zoo` of the Hugging Face cache by
            default.
        named: Unreadable images that the log has already named.
        used: Numbers of images of `train` and `test` that the last measurement read.
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

        With another number of processes, batches have another size. In bf16 this changes the
        rounding, so the last digits may differ.

        Raises:
            TooManyCorruptImages: No image of a split can be read.
            TrainingStopped: The features are not finite.
        """
        return self._measured(backbone, accelerator, self._most)

    @property
    def samples_start(self) -> bool:
        """Whether the measurement before the first step reads fewer images than the others."""
        sizes = [len(images) for images in (self.train, self.test) if images is not None]
        return min(max(sizes), self._most) > self.settings.start_images

    def sample(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, float]:
        """`sample/rankme` and `sample/feature_std` of `monitor.start_images` images of one split.

        The split is the one that `eval/rankme` reads. The names differ because scores on fewer
        images are not comparable; a kNN accuracy of so few would say nothing. Errors as above.
        """
        images = self.train if self.test is None else self.test
        features = self._features(backbone, images, accelerator, self._most_at_start).features
        return _as_sample(_spread(features))

    def start(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, float]:
        """`__call__` for start weights, read from a file if they were measured before."""
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
        """The stored measurement of start weights; all processes use what the main one reads.

        Where none is stored yet, nothing is hashed to look for it: the first step waits for this.
        """
        kept: list[dict[str, float] | None] = [None]
        if accelerator.is_main_process and not is_empty("measurements", self.cache):
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
        """Store a measurement; if the cache cannot be written, later runs measure again."""
        values = {
            k: torch.tensor(v, dtype=torch.float64) for k, v in {**found, **self.used}.items()
        }
        try:
            path = cache_file(about, "measurements", self.cache)
            write_tensors(path, values, {"about": as_text(about)})
        except (OSError, SafetensorError) as error:
            _log.warning("the measurement of the start cannot be stored for other runs: %s", error)

    def _about(self, backbone: Backbone, accelerator: Accelerator) -> dict[str, Any]:
        """Everything that determines a measurement on this machine."""
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
        """What the last measurement read: `all 16 training and 12 of 40 test images`."""
        splits = {"train": (self.train, "training"), "test": (self.test, "test")}
        counts = []
        for key, (images, name) in splits.items():
            if images is not None and key in self.used:
                share = "all" if self.used[key] == len(images) else f"{self.used[key]} of"
                counts.append(f"{share} {len(images)} {name}")
        return f"{' and '.join(counts)} images" if counts else ""

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
        return measured | _spread(looked_at)

    def own_accuracy(
        self, method: Method, accelerator: Accelerator, *, sample: bool = False
    ) -> dict[str, float]:
        """`eval/own_top1` (0..1) of a method with its own classifier, on the labelled split.

        Args:
            method: Any method; the result is empty if it has no classifier.
            accelerator: Its device and precision are used.
            sample: Read only as many images as before the first step, for `sample/own_top1`.
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
        """Log each unreadable image once; it is not measured."""
        asked = evenly(len(images), most)
        lines = [line for line in unreadable(images, found, asked) if line not in self.named]
        self.named.update(lines)
        if lines and rank() == 0:  # all processes agree on them
            _log.warning(
                "%d of %d images of %s cannot be read and are not measured: %s",
                len(lines), len(asked), images.name, some([printable(line) for line in lines]),
            )  # fmt: skip


def _as_sample(found: Mapping[str, float]) -> dict[str, float]:
    return {key.replace("eval/", "sample/"): value for key, value in found.items()}


def _spread(features: Tensor) -> dict[str, float]:
    """RankMe and feature std of (n, d) features."""
    sample = features[evenly(len(features), RANK_IMAGES)]
    return {"eval/rankme": rankme(sample), "eval/feature_std": feature_std(sample)}


def refuse_collapse(found: Mapping[str, float], before: Sequence[Mapping[str, float]]) -> None:
    """Stop a run that has made the features of all images nearly the same.

    A run whose features were nearly the same from its start on, as with random weights of CaiT, is
    not stopped unless the std has fallen to less than half, since training may raise it.

    Args:
        found: A measurement after the start.
        before: Earlier measurements of the run, from its start on.

    Raises:
        Collapsed: The message has the numbers and what to try.
    """
    std = found["eval/feature_std"]
    if std > COLLAPSED_STD:
        return
    earlier = [spread for line in before if (spread := _std_in(line)) is not None]
    never_differed = bool(earlier) and max(earlier) <= COLLAPSED_STD
    if never_differed and 0 < earlier[0] / 2 <= std:
        return
    was = f", {earlier[0]:.2g} at the start" if earlier else ""
    to_try = (
        "They were nearly equal at the start: check the images and init"
        if never_differed
        else "Try a lower train.lr, a longer train.warmup, a larger train.batch_size, or stronger "
        "views"
    )
    raise Collapsed(
        f"the features have collapsed: their std is {std:.2g} (1 is evenly spread{was}) and their "
        f"effective rank {found['eval/rankme']:.1f}. {to_try}"
    )


def _std_in(measured: Mapping[str, float]) -> float | None:
    """Feature std of a measurement, on all images or on its sample; `None` if not measured."""
    return measured.get("eval/feature_std", measured.get("sample/feature_std"))


def equal_at_start(found: Mapping[str, float]) -> str | None:
    """Message for start weights whose features are nearly the same for all images, if so."""
    std = _std_in(found)
    if std is None or std > COLLAPSED_STD:
        return None
    return (
        f"all images have nearly the same features before the training (std {std:.2g}; 1 is evenly "
        "spread): either the images are alike, or the weights tell nothing about them"
    )


LOST = 0.9
"""Share of the start's score below which the run is reported as losing its start."""


def losing_start(measured: Sequence[Mapping[str, float]]) -> str | None:
    """Message for a run that has lost more than a tenth of its start's score.

    Arguments and result as for `below_start`.
    """
    return _said_below(measured, LOST, _LOSING)


def below_start(measured: Sequence[Mapping[str, float]]) -> str | None:
    """Message for a run whose last measurement is below its first, with what to try.

    Args:
        measured: Lines of the run's log from its start on; lines without measurements are ignored.

    Returns:
        One sentence on kNN accuracy, or on RankMe without labels; `None` if it is not below.
    """
    return _said_below(measured, 1.0, _ADVICE)


def _said_below(measured: Sequence[Mapping[str, float]], share: float, sentence: str) -> str | None:
    """The sentence with both scores, if the last is below this share of the first."""
    for key, name, shown, remark in _SCORES:
        found = [line[key] for line in measured if key in line]
        if found:
            first, last = found[0], found[-1]
            said = sentence.format(name, shown(first), shown(last))
            return said + remark if last < share * first else None
    return None
