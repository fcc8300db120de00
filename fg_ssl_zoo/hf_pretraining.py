"""Every method as a transformers model, so that training goes on from a published one.

    import fg_ssl_zoo.hf_pretraining                  # tells transformers this kind of model
    model = AutoModelForPreTraining.from_pretrained("OWNER/NAME", subfolder="pretraining")
    model(**batch).loss

One class holds any of `METHODS`; which one, with which options, stands in `pretraining/config.json`
(`hub/pretraining.py`). transformers' Trainer trains it, with two things of ours:

    pictures_for       pictures through the method's views, in the order of our own loop
    FollowTheStudent   calls the method's `on_step_end`, without which no teacher moves

Four things that transformers would do otherwise. It builds models without memory and leaves buffers
outside of the state dict as they come: here the method is built on the CPU, and these are put back.
It gives every loaded parameter a gradient, teachers' too: they are frozen again. It draws what a
file lacks at random: here that is an error. And it opens pickles: not here.
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


@no_type_check  # of tests: it knows no keywords but the fields, and transformers passes others on
@strict
class FgSslConfig(PreTrainedConfig):
    """What `pretraining/config.json` holds.

    Attributes:
        method: A key of `METHODS`.
        options: Keywords of its constructor; its defaults for those that are not given.
        network: The backbone, as the `config.json` of an exported folder describes it; needed.
    """

    model_type = MODEL_TYPE
    method: str = "simclr"
    options: dict[str, Any] | None = None
    network: dict[str, Any] | None = None


@dataclass
class FgSslPreTrainingOutput(ModelOutput):
    """What one forward pass says; see `MethodOutput`.

    Attributes:
        loss: () scalar that is minimised.
        metrics: Detached scalars.
    """

    loss: Tensor | None = None
    metrics: dict[str, Tensor] | None = None


class FgSslForPreTraining(PreTrainedModel):
    """A method of `METHODS` around its backbone.

    Args:
        config: Is checked before anything is built of it.

    Attributes:
        method: Our own `Method`; `method.backbone.model` is the timm model.

    Raises:
        ValueError: The configuration describes no method, or values that it does not take.
    """

    config_class = FgSslConfig
    main_input_name = "images"
    accepts_loss_kwargs = False  # or Trainer would leave accumulated losses undivided

    def __init__(self, config: FgSslConfig) -> None:
        super().__init__(config)
        with torch.device("cpu"):
            self.method = method_of(config)
        self._frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        self._constants = _constants(self)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the method has initialised itself."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it, with every key in its place.

        Raises:
            ValueError: The file lacks tensors, or has others than the method.
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
        """Put back what transformers does not keep while it loads."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        for name, buffer in _constants(self).items():
            buffer.copy_(self._constants[name])
        self._constants.clear()

    def forward(self, return_loss: bool = True, **batch: Any) -> FgSslPreTrainingOutput:
        """The loss of a batch of the method's own views.

        Args:
            return_loss: Always done; Trainer looks for this name.
            **batch: As `pictures_for` and `collate_views` make it: `images` (b, 2, h, w, 3) uint8,
                or what the method's `forward` names.

        Raises:
            ValueError: One picture in training, of which the method cannot learn.
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
                f"per_device_train_batch_size: {pictures} is 1 picture in a forward pass, but "
                f"{lacking}; 2 or more would do"
            )


def _constants(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that no state dict holds."""
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


def method_of(config: FgSslConfig) -> Method:
    """The method that a configuration describes, with its own random weights.

    Raises:
        ValueError: What is wrong with which key.
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
            f"method: {config.method} learns from a network that this folder does not hold; "
            "train it by a recipe"
        )
    return create_method(config.method, backbone, **options_of_saved(kind, options))


# --------------------------------------------------------------------------- transformers' Trainer


class TrainingPictures(Dataset[dict[str, Any]]):
    """The pictures of a whole training in the order of our loop, one after the other.

    Every place has a draw of its own, so that Trainer's single epoch may hold many of ours.
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
    """Pictures through the views of a model's method, for Trainer with `collate_views`.

    Our loop draws the same for the same seed, if Trainer keeps their order
    (`train_sampling_strategy="sequential"`). Call it after `TrainingArguments` is built, which
    decides on the precision of the process.

    Args:
        model: Tells views and size, and takes its notes on all pictures now.
        images: To train on.
        batch_size: Of one optimizer step, all devices and accumulated parts together.
        steps: Optimizer steps.
        first_step: Of the order; for a training that goes on.
        seed: Of order and views.

    Raises:
        ValueError: The batch is larger than the set, or the size does not suit the method.
    """
    method, order = model.method, order_of(images, batch_size, seed)
    views = method.views(method.backbone.image_size)
    notes = method.annotate(images, Accelerator())
    dataset = ViewDataset(images, views, seed, notes)
    return TrainingPictures(dataset, order, range(first_step, first_step + steps))


def collate_views(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Trainer's `data_collator`: the batch without the names of unreadable pictures."""
    batch = collate(rows)
    return {key: value for key, value in batch.items() if key != "corrupt"}


class FollowTheStudent(TrainerCallback):
    """Lets teachers, temperatures and the like move after each step of Trainer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`on_step_end` of the method, with the share of Trainer's steps that is done."""
        kwargs["model"].method.on_step_end(state.global_step / state.max_steps)


AutoConfig.register(MODEL_TYPE, FgSslConfig, exist_ok=True)
AutoModelForPreTraining.register(FgSslConfig, FgSslForPreTraining, exist_ok=True)
