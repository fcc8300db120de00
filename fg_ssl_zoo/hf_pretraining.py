"""Every method as a transformers model, to continue the training of a published one.

    import fg_ssl_zoo.hf_pretraining                  # registers the model class
    model = AutoModelForPreTraining.from_pretrained("OWNER/NAME", subfolder="pretraining")
    model(**batch).loss

One class wraps any of `METHODS`; `pretraining/config.json` holds the method and its options
(`hub/pretraining.py`). transformers' Trainer trains it, with two objects of ours:

    pictures_for       the method's views of the images, in the order of our own loop
    FollowTheStudent   calls the method's `on_step_end`, which updates teachers

Differences from other transformers models:

- transformers builds models on the meta device and does not restore buffers outside of the state
  dict. Here the method is built on the CPU, and these buffers are restored.
- transformers sets `requires_grad` of every loaded parameter. Here teachers are frozen again.
- transformers initialises missing tensors at random. Here they are an error.
- transformers opens pickles. Here they are refused.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from accelerate import Accelerator
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
    TrainerCallback,
)
from transformers.utils.generic import ModelOutput

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.data.loader import ViewDataset, collate
from fg_ssl_zoo.data.order import Order, order_of
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.hub.pretraining import MODEL_TYPE, check_pretraining_config
from fg_ssl_zoo.method import Method, lack_of_pictures, options_of_saved
from fg_ssl_zoo.methods import create_method, method_class
from fg_ssl_zoo.ops.distributed import world_size


@no_type_check  # do not check keywords: transformers passes more than the fields
@strict
class FgSslConfig(PreTrainedConfig):
    """Content of `pretraining/config.json`.

    Attributes:
        method: A key of `METHODS`.
        options: Keywords of its constructor; missing ones have their defaults.
        network: The backbone, as in the `config.json` of an exported folder; required.
    """

    model_type = MODEL_TYPE
    method: str = "simclr"
    options: dict[str, Any] | None = None
    network: dict[str, Any] | None = None


@dataclass
class FgSslPreTrainingOutput(ModelOutput):
    """The output of one forward pass; see `MethodOutput`.

    Attributes:
        loss: () scalar that is minimised.
        metrics: Detached scalars.
    """

    loss: Tensor | None = None
    metrics: dict[str, Tensor] | None = None


class FgSslForPreTraining(PreTrainedModel):
    """A method of `METHODS` around its backbone.

    Args:
        config: Checked before anything is built from it.

    Attributes:
        method: Our own `Method`; `method.backbone.model` is the timm model.

    Raises:
        ValueError: The configuration has an unknown method or invalid values.
    """

    config_class = FgSslConfig
    main_input_name = "images"
    accepts_loss_kwargs = False  # otherwise Trainer would not divide accumulated losses

    def __init__(self, config: FgSslConfig) -> None:
        super().__init__(config)
        with torch.device("cpu"):
            self.method = method_of(config)
        self._frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        self._constants = _constants(self)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing, since the method is already initialised."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Like transformers, but every key must match.

        Raises:
            ValueError: Tensors are missing in the file, or do not belong to the method.
            OSError: There is no safetensors file.
        """
        told = kwargs.pop("output_loading_info", False)
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
        loaded: Any = super().from_pretrained(*args, **kwargs)
        model, info = loaded
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if found := sorted(map(str, info[key])):
                raise ValueError(
                    f"{args[0] if args else 'pretraining/'}: {key.replace('_', ' ')} for "
                    f"{model.config.method}: {', '.join(found[:3])}"
                )
        model._restore()
        return (model, info) if told else model

    @torch.no_grad()
    def _restore(self) -> None:
        """Restore buffers and frozen parameters that transformers changes while loading."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        for name, buffer in _constants(self).items():
            buffer.copy_(self._constants[name])
        self._constants.clear()

    def forward(self, return_loss: bool = True, **batch: Any) -> FgSslPreTrainingOutput:
        """The loss of a batch of the method's own views.

        Args:
            return_loss: Ignored; Trainer checks that this argument exists.
            **batch: Batch made by `pictures_for` and `collate_views`: `images` (b, 2, h, w, 3)
                uint8, or the keys that the method's `forward` reads.

        Raises:
            ValueError: A training batch of one image, if the method needs two.
        """
        if self.training:
            self._check(len(next(iter(batch.values()))))
        output = self.method(batch)
        return FgSslPreTrainingOutput(loss=output.loss, metrics=output.metrics)

    def _check(self, pictures: int) -> None:
        if pictures < 2 and (
            lacking := lack_of_pictures(self.method, pictures, world_size(), lambda norm: False)
        ):
            raise ValueError(
                f"per_device_train_batch_size: {pictures} is 1 image in a forward pass, but "
                f"{lacking}; use 2 or more"
            )


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are not in the state dict."""
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


def method_of(config: FgSslConfig) -> Method:
    """The method of a configuration, with random weights.

    Raises:
        ValueError: Names the invalid key.
    """
    network, options = config.network or {}, config.options or {}
    check_pretraining_config({"method": config.method, "options": options, "network": network})
    cfg = network["pretrained_cfg"]
    arguments = {k: v for k, v in network.get("model_args", {}).items() if k != "img_size"}
    size = cfg["input_size"][-1]
    backbone = create_backbone(network["architecture"], image_size=size, **arguments)
    backbone.mean, backbone.std = tuple(cfg["mean"]), tuple(cfg["std"])
    kind = method_class(config.method)
    if kind.has_outside_teacher:
        raise ValueError(
            f"method: {config.method} needs a teacher that this folder does not contain; "
            "train it by a recipe"
        )
    return create_method(config.method, backbone, **options_of_saved(kind, options))


# --------------------------------------------------------------------------- transformers' Trainer


class TrainingPictures(Dataset[dict[str, Any]]):
    """The images of a whole training in the order of our loop.

    One epoch of Trainer contains all our epochs; each item has its own random draw.
    """

    def __init__(self, views: ViewDataset, order: Order, steps: range) -> None:
        self.views, self.order, self.steps = views, order, steps

    def __len__(self) -> int:
        return len(self.steps) * self.order.batch_size

    def __getitem__(self, place: int) -> dict[str, Any]:
        step, row = divmod(place, self.order.batch_size)
        return self.views[self.order(self.steps[step])[row]]


def pictures_for(
    model: FgSslForPreTraining,
    images: Images,
    *,
    batch_size: int,
    steps: int,
    first_step: int = 0,
    seed: int = 0,
) -> TrainingPictures:
    """A data set of the method's views, for Trainer with `collate_views`.

    It equals the draws of our loop for the same seed if Trainer keeps the order
    (`train_sampling_strategy="sequential"`). Call it after `TrainingArguments` is built, which
    sets the precision of the process.

    Args:
        model: Its method defines views and size; its notes on all images are computed now.
        images: Training images.
        batch_size: Batch size of one optimizer step, all devices and accumulated parts together.
        steps: Number of optimizer steps.
        first_step: Step at which the order starts, to continue a training.
        seed: Seed of order and views.

    Raises:
        ValueError: The batch is larger than the data set, or the image size does not fit the
            method.
    """
    method, order = model.method, order_of(images, batch_size, seed)
    views = method.views(method.backbone.image_size)
    notes = method.annotate(images, Accelerator())
    dataset = ViewDataset(images, views, seed, notes)
    return TrainingPictures(dataset, order, range(first_step, first_step + steps))


def collate_views(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Trainer's `data_collator`: the batch without the names of unreadable images."""
    batch = collate(rows)
    return {key: value for key, value in batch.items() if key != "corrupt"}


class FollowTheStudent(TrainerCallback):
    """Calls the method's `on_step_end` after each step of Trainer, for teachers and schedules."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the method's `on_step_end` with the share of completed steps."""
        kwargs["model"].method.on_step_end(state.global_step / state.max_steps)


AutoConfig.register(MODEL_TYPE, FgSslConfig, exist_ok=True)
AutoModelForPreTraining.register(FgSslConfig, FgSslForPreTraining, exist_ok=True)
