"""The network of few-shot part segmentation, and the options of the protocol.

`part_segmentation` describes the protocol and its source, `segmenter_training` the training,
`segmenter_scores` the scores.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from accelerate import Accelerator
from annotated_types import Ge
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Count, Positive
from fg_ssl_zoo.layers.decoder import UpDecoder
from fg_ssl_zoo.ops.tokens import tokens_to_map

CHUNK = 32
"""Number of images in one forward pass without gradient."""


@dataclass(frozen=True)
class PartSegmentation:
    """Options of the protocol.

    Attributes:
        shots: Numbers of labelled training images. Numbers above the size of the data set are left
            out.
        draws: Number of random lists of each size; the score is their mean.
        backbone: `frozen`, or `finetuned` together with the decoder as in the paper.
        labels: `exclusive`: each pixel is one part or the background (softmax). `independent`: each
            part is predicted alone (sigmoid above one half), which overlapping parts need.
        protocol: Checkpoint that is scored. `held_out`: the best one on a fifth of the list.
            `last`: the last one. `particle`, as in the paper: the best one on one fold of the test
            images, scored on the other four; mean over the five folds.
        steps: Steps of Adam; 3,600 for 150 images in the paper's code.
        batch_size: Images in one step; all if the list is shorter.
        lr: Learning rate of the decoder; 1e-5 in the paper.
        backbone_rate: Learning rate of the backbone as a share of the decoder's; 1 in the paper.
        checkpoints: Number of checkpoints, evenly spaced over the steps; 40 in the paper's code.
        drop_words: Words removed from part names; parts whose names are then equal are merged.
        gt_box_crop: Whether images, test images included, are cropped to the bounding box of their
            labels plus 20 pixels.
        cut_bottom: Number of pixel rows cut off at the bottom: 21 for the banner of FGVC-Aircraft.
        last_stage: `stride_one` doubles the side of a ResNet's last feature map, as in the paper;
            `as_is` keeps it.
        tokens: Tokens of a ViT that the decoder reads: the last `features`, the `keys` of the last
            block, or those of its first head (`first_head_keys`, as in the paper).
    """

    shots: tuple[Count, ...] = (1, 5, 10, 50, 150)
    draws: Count = 1
    backbone: Literal["frozen", "finetuned"] = "frozen"
    labels: Literal["exclusive", "independent"] = "exclusive"
    protocol: Literal["held_out", "last", "particle"] = "held_out"
    steps: Count = 500
    batch_size: Count = 8
    lr: Positive = 1e-3
    backbone_rate: Positive = 0.01
    checkpoints: Count = 10
    drop_words: tuple[str, ...] = ()
    gt_box_crop: bool = False
    cut_bottom: Annotated[int, Ge(0)] = 0
    last_stage: Literal["stride_one", "as_is"] = "stride_one"
    tokens: Literal["features", "keys", "first_head_keys"] = "features"

    @property
    def exclusive(self) -> bool:
        """Whether the parts and the background exclude each other."""
        return self.labels == "exclusive"


STANDARD = PartSegmentation()


# --------------------------------------------------------------------------- the network


class Segmenter(nn.Module):
    """A backbone and a decoder on its last map.

    Args:
        backbone: Changed in place: a ResNet's last stage gets stride 1, if asked for.
        num_outputs: Number of parts, plus one for the background if parts exclude each other.
        options: Options of the protocol.
    """

    def __init__(self, backbone: Backbone, num_outputs: int, options: PartSegmentation) -> None:
        super().__init__()
        if options.last_stage == "stride_one":
            give_last_stage_stride_one(backbone)
        self.backbone, self.tokens = backbone, options.tokens
        self.frozen = options.backbone == "frozen"
        backbone.requires_grad_(not self.frozen)
        side, device = backbone.image_size, next(backbone.parameters()).device
        with torch.no_grad():
            shape = self.eval().maps(torch.zeros(1, 3, side, side, device=device)).shape
        self.decoder = UpDecoder(shape[1], num_outputs, deep=backbone.patch_size is not None)
        self.map_side = shape[2]
        self.decoder.to(memory_format=torch.channels_last)  # upsampling is many times faster
        self.to(device)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d _ _"]:
        """The decoder's input for normalised images."""
        if self.tokens == "features" or self.backbone.patch_size is None:
            return self.backbone.feature_maps(images, [-1])[0]
        return last_keys(self.backbone, images, first_head=self.tokens == "first_head_keys")

    def forward(
        self, images: Float[Tensor, "b 3 h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b c _ _"]:
        """Logits at the labels' height and width."""
        return self.decoder(self.maps(images), size)

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of all trained tensors, under the keys of the state dict."""
        state = self.state_dict()
        moved = (k for k in state if not self.frozen or not k.startswith("backbone."))
        return {key: state[key].clone() for key in moved}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the result of `trained_state`; only frozen tensors may be missing."""
        missing, unexpected = self.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(self.frozen and key.startswith("backbone.") for key in missing)

    def train(self, mode: bool = True) -> "Segmenter":
        """A frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


def give_last_stage_stride_one(backbone: Backbone) -> None:
    """Set the stride of a ResNet's last stage to 1; the weights do not change.

    Other networks, and ResNets with blur pooling, are not changed.
    """
    stage = getattr(backbone.model, "layer4", nn.Module())
    layers = [part for part in stage.modules() if not list(part.children())]
    shrinking = [part for part in layers if getattr(part, "stride", 1) in (2, (2, 2))]
    if not all(isinstance(part, nn.Conv2d | nn.AvgPool2d) for part in shrinking):
        return
    for part in shrinking:
        if isinstance(part, nn.Conv2d):
            part.stride = (1, 1)
        elif isinstance(part, nn.AvgPool2d):
            vars(part).update(kernel_size=1, stride=1)


def last_keys(
    backbone: Backbone, images: Float[Tensor, "b 3 h w"], *, first_head: bool = False
) -> Float[Tensor, "b d _ _"]:
    """Keys of a ViT's last attention layer as a map, of all heads or of the first head only.

    Raises:
        ValueError: The keys of this transformer cannot be read.
    """
    try:
        attention = backbone.model.blocks[-1].attn
        projection, heads = attention.qkv, attention.num_heads
    except AttributeError:
        raise ValueError(
            f"part_segmentation.tokens: the keys of {backbone.name} cannot be read; use features"
        ) from None
    kept: list[Tensor] = []
    hook = projection.register_forward_hook(lambda layer, given, found: kept.append(found))
    try:
        backbone(images)
    finally:
        hook.remove()
    keys = kept[0].chunk(3, dim=-1)[1][:, backbone.model.num_prefix_tokens :]  # (b, n, d)
    if first_head:
        keys = keys[..., : keys.shape[-1] // heads]
    assert backbone.patch_size is not None
    height = images.shape[2] // backbone.patch_size
    return tokens_to_map(keys, height)


def map_pictures(
    segmenter: Segmenter, images: UInt8[Tensor, "n s s 3"], accelerator: Accelerator
) -> Float[Tensor, "n d _ _"]:
    """Feature maps of images, computed without gradient and moved to the CPU."""
    found = []
    with torch.no_grad(), accelerator.autocast():
        for pixels in images.split(CHUNK):
            seen = segmenter.backbone.normalize(pixels.to(accelerator.device))
            found.append(segmenter.maps(seen).float().cpu())
    return torch.cat(found)
