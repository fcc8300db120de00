"""The interface of a pretext method: views, loss, optional hooks and capabilities."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.order import pictures_of_a_pass
from fg_ssl_zoo.data.sample import Images, Views
from fg_ssl_zoo.layers.batch_norm import norms_of_batches, synchronises
from fg_ssl_zoo.layers.frozen import keep_statistics, norms_of

Batch = Mapping[str, Any]
"""Stacked samples on the device: a row per image, uint8 images as (b, ..., h, w, 3) tensors."""

Notes = dict[str, Tensor]
"""Tensors with one row per training image, computed before a round.

Each row is added to its sample under the tensor's name.
"""


@dataclass(frozen=True)
class MethodOutput:
    """The result of one forward pass.

    Attributes:
        loss: () scalar that is minimised.
        metrics: Detached scalars for the log, named `loss/generator`, `train/accuracy`, ...
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A pretext method around a backbone.

    `views` and `forward` are required, all other methods are optional. The constructor's keywords
    are its options: `create_method("simclr", backbone, temperature=0.2)`. Capabilities of some
    methods are declared by a second base class: `FindsParts`, `HasCompanions`, `Classifies`,
    `DrawsPictures`, `FetchesWeights`.

    Attributes:
        papers: Citations of the method for the card, one per line.
        figures: Results that papers report for the method, for the card, one per line.
        needs_labels: Whether it is trained on labels; it then has the option `num_classes`, which
            is set from the data.
        has_outside_teacher: Whether it learns from a network that is not part of its state. Then
            `outside_teachers` names that network, and an export has no `pretraining/` folder.
        negatives: Source of negatives within a forward pass: `none` (also if there is a queue),
            other images of the same `process`, or of `all` processes.
    """

    papers: ClassVar[tuple[str, ...]] = ()
    figures: ClassVar[tuple[str, ...]] = ()
    needs_labels: ClassVar[bool] = False
    has_outside_teacher: ClassVar[bool] = False
    negatives: Literal["none", "process", "all"] = "none"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @classmethod
    def reported(cls, options: Mapping[str, Any]) -> tuple[str, ...]:
        """`figures`; overridden by methods whose figures depend on their options."""
        return cls.figures

    @classmethod
    def outside_teachers(cls, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`model`, `architecture`, `weights` (hash), `license` of each network it learns from.

        Called if `has_outside_teacher`; opens these networks and refuses unsuitable ones.
        """
        return []

    @classmethod
    def keeps_queue(cls, options: Mapping[str, Any]) -> bool:
        """Whether the method with these options keeps `queue_size` keys of earlier batches."""
        return "queue_size" in inspect.signature(cls.__init__).parameters

    @abstractmethod
    def views(self, image_size: int) -> Views:
        """Augmented views of one sample, `image_size` pixels a side."""

    @abstractmethod
    def forward(self, batch: Batch) -> MethodOutput:
        """Compute the loss of a batch.

        Every computation with gradients must happen here, since the loop calls the DDP wrapper.
        """

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """Parameter groups with their own optimizer options.

        By default one group of all parameters that require a gradient.
        """
        yield {"params": [p for p in self.parameters() if p.requires_grad]}

    def annotate(self, images: Images, accelerator: Accelerator) -> Notes:
        """Notes on the training images, computed before each round and equal on every process."""
        return {}

    def on_step_end(self, progress: float) -> None:
        """Called after each optimizer step with the completed share of the stage, in 0..1."""


# --------------------------------------------------------------------------- capabilities


class FindsParts(ABC):
    """A method that discovers parts of objects."""

    @abstractmethod
    def parts(
        self, images: Images, accelerator: Accelerator, learn_from: Images | None = None
    ) -> Tensor | None:
        """Part maps (n, m, m) by the current backbone; `None` if numbers differ between images.

        0 is the background. The clusters come from `learn_from` (by default the images
        themselves), and a number means the same part in both sets. Called before the first round
        and after each round. The maps are scored as `eval/part_nmi` and `eval/part_ari` if the
        images have annotated parts, and some are stored for `fgssl parts`.
        """


class HasCompanions(ABC):
    """A method with further networks that are published."""

    @abstractmethod
    def companions(self) -> Mapping[str, Backbone]:
        """Short name -> network.

        Called after the last stage; each network is measured once and exported to `export_NAME`.
        """


class Classifies(ABC):
    """A method that is trained on labels and has its own classifier."""

    @abstractmethod
    def classify(self, images: Tensor) -> Tensor:
        """Class scores (b, c) of normalised images (b, 3, h, w).

        Every measurement logs their accuracy as `eval/own_top1`.
        """


class DrawsPictures(ABC):
    """A method that generates images, such as reconstructions."""

    @abstractmethod
    def picture(self, batch: Batch) -> Tensor:
        """An image (h, w, 3) uint8 that shows the results for a batch.

        Called after each measurement, in evaluation mode and without gradient.
        """


class FetchesWeights(ABC):
    """A method with an option that loads weights, which are also in its saved state."""

    @classmethod
    @abstractmethod
    def options_of_saved(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options for loading a saved state, without those that load other weights.

        The state contains these weights, and the author of the options is not trusted.
        """


def options_of_saved(kind: type[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for loading a saved state of a method; see `FetchesWeights`."""
    return kind.options_of_saved(options) if issubclass(kind, FetchesWeights) else dict(options)


# --------------------------------------------------------------------------- what a batch must hold


def train_mode(method: Method, train: Train, started: frozenset[str] = frozenset()) -> None:
    """Set training mode, except for the BatchNorms that `train.norm` freezes in every backbone.

    Args:
        method: Changed in place, including its teacher.
        train: Settings of the stage.
        started: Names of norms that `norm: auto` freezes: those with statistics before training.
    """
    method.train()
    for network in method.modules():
        if isinstance(network, Backbone):
            every = norms_of(network)
            frozen = {"train": frozenset(), "frozen": every, "auto": every & started}
            keep_statistics(network, frozen[train.norm])


def check_batch(
    method: Method, train: Train, processes: int, device: torch.device, where: str = "train"
) -> None:
    """Refuse a batch size with one image in a forward pass if the method needs two.

    Args:
        method: The method in training mode.
        train: Settings of the stage.
        processes: Number of processes that train together.
        device: Device of the training; decides which norms are synchronised.
        where: Path of the settings, for the error.

    Raises:
        ValueError: Names batch, processes, parts and the reason, and a batch size that works.
    """
    parts, batch = train.accumulate, train.batch_size
    pictures = pictures_of_a_pass(batch, processes, parts, where)
    lacking = lack_of_pictures(method, pictures, processes, lambda n: synchronises(n, device))
    if lacking is None:
        return
    least = 2 * processes
    fits = [n for n in range(parts - 1, 0, -1) if batch % (processes * n) == 0]
    fewer = [n for n in fits if batch >= least * n]
    other = f" or {where}.accumulate={fewer[0]}" if fewer else ""
    raise ValueError(
        f"{where}.batch_size: {batch} over {processes} process{'es' if processes > 1 else ''} x "
        f"{parts} accumulated part{'s' if parts > 1 else ''} is 1 image in a forward pass, but "
        f"{lacking}; use {where}.batch_size={least * parts}{other}"
    )


def lack_of_pictures(
    method: Method, pictures: int, processes: int, shared: Callable[[nn.Module], bool]
) -> str | None:
    """Why a method cannot be trained with so few images in a forward pass; `None` if it can.

    One image has no negatives, and a BatchNorm over one image removes its differences from others.

    Args:
        method: The method in training mode.
        pictures: Number of images in a forward pass of one process.
        processes: Number of processes that train together.
        shared: Whether norms use the statistics of all processes.
    """
    name = type(method).__name__
    if (
        method.negatives != "none"
        and pictures * (processes if method.negatives == "all" else 1) < 2
    ):
        return f"{name} compares each image with others of its pass"
    for layer, norm in norms_of_batches(method).items():
        if pictures * (processes if shared(norm) else 1) < 2:
            return f"{name} has a BatchNorm ({layer}) that takes the statistics of its pass"
    return None
