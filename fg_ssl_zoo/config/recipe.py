"""A recipe: all settings of one pretrained model, as frozen dataclasses."""

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
"""Share of the shorter side that the centre crop of our models keeps; the default of timm."""

Name = Annotated[str, Check(wrong_name)]
"""A name that becomes part of folder names, so it contains no path separator."""


FILE_SUFFIXES = (".csv", ".tsv", ".tar", ".parquet")
"""Endings of files that hold or list images."""


def source_name(path: str | tuple[str, ...] | None, hub_id: str | None) -> str:
    """The name of a data set, made from its path or Hub id, as part of a model's name.

    Args:
        path: Folder, or file, whose ending is left out, or several; takes precedence.
        hub_id: `OWNER/NAME`, `OWNER/NAME:CONFIGURATION`, or a folder.
    """
    if path:
        return clean_name("_".join(map(_place_name, path if isinstance(path, tuple) else [path])))
    return clean_name((hub_id or "").rstrip("/").rpartition("/")[2])


def _place_name(path: str) -> str:
    place = home_path(path).resolve()
    return place.stem if place.suffix in FILE_SUFFIXES else place.name


def clean_name(name: str) -> str:
    """A name reduced to ASCII letters, digits and single underscores.

    `My photos (2)` -> `My_photos_2`. Six digits of the name's hash are added if no such letters are
    left, so that two such names differ, and to `drawn`, which is the name of the drawn birds.
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9]+", "_", plain).strip("_")
    if plain and plain.casefold() != Data.name:
        return plain
    digits = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=3).hexdigest()
    return f"{plain or 'pictures'}_{digits}"


@dataclass(frozen=True)
class Source:
    """One of several sources of images that are trained on together.

    Attributes:
        path: As `data.path`.
        weight: How often each image of this source is read in an epoch, on average.
        columns, train_split, test_split: As `data.columns`, ...; those of `data` when not given.
    """

    path: str
    weight: Annotated[float, Gt(0), Le(1000)] = 1.0
    columns: dict[str, str] | None = None
    train_split: str | None = None
    test_split: str | None = None


@dataclass(frozen=True)
class Data:
    """Which images are read, and their size in pixels.

    Attributes:
        name: `drawn`, a name of the catalogue (`cub`, `aircraft`, ...), or a name of your own with
            `path` or `hub_id`. When not given, the last part of `path` or `hub_id`.
        path: Local folder of images, CSV file that lists them, tar files or a folder of Parquet
            files; or a list of these, with or without weights: `[cub, {path: cars, weight: 2}]`
            (docs/data.md). Takes precedence over `hub_id` and the catalogue.
        hub_id: Dataset id on the Hugging Face Hub; takes precedence over the catalogue.
        columns: Names of the `image` and `label` columns of a Hub dataset, and also of the `split`
            column of a CSV file; for tar files, `{label: folder}` takes labels from folders.
        train_split: Split for pretraining: a subfolder, a split of a CSV file, of tar files or of
            a Hub dataset.
        test_split: Labelled split on which evaluation computes its scores.
        streaming: Read a Hub dataset without copying it to the disk: Parquet files row group by
            row group as they are needed; of other formats, the first `num_images` images into
            memory.
        shuffle_buffer: Number of consecutive images of tar files and streamed Parquet files that
            are shuffled together (the files are shuffled too); `auto` is 10,000 for tar files and
            256 for Parquet files. Other images are shuffled as a whole.
        image_size: Side of the square input in pixels; 16 to 4096.
        crop_pct: Share of the shorter side that the centre crop of measurements and of the export
            keeps; 0.1 to 1. When not given: 0.875 in a recipe, the model's own value in an
            evaluation.
        num_images: Number of images to draw, or the largest number to read from a source; all when
            not given.
        num_classes: Number of species of the drawn birds.
        cache: Keep the decoded training images of a folder on disk (`assets/fg_ssl_zoo/pictures`
            of the Hugging Face cache), as small as the crops allow; the pixels are the same.
        cache_gb: Largest size of this cache, of all data sets together, in GB.
        num_workers: Loader workers of each training process, at most 256: one or two are threads,
            more are processes. `auto` depends on the number of cores.
    """

    name: Name = "drawn"
    path: str | Annotated[tuple[str | Source, ...], MinLen(1)] | None = None
    hub_id: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    train_split: str = "train"
    test_split: str = "test"
    streaming: bool = False
    shuffle_buffer: Count | Literal["auto"] = "auto"
    image_size: Annotated[int, Ge(16), Le(4096)] = 96
    crop_pct: Annotated[float, Ge(0.1), Le(1)] | None = None
    num_images: Annotated[int, Ge(2)] | None = None
    num_classes: Annotated[int, Ge(2)] = 20
    cache: bool = False
    cache_gb: Positive = 20
    num_workers: Annotated[int, Ge(0), Le(256)] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.path, tuple):
            sources = tuple(Source(s) if isinstance(s, str) else s for s in self.path)
            object.__setattr__(self, "path", sources)
        if self.name == Data.name and (self.path or self.hub_id):  # these are not drawn
            place = self.path
            if isinstance(place, tuple):
                place = tuple(source.path for source in self.sources)
            object.__setattr__(self, "name", source_name(place, self.hub_id))

    @property
    def sources(self) -> tuple[Source, ...]:
        """Those of a list; none where `path` is one."""
        return tuple(s for s in self.path or () if isinstance(s, Source))


@dataclass(frozen=True)
class Train:
    """How one stage is optimised.

    Attributes:
        epochs: Passes over the training images.
        steps: Number of optimizer steps; replaces `epochs` when given.
        batch_size: Number of images in one optimizer step, over all processes and accumulated
            parts.
        accumulate: Number of parts into which the batch is split; negatives then come from one part
            only.
        optimizer: Name of a timm optimizer. `muon` and `adamuon` train depthwise convolutions and
            what has no weight decay with AdamW, `nmuon` and `nadamuon` with NAdamW.
        lr: Learning rate for a batch of 256 images (SimCLR, section 2.2: lr = 0.3 * batch / 256).
        lr_scaling: How the learning rate depends on the batch size.
        weight_decay: Weight decay; not applied to biases, norms, class tokens and position
            embeddings.
        weight_decay_end: Weight decay at the last step, reached along a cosine (0.4 in DINO);
            constant when not given.
        momentum: Momentum of `lars`, `sgd` and the variants of `muon` (Jordan et al., 2024: 0.95).
        warmup: Share of the steps over which the learning rate rises from 0.
        head_warmup: Share of the steps in which the backbone's weights stay fixed and only the
            other modules are trained, so that gradients of random heads do not destroy a good
            start. The running statistics of its BatchNorms change unless `norm` freezes them.
        backbone_lr_scale: Learning rate of the backbone as a share of the heads' rate. Values below
            1 keep the weights closer to a good start.
        norm: BatchNorms of the backbone and of its teacher. `train`: normalise with the statistics
            of the batch and update the running statistics. `frozen`: normalise with the running
            statistics and do not update them; scale and shift are trained. `auto`: freeze those
            whose statistics were loaded from `init`; with `scratch`, none.
        lr_end: Learning rate at the end of the cosine, as a share of the peak.
        clip_grad_norm: Largest norm of the gradient; no clipping when not given.
        checkpoint_every: Epochs between checkpoints. The last step and an interrupt always write
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
    """One method with its options and training settings.

    Attributes:
        method: Name of the method: a key of `fg_ssl_zoo.methods.METHODS`.
        options: Keyword arguments of the method's constructor.
        train: How this stage is optimised.
        rounds: How often the stage is repeated: notes on the images (such as part maps), then
            training.
        inherit: Modules other than the backbone that are taken over from the stage before. In the
            first stage they come from the training of `init`, and `all` takes all of them.
        start_share: Share `a` of the stage's start weights in its result: a * start + (1 - a) *
            trained, for all parameters and running statistics of the backbone (WiSE-FT, Wortsman et
            al., 2022, arXiv 2109.01903). Choose it on a validation split.
        start_distillation: Weight of an additional loss, 1 - cos(h, h of the stage's start), on the
            images that the method passes through the backbone. It costs a forward pass of the start
            weights.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    rounds: Count = 1
    inherit: tuple[str, ...] = ()
    start_share: Share = 0.0
    start_distillation: Weight = 0.0

    @property
    def keeps_start(self) -> bool:
        """Whether the start weights of the stage are needed later."""
        return bool(self.start_share or self.start_distillation)


@dataclass(frozen=True)
class Monitor:
    """Measurements during training: at step 0, every `every` epochs and at the end.

    The first step does not wait for a measurement of all images: only a sample is read before it,
    and its RankMe and feature std are logged as `sample/...`. The start is measured on all images
    together with the first later measurement. The result is cached for other runs of this user with
    the same weights and images.

    Attributes:
        at_start: Whether anything is measured before the first step.
        start_images: Largest number of images that are read before the first step.
        every: Epochs between measurements.
        early: Number of steps after which a run from start weights is measured once more, so that a
            loss of quality is reported early; 0 turns it off.
        k: Number of neighbours of the kNN vote.
        temperature: Temperature of the vote's weights exp(similarity / temperature).
        max_images: Largest number of images of each split in a measurement, evenly spaced and the
            same in all of them; 50,000 when not given.
    """

    at_start: bool = True
    start_images: Count = 32
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
        license: SPDX name (lower case) of the licence of the weights. It depends on the terms of
            the images, so there is no default; without a licence, nothing is published.
        tags: Additional tags of the card.
        sha256: Hash of the released `model.safetensors`; `fgssl publish RUN --to published` writes
            it.
    """

    repo: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    sha256: Annotated[str, Len(64, 64)] | None = None


@dataclass(frozen=True)
class Speed:
    """Switches that change the speed and not the maths; `auto` chooses by the hardware.

    Attributes:
        precision: `bf16` autocast or `fp32`; `auto` takes `bf16` where the hardware computes it
            natively.
        channels_last: Whether convolutional networks use the channels-last memory format.
        fused_attention: Whether torch's fused attention is used; it is slow for short sequences on
            a CPU.
        keep_memory: Whether glibc keeps large memory blocks instead of returning them to the system
            after each step.
        threads: Threads of each process when training on a CPU; at most 16 or four times the number
            of cores, whichever is larger.
        device_views: Whether the device changes the colours of random crops and blurs them; `auto`
            does so on a GPU. No pixel differs by more than 1 of 255. Other views, such as those
            with part masks, are made by the loader.
        compile: Whether networks are compiled by torch.compile, for fixed shapes; this takes
            minutes once. Losses differ in their last digits.
    """

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    fused_attention: bool | Literal["auto"] = "auto"
    keep_memory: bool | Literal["auto"] = "auto"
    threads: Annotated[int, Ge(1), Le(1024)] | Literal["auto"] = "auto"
    device_views: bool | Literal["auto"] = "auto"
    compile: bool = False


@dataclass(frozen=True)
class Recipe:
    """All settings of one pretrained model; its file name is its timm name and Hub name.

    Attributes:
        name: `fgssl_BACKBONE_DATA.METHOD`. A recipe file need not set it: it is the name of the
            file without its suffix.
        backbone: Name of any timm model.
        backbone_options: Keyword arguments of the timm constructor (`zero_init_last`, `channels`);
            the export contains them.
        init: Start weights: `scratch`, a pretrained tag of timm (`a1_in1k`, `dino`), a
            `.safetensors` file (`FILE#partial` if it contains a part of the weights only), a run,
            an exported folder or one of our published names, `hf-hub:OWNER/NAME` or
            `local-dir:FOLDER`.
        data: The images.
        stages: Trained one after the other; each stage starts with the backbone of the stage
            before.
        seed: Seed of weights, order and views; below 2^32, as in numpy.
        output: Folder of the run; `runs/NAME` when not given. `~` is the home folder, here and in
            `data.path` and `init`.
        resume: `auto` continues from the newest checkpoint of the same recipe; `never` refuses a
            folder that holds a run.
        overwrite: Whether the run's files in the output folder are deleted first. Files that no run
            wrote stay. Not stored in the run's `recipe.yaml`.
        keep_checkpoints: Number of newest checkpoints that are kept. A checkpoint that cannot be
            read is set aside, and the run continues from the one before.
        monitor: Measurements during training.
        speed: Hardware switches.
        trackers: Additional loggers of Accelerate (`wandb`, `mlflow`, ...); JSONL and TensorBoard
            are always written.
        hub: How the model is published.
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
        if self.data.crop_pct is None:  # a new model has no config yet
            object.__setattr__(self, "data", replace(self.data, crop_pct=CROP_PCT))

    @property
    def folder(self) -> Path:
        """Folder of the run; `~` is the home folder."""
        return home_path(self.output or f"runs/{self.name}")
