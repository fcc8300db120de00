"""A recipe: everything that makes one pretrained model, as frozen dataclasses."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Len, MinLen

from fg_ssl_zoo.config.paths import home_path, wrong_name
from fg_ssl_zoo.config.ranges import Count, Positive, Seed, Share, Weight
from fg_ssl_zoo.config.validate import Check

CROP_PCT = 0.875
"""Share of the shorter side that the centre crop of our models keeps; timm's default."""

Name = Annotated[str, Check(wrong_name)]
"""The name of one file: it becomes part of the names of folders."""


def source_name(path: str | None, hub_id: str | None) -> str:
    """A data set's name by the folder or Hub id it is read from, fit for a model's name.

    Args:
        path: Folder; wins.
        hub_id: `OWNER/NAME`, `OWNER/NAME:CONFIGURATION`, or a folder.
    """
    if path:
        return clean_name(home_path(path).resolve().name)
    return clean_name((hub_id or "").rstrip("/").rpartition("/")[2])


def clean_name(name: str) -> str:
    """ASCII letters, digits and single underscores; a hash where that would lose or mislead.

    `My photos (2)` -> `My_photos_2`. A name without such letters, or `drawn`, which stands for the
    drawn birds, gets six digits of its hash, so that two of them stay apart.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")
    if plain and plain.casefold() != Data.name:
        return plain
    digits = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
    return f"{plain or 'pictures'}_{digits}"


@dataclass(frozen=True)
class Data:
    """Where the pictures come from and how large they enter the network.

    Attributes:
        name: `drawn`, a name of the catalogue (`cub`, `aircraft`, ...), or a name of your own with
            `path` or `hub_id`; the last word of those when not given.
        path: Local folder; wins over `hub_id` and the catalogue.
        hub_id: Dataset id on the Hugging Face Hub; wins over the catalogue.
        columns: Names of the `image` and `label` columns of a Hub dataset.
        train_split: Split to pretrain on (a subfolder or a Hub split).
        test_split: Labelled split that evaluation scores.
        streaming: Read the first `num_images` of a Hub dataset without downloading the rest.
        image_size: Side of the square input, in pixels; 16 to 4096.
        crop_pct: Share of the shorter side that the centre crop of measurements and of the export
            keeps; 0.1 to 1. When not given, a recipe has 0.875, and a model that is scored keeps
            its own.
        num_images: Pictures to draw, or the most to take from a source; all when not given.
        num_classes: Species of the drawn set.
        num_workers: Loader processes of each training process, at most 256; `auto` follows the
            cores.
    """

    name: Name = "drawn"
    path: str | None = None
    hub_id: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    train_split: str = "train"
    test_split: str = "test"
    streaming: bool = False
    image_size: Annotated[int, Ge(16), Le(4096)] = 96
    crop_pct: Annotated[float, Ge(0.1), Le(1)] | None = None
    num_images: Annotated[int, Ge(2)] | None = None
    num_classes: Annotated[int, Ge(2)] = 20
    num_workers: Annotated[int, Ge(0), Le(256)] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.name == Data.name and (self.path or self.hub_id):  # these are not drawn
            object.__setattr__(self, "name", source_name(self.path, self.hub_id))


@dataclass(frozen=True)
class Train:
    """How one stage is optimised.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimizer steps; replaces `epochs` when given.
        batch_size: Images of one optimizer step, of all processes and accumulated parts together.
        accumulate: Parts the batch is split into; negatives then come from one part only.
        optimizer: A timm optimizer name.
        lr: Learning rate at a batch of 256 images (SimCLR, section 2.2: lr = 0.3 * batch / 256).
        lr_scaling: How the rate follows the batch size.
        weight_decay: Not applied to biases, norms, class tokens and position embeddings.
        weight_decay_end: Value that a cosine brings it to at the end; constant when not given (0.4
            in DINO).
        momentum: Of `lars` and `sgd`.
        warmup: Share of the steps over which the rate rises from 0.
        head_warmup: Share of the steps in which the backbone keeps the weights it started with and
            the rest learns, so that random heads do not destroy a good start. The running
            statistics of its norms move unless `norm` keeps them.
        backbone_lr_scale: Rate of the backbone as a share of that of the heads; below 1 keeps a
            good start closer to what it was.
        norm: Batch norms of the backbone and of its teacher: `train` normalises with each batch
            and moves the running statistics; `frozen` normalises with the running statistics and
            keeps them, while scale and shift learn; `auto` freezes those whose statistics came
            with the start weights (`init`), so none from `scratch`.
        lr_end: Share of the rate that the cosine ends at.
        clip_grad_norm: Largest norm of the gradient, if any.
        checkpoint_every: Epochs between checkpoints; the last step and an interrupt always write
            one.
    """

    epochs: Positive = 100
    steps: Count | None = None
    batch_size: Count = 64
    accumulate: Count = 1
    optimizer: str = "lars"
    lr: Annotated[float, Gt(0), Le(1e30)] = 0.3
    lr_scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: Annotated[float, Ge(0), Le(1e30)] = 1e-4
    weight_decay_end: Annotated[float, Ge(0), Le(1e30)] | None = None
    momentum: Share = 0.9
    warmup: Share = 0.1
    head_warmup: Share = 0.0
    backbone_lr_scale: Positive = 1.0
    norm: Literal["auto", "train", "frozen"] = "auto"
    lr_end: Share = 0.0
    clip_grad_norm: Positive | None = None
    checkpoint_every: Positive = 1


@dataclass(frozen=True)
class Stage:
    """One method with its options and its training.

    Attributes:
        method: A name of `fg_ssl_zoo.methods.METHODS`.
        options: Keywords of the method's constructor.
        train: Optimisation of this stage.
        rounds: How often annotate + train are repeated.
        inherit: Modules other than the backbone that are taken over from the stage before; in the
            first stage from the training of `init`, where `all` takes all.
        start_share: Share `a` of the stage's start in the weights that it ends with: a * start +
            (1 - a) * trained, for all parameters and running statistics of the backbone (WiSE-FT,
            Wortsman et al., 2022, arXiv 2109.01903). Choose it on a validation part.
        start_distillation: Weight of a second loss, 1 - cos(h, h of the stage's start), on the
            pictures that the method shows the backbone; costs a forward pass of the start.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    rounds: Count = 1
    inherit: tuple[str, ...] = ()
    start_share: Share = 0.0
    start_distillation: Weight = 0.0


@dataclass(frozen=True)
class Monitor:
    """What is measured while training, at step 0, every `every` epochs and at the end.

    Attributes:
        every: Epochs between measurements.
        early: Steps after which a run from start weights is measured once more, so that a start
            that is being lost is told at once; 0 for never.
        k: Neighbours of the kNN vote.
        temperature: Of the weights exp(similarity / temperature) of that vote.
        max_images: Most images of each split that a measurement reads; all when not given.
    """

    every: Positive = 10
    early: Annotated[int, Ge(0)] = 20
    k: Count = 20
    temperature: Positive = 0.07
    max_images: Count | None = None


@dataclass(frozen=True)
class Hub:
    """How the exported backbone is published.

    Attributes:
        repo: `OWNER/NAME`; the default organisation and the recipe's name when not given.
        license: SPDX name (lower case) of the weights. The pictures' terms decide it, so there is
            no default; without one, nothing is published.
        tags: Further tags of the card.
        sha256: Of the released `model.safetensors`; `fgssl publish RUN --to published` writes it.
    """

    repo: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    sha256: Annotated[str, Len(64, 64)] | None = None


@dataclass(frozen=True)
class Speed:
    """Switches that change the speed and not the maths; `auto` chooses from the hardware.

    Attributes:
        precision: `bf16` autocast or `fp32`.
        channels_last: Memory format of convolutional networks.
        fused_attention: torch's fused attention; slow for short sequences on a CPU.
        keep_memory: Tell glibc to keep big blocks instead of returning them each step.
        threads: Of each process, for training on a CPU; at most 16, or 4 for each
            core of the machine.
    """

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    fused_attention: bool | Literal["auto"] = "auto"
    keep_memory: bool | Literal["auto"] = "auto"
    threads: Annotated[int, Ge(1), Le(1024)] | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Recipe:
    """One pretrained model: file name = timm name = Hub name.

    Attributes:
        name: `fgssl_BACKBONE_DATA.METHOD`; the file's stem.
        backbone: Any timm model name.
        backbone_options: Keywords of its timm constructor (`zero_init_last`, `channels`), which the
            export carries.
        init: Start weights: `scratch`, a timm tag of that backbone (`a1_in1k`, `dino`), a
            `.safetensors` file (`FILE#partial` if it holds a part on purpose), a run or exported
            folder or a published name of ours to continue from, `hf-hub:OWNER/NAME` or
            `local-dir:FOLDER`.
        data: The pictures.
        stages: Trained one after the other; the backbone walks through all of them.
        seed: Of weights, order and views; below 2^32, as numpy's.
        output: Folder of the run; `runs/NAME` when not given. `~` is the home folder, here and in
            `data.path` and `init`.
        resume: `auto` goes on from the newest checkpoint of the same recipe; `never` refuses a used
            folder.
        overwrite: Delete the files of the run in the output folder and start afresh; files that no
            run wrote stay. Not kept in the run's `recipe.yaml`.
        keep_checkpoints: Newest checkpoints that stay in the run's folder. One that cannot be read
            is set aside, and the run goes on from the one before.
        monitor: Measurements while training.
        speed: Hardware switches.
        trackers: Further loggers of Accelerate (`wandb`, `mlflow`, ...); JSONL and TensorBoard
            always run.
        hub: Publishing.
    """

    name: Name
    backbone: Name
    stages: Annotated[tuple[Stage, ...], MinLen(1)]
    backbone_options: dict[str, Any] = field(default_factory=dict)
    init: str = "scratch"
    data: Data = field(default_factory=Data)
    seed: Seed = 0
    output: str | None = None
    resume: Literal["auto", "never"] = "auto"
    overwrite: bool = False
    keep_checkpoints: Count = 2
    monitor: Monitor = field(default_factory=Monitor)
    speed: Speed = field(default_factory=Speed)
    trackers: tuple[str, ...] = ()
    hub: Hub = field(default_factory=Hub)

    def __post_init__(self) -> None:
        if self.data.crop_pct is None:  # what is trained here has no config of its own yet
            object.__setattr__(self, "data", replace(self.data, crop_pct=CROP_PCT))

    @property
    def folder(self) -> Path:
        """Folder of the run; `~` is the home folder."""
        return home_path(self.output or f"runs/{self.name}")
