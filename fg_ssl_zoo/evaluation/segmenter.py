"""The network of few-shot part segmentation, how it learns, and how its pictures are counted.

`part_segmentation` says what the protocol is and where it comes from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from annotated_types import Ge, Gt
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import STRICT
from fg_ssl_zoo.data.loader import Order
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.data.views import Augmentation, draw_view, render
from fg_ssl_zoo.evaluation.part_truth import PartView, overlaps, planes
from fg_ssl_zoo.layers.decoder import UpDecoder, enlarged
from fg_ssl_zoo.ops.distributed import rank, world_size
from fg_ssl_zoo.ops.schedules import cosine

JITTER = Augmentation(
    crop_scale=(1.0, 1.0), jitter=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0,
    grayscale=0.0, blur=0.0,
)  # fmt: skip
CHUNK = 32
"""Pictures of one forward pass without gradient."""


@dataclass(frozen=True)
class PartSegmentation:
    """What can be chosen on the command line.

    Attributes:
        shots: Labelled training pictures; sizes that the data do not reach are left out.
        draws: Lists of each size; the result is the mean over them.
        backbone: Frozen, or trained with the decoder as in the paper.
        labels: Each pixel has one part or the background (softmax), or parts are independent
            (sigmoid, found above one half), as overlapping ones must be.
        protocol: Which checkpoint is scored: the best on a fifth of the list, the last, or the best
            on one fold of the test pictures, scored on the other four and averaged over the five
            folds (the paper's).
        steps: Of Adam; 3,600 for 150 pictures in the paper's code.
        batch_size: Pictures of a step; all where the list is shorter.
        lr: Of the decoder.
        backbone_rate: Rate of the backbone as a share of it. In the paper both are 1e-5.
        checkpoints: Evenly spaced over the steps, to choose from; 40 in the paper's code.
        drop_words: Taken out of part names; parts whose names then agree are one.
        gt_box_crop: Cut pictures, test pictures too, to the box of their labels, 20 pixels around.
        cut_bottom: Rows to cut off below: 21 for FGVC-Aircraft's banner.
        last_stage: `stride_one` doubles the side of a ResNet's last map, as the paper does.
        tokens: Of a ViT: its last features, the keys of its last block, or those of the first head
            (the paper's).
    """

    shots: tuple[Annotated[int, Ge(1)], ...] = (1, 5, 10, 50, 150)
    draws: Annotated[int, Ge(1)] = 1
    backbone: Literal["frozen", "finetuned"] = "frozen"
    labels: Literal["exclusive", "independent"] = "exclusive"
    protocol: Literal["held_out", "last", "particle"] = "held_out"
    steps: Annotated[int, Ge(1)] = 500
    batch_size: Annotated[int, Ge(1)] = 8
    lr: Annotated[float, Gt(0)] = 1e-3
    backbone_rate: Annotated[float, Gt(0)] = 0.01
    checkpoints: Annotated[int, Ge(1)] = 10
    drop_words: tuple[str, ...] = ()
    gt_box_crop: bool = False
    cut_bottom: Annotated[int, Ge(0)] = 0
    last_stage: Literal["stride_one", "as_is"] = "stride_one"
    tokens: Literal["features", "keys", "first_head_keys"] = "features"

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    @property
    def exclusive(self) -> bool:
        """Whether the background is a class."""
        return self.labels == "exclusive"


STANDARD = PartSegmentation()


# --------------------------------------------------------------------------- the network


class Segmenter(nn.Module):
    """A backbone and a decoder on its last map.

    Args:
        backbone: Is changed: a ResNet's last stage gets stride 1, if asked for.
        num_outputs: Parts, and the background where parts exclude each other.
        how: The variant.
    """

    def __init__(self, backbone: Backbone, num_outputs: int, how: PartSegmentation) -> None:
        super().__init__()
        if how.last_stage == "stride_one":
            give_last_stage_stride_one(backbone)
        self.backbone, self.tokens = backbone, how.tokens
        self.frozen = how.backbone == "frozen"
        backbone.requires_grad_(not self.frozen)
        side, device = backbone.image_size, next(backbone.parameters()).device
        with torch.no_grad():
            shape = self.eval().maps(torch.zeros(1, 3, side, side, device=device)).shape
        self.decoder = UpDecoder(shape[1], num_outputs, deep=backbone.patch_size is not None)
        self.map_side = shape[2]
        self.to(device)

    def maps(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d _ _"]:
        """What the decoder reads, of normalised pictures."""
        if self.tokens == "features" or self.backbone.patch_size is None:
            return self.backbone.feature_maps(images, [-1])[0]
        return last_keys(self.backbone, images, first_head=self.tokens == "first_head_keys")

    def forward(
        self, images: Float[Tensor, "b 3 h w"], size: tuple[int, int]
    ) -> Float[Tensor, "b c _ _"]:
        """Logits at the labels' height and width."""
        return self.decoder(self.maps(images), size)

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of what training moves, under the keys of the state dict."""
        state = self.state_dict()
        moved = (k for k in state if not self.frozen or not k.startswith("backbone."))
        return {key: state[key].clone() for key in moved}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Back to what `trained_state` gave; nothing else may be missing than what is frozen."""
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
    """A ResNet's last map keeps the side of the one before; the weights stay.

    Other networks, and ResNets that blur where they shrink, are left as they are.
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
    """Keys of a ViT's last attention as a map; of the first head alone, if asked for.

    Raises:
        ValueError: A transformer of another make.
    """
    try:
        attention = backbone.model.blocks[-1].attn
        projection, heads = attention.qkv, attention.num_heads
    except AttributeError:
        raise ValueError(
            f"part_segmentation.tokens: {backbone.name} shows no keys; features would do"
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
    return keys.transpose(1, 2).unflatten(2, (height, -1))


# --------------------------------------------------------------------------- learning from few


@dataclass(frozen=True)
class Few:
    """Labelled pictures at the network's size.

    Attributes:
        images: Pixels.
        truth: (n, s, s) part numbers or (n, p, s, s) maps, see `part_truth`.
    """

    images: UInt8[Tensor, "n s s 3"]
    truth: Tensor

    def __getitem__(self, rows: slice) -> "Few":
        return Few(self.images[rows], self.truth[rows])


def read_few(images: Images, indices: list[int], view: PartView) -> Few:
    """The pictures of a list."""
    seen = [view(images[index]) for index in indices]
    pixels = np.stack([image for image, _ in seen])
    truth = np.stack([view.square(mask) for _, mask in seen])
    return Few(torch.from_numpy(pixels), torch.from_numpy(truth))


def turned(truth: Tensor, twins: list[int], *, exclusive: bool) -> Tensor:
    """The truth of the mirror images, left and right exchanged."""
    mirror = truth.flip(-1)
    if exclusive:
        return torch.tensor(twins, dtype=truth.dtype)[mirror.long()]
    return mirror[:, torch.tensor(twins[1:]) - 1]


def learn(
    segmenter: Segmenter,
    few: Few,
    twins: list[int],
    how: PartSegmentation,
    accelerator: Accelerator,
    seed: int,
    at_checkpoint: Callable[[], None],
) -> None:
    """Train a decoder, and the backbone unless it is frozen; the same on every process."""
    trained = list(segmenter.decoder.parameters())
    groups = [{"params": trained, "rate": how.lr}]
    if not segmenter.frozen:
        rate = how.lr * how.backbone_rate
        groups.append({"params": list(segmenter.backbone.parameters()), "rate": rate})
    optimizer = torch.optim.Adam(groups, lr=how.lr)
    due = {round(how.steps * (i + 1) / how.checkpoints) for i in range(how.checkpoints)}
    mirrors = turned(few.truth, twins, exclusive=how.exclusive)
    give = _map_batches if segmenter.frozen else _picture_batches
    batches = give(segmenter, few, mirrors, how, accelerator, seed)
    segmenter.train()
    for step, (given, truth) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = cosine(group["rate"], 0.0, step / how.steps)
        with accelerator.autocast():
            maps = given if segmenter.frozen else segmenter.maps(given)
            logits = segmenter.decoder(maps, truth.shape[-2:])
        optimizer.zero_grad()
        _loss(logits, truth, exclusive=how.exclusive).backward()
        optimizer.step()
        if step + 1 in due:
            _share_weights(segmenter)
            segmenter.eval()
            at_checkpoint()
            segmenter.train()
    segmenter.eval()


def _loss(logits: Float[Tensor, "b c h w"], truth: Tensor, *, exclusive: bool) -> Tensor:
    if exclusive:
        return F.cross_entropy(logits, truth.long())
    return F.binary_cross_entropy_with_logits(logits, truth.float())


def _rows(few: Few, how: PartSegmentation, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Step and rows of its batch; what is left of a pass is dropped."""
    order = Order(len(few.images), min(how.batch_size, len(few.images)), seed)
    for step in range(how.steps):
        yield step, [row for _, row in order(step)]


def _map_batches(
    segmenter: Segmenter,
    few: Few,
    mirrors: Tensor,
    how: PartSegmentation,
    accelerator: Accelerator,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Maps of a frozen backbone, computed once for each picture and its mirror image.

    So a step costs the decoder alone, and colours are not jittered.
    """
    plain = map_pictures(segmenter, few.images, accelerator)
    mirror = map_pictures(segmenter, few.images.flip(2), accelerator)
    maps, truth = torch.stack([plain, mirror]), torch.stack([few.truth, mirrors])
    for step, rows in _rows(few, how, seed):
        flips = np.random.default_rng([seed, step]).integers(2, size=len(rows)).tolist()
        yield maps[flips, rows].to(accelerator.device), truth[flips, rows].to(accelerator.device)


def map_pictures(
    segmenter: Segmenter, images: UInt8[Tensor, "n s s 3"], accelerator: Accelerator
) -> Float[Tensor, "n d _ _"]:
    """Maps of pictures without gradient, on the CPU."""
    found = []
    with torch.no_grad(), accelerator.autocast():
        for pixels in images.split(CHUNK):
            seen = segmenter.backbone.normalize(pixels.to(accelerator.device))
            found.append(segmenter.maps(seen).float().cpu())
    return torch.cat(found)


def _picture_batches(
    segmenter: Segmenter,
    few: Few,
    mirrors: Tensor,
    how: PartSegmentation,
    accelerator: Accelerator,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised pictures for a backbone that learns, jittered and mirrored anew each time."""
    size = few.images.shape[1]
    for step, rows in _rows(few, how, seed):
        generator = np.random.default_rng([seed, step])
        views = [draw_view(generator, size, size, size, JITTER) for _ in rows]
        pixels = np.stack(
            [
                render(few.images[row].numpy(), drawn, size)
                for row, drawn in zip(rows, views, strict=True)
            ]
        )
        truth = [
            (mirrors if drawn.flip else few.truth)[row]
            for row, drawn in zip(rows, views, strict=True)
        ]
        seen = torch.from_numpy(pixels).to(accelerator.device)
        yield segmenter.backbone.normalize(seen), torch.stack(truth).to(accelerator.device)


def _share_weights(segmenter: Segmenter) -> None:
    """The weights of the first process for all: sums differ in their last bits on accelerators."""
    if world_size() > 1:
        for tensor in segmenter.state_dict().values():
            broadcast(tensor)


# --------------------------------------------------------------------------- scoring


def picture_counts(
    logits: Float[Tensor, "1 c _ _"], truth: UInt8[np.ndarray, "*p h w"], *, exclusive: bool
) -> Int64[Tensor, "3 c"]:
    """`overlaps` of one picture at the size of its own mask.

    Exclusive parts are the largest logit's; independent ones are found above probability one half,
    each by itself. The released test takes the largest logit there too, so that of two parts which
    overlap one is always missed.
    """
    found = enlarged(logits, (truth.shape[-2], truth.shape[-1]))[0]
    known = torch.from_numpy(np.ascontiguousarray(truth)).to(found.device).long()
    if exclusive:
        return overlaps(planes(found.argmax(dim=0), len(found)), planes(known, len(found)))
    return overlaps(found > 0, known > 0)


def set_counts(
    segmenter: Segmenter,
    images: Images,
    indices: list[int],
    view: PartView,
    accelerator: Accelerator,
) -> Int64[Tensor, "n 3 c"]:
    """`overlaps` of all pictures; each process takes a share, every process gets all."""
    mine = indices[rank() :: world_size()]
    found: list[tuple[int, Tensor]] = []
    for start in range(0, len(mine), CHUNK):
        some = mine[start : start + CHUNK]
        seen = [view(images[index]) for index in some]
        pixels = torch.from_numpy(np.stack([image for image, _ in seen]))
        maps = map_pictures(segmenter, pixels, accelerator).to(accelerator.device)
        with torch.no_grad(), accelerator.autocast():
            logits = segmenter.decoder(maps)
        for index, row, (_, truth) in zip(some, logits.split(1), seen, strict=True):
            found.append((index, picture_counts(row, truth, exclusive=view.exclusive).cpu()))
    if world_size() > 1:
        found = gather_object(found)
    by_index = dict(found)
    return torch.stack([by_index[index] for index in indices])


def square_counts(
    segmenter: Segmenter, few: Few, accelerator: Accelerator, how: PartSegmentation
) -> Int64[Tensor, "n 3 c"]:
    """`overlaps` of pictures at the network's size."""
    maps = map_pictures(segmenter, few.images, accelerator).to(accelerator.device)
    with torch.no_grad(), accelerator.autocast():
        logits = segmenter.decoder(maps)
    counts = [
        picture_counts(row, truth.numpy(), exclusive=how.exclusive)
        for row, truth in zip(logits.split(1), few.truth, strict=True)
    ]
    return torch.stack(counts).cpu()
