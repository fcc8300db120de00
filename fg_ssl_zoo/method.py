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
"""Stacked samples on the device: a row per image, uint8 pictures as (b, ..., h, w, 3) tensors."""

Notes = dict[str, Tensor]
"""Tensors with one row per training image, taken before a round.

They join the sample under their name.
"""


@dataclass(frozen=True)
class MethodOutput:
    """What one forward pass says.

    Attributes:
        loss: () scalar that is minimised.
        metrics: Detached scalars for the log, named `loss/generator`, `train/accuracy`, ...
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """A pretext method around a backbone.

    `forward` and `views` are the method, the rest is optional. The constructor's keywords are its
    configuration: `create_method("simclr", backbone, temperature=0.2)`. What only some methods do
    is declared by a second base class: `FindsParts`, `HasCompanions`, `Classifies`,
    `DrawsPictures`, `FetchesWeights`.

    Attributes:
        papers: Citation lines of the method, for the card.
        figures: Results that papers report for the method, for the card; a line each.
        needs_labels: Whether it learns from labels; `num_classes` is then an option, which the data
            decides.
        has_outside_teacher: Whether it learns from a network that its state does not hold. Then
            `outside_teachers` names it, and an export has no `pretraining/` to go on from.
        negatives: Pictures that the loss needs besides the one at hand in each forward pass: `none`
            (also where a queue holds them), others of the same `process`, or of `all` processes.
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
        """`figures`; a method whose figures depend on its options overrides this."""
        return cls.figures

    @classmethod
    def outside_teachers(cls, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`model`, `architecture`, `weights` (hash), `license` of each network it learns from.

        Where `has_outside_teacher`; opens them, and refuses those that it could not learn from.
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
        """Computes the loss of a batch.

        All that takes part in a gradient happens here: the loop calls the wrapped module.
        """

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """Parameters with their own optimizer options.

        By default one group of all that requires grad.
        """
        yield {"params": [p for p in self.parameters() if p.requires_grad]}

    def annotate(self, images: Images, accelerator: Accelerator) -> Notes:
        """Notes on the training images, taken before each round and equal on every process."""
        return {}

    def on_step_end(self, progress: float) -> None:
        """Called after each optimizer step with the share of the stage that is done, in 0..1."""


# --------------------------------------------------------------------------- what some methods do


class FindsParts(ABC):
    """A method that looks for parts of objects."""

    @abstractmethod
    def parts(
        self, images: Images, accelerator: Accelerator, learn_from: Images | None = None
    ) -> Tensor | None:
        """Part of every pixel (n, m, m) that its backbone now finds; `None` if it cannot say.

        0 is background, and the other numbers mean the same in all pictures and in those of
        `learn_from`, which they come from (the pictures themselves when not given). Asked for
        before the first round and behind each; scored as `eval/part_nmi` and `eval/part_ari` where
        parts of the pictures are known, and kept for a few pictures that `fgssl parts` shows.
        """


class HasCompanions(ABC):
    """A method with other networks that are worth publishing."""

    @abstractmethod
    def companions(self) -> Mapping[str, Backbone]:
        """The networks, each under a short name.

        Asked for when the last stage has ended; each is scored once and exported beside the
        backbone, into `export_NAME`.
        """


class Classifies(ABC):
    """A method that learns from labels and names classes itself."""

    @abstractmethod
    def classify(self, images: Tensor) -> Tensor:
        """Class scores (b, c) of normalised pictures (b, 3, h, w).

        Every measurement scores them as `eval/own_top1`.
        """


class DrawsPictures(ABC):
    """A method that makes pictures, such as a reconstruction."""

    @abstractmethod
    def picture(self, batch: Batch) -> Tensor:
        """A picture (h, w, 3) uint8 of what it makes of a batch.

        Asked for after each measurement, in evaluation mode and without gradient.
        """


class FetchesWeights(ABC):
    """A method with an option that fetches weights, which its saved state holds."""

    @classmethod
    @abstractmethod
    def options_of_saved(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options under which a saved state is loaded: they fetch nothing.

        The state holds the weights, and whoever wrote the options may be a stranger.
        """


def options_of_saved(kind: type[Method], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under which a saved state of a method is loaded; see `FetchesWeights`."""
    return kind.options_of_saved(options) if issubclass(kind, FetchesWeights) else dict(options)


# --------------------------------------------------------------------------- what a batch must hold


def train_mode(method: Method, train: Train, started: frozenset[str] = frozenset()) -> None:
    """Training mode, but for the batch norms that `train.norm` freezes in every backbone.

    Args:
        method: Is changed, its teacher too.
        train: Settings of the stage.
        started: Norms that `norm: auto` freezes, by name: those with statistics before training.
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
    """Refuse a batch that leaves one picture where the method needs two: nothing would be learnt.

    Args:
        method: In the mode that it is trained in.
        train: Settings of the stage.
        processes: That train together.
        device: On which they train; decides which norms they share.
        where: Path of the settings, for the error.

    Raises:
        ValueError: Batch, processes, parts and the reason; and what would do.
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
        f"{parts} accumulated part{'s' if parts > 1 else ''} is 1 picture in a forward pass, but "
        f"{lacking}; {where}.batch_size={least * parts}{other} would do"
    )


def lack_of_pictures(
    method: Method, pictures: int, processes: int, shared: Callable[[nn.Module], bool]
) -> str | None:
    """Why a forward pass of so few pictures teaches a method nothing; `None` if it does.

    One picture has no negatives, and a BatchNorm over it removes what tells it from others.

    Args:
        method: In the mode that it is trained in.
        pictures: Of one process.
        processes: That train together.
        shared: Whether a norm takes the statistics of all processes.
    """
    name = type(method).__name__
    if (
        method.negatives != "none"
        and pictures * (processes if method.negatives == "all" else 1) < 2
    ):
        return f"{name} compares each picture with others of its pass"
    for layer, norm in norms_of_batches(method).items():
        if pictures * (processes if shared(norm) else 1) < 2:
            return f"{name} has a BatchNorm ({layer}) that takes the statistics of its pass"
    return None
