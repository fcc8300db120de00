"""Training of the few-shot part segmentation network on a list of labelled images."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from jaxtyping import Float, UInt8
from torch import Tensor

from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.data.views import Augmentation, draw_view, render
from fg_ssl_zoo.evaluation.parts.segmenter import PartSegmentation, Segmenter, map_pictures
from fg_ssl_zoo.evaluation.parts.truth import PartView
from fg_ssl_zoo.ops.distributed import world_size
from fg_ssl_zoo.ops.schedules import cosine
from fg_ssl_zoo.progress import shown

JITTER = Augmentation(
    crop_scale=(1.0, 1.0), jitter=0.5, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.0,
    grayscale=0.0, blur=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Few:
    """Labelled images at the input size of the network.

    Attributes:
        images: Pixels.
        truth: (n, s, s) part numbers or (n, p, s, s) maps, see `part_truth`.
    """

    images: UInt8[Tensor, "n s s 3"]
    truth: Tensor

    def __getitem__(self, rows: slice) -> "Few":
        return Few(self.images[rows], self.truth[rows])


def read_few(images: Images, indices: list[int], view: PartView) -> Few:
    """Read the images of a list."""
    seen = [view(images[index]) for index in indices]
    pixels = np.stack([image for image, _ in seen])
    truth = np.stack([view.square(mask) for _, mask in seen])
    return Few(torch.from_numpy(pixels), torch.from_numpy(truth))


def both_maps(
    segmenter: Segmenter, few: Few, accelerator: Accelerator
) -> Float[Tensor, "2 n d _ _"]:
    """Feature maps of the images and of their mirror images.

    With a frozen backbone they do not change, so all steps and all lists of a draw share them.
    """
    return torch.stack(
        [map_pictures(segmenter, seen, accelerator) for seen in (few.images, few.images.flip(2))]
    )


def turned(truth: Tensor, twins: list[int], *, exclusive: bool) -> Tensor:
    """The labels of the mirror images, with left and right parts exchanged."""
    mirror = truth.flip(-1)
    if exclusive:
        return torch.tensor(twins, dtype=truth.dtype)[mirror.long()]
    return mirror[:, torch.tensor(twins[1:]) - 1]


def learn(
    segmenter: Segmenter,
    few: Few,
    twins: list[int],
    options: PartSegmentation,
    accelerator: Accelerator,
    seed: int,
    maps: Float[Tensor, "2 n d _ _"] | None = None,
) -> Iterator[None]:
    """Train a decoder, and the backbone unless it is frozen; the same result on every process.

    Yields at each of `options.checkpoints`, with the network in evaluation mode.

    Args:
        segmenter: Changed in place.
        few: The labelled images.
        twins: Number of every part in the mirror image.
        options: Options of the protocol.
        accelerator: Device and precision.
        seed: Seed of the batches and mirror images.
        maps: `both_maps` of the images, used if the backbone is frozen; computed if not given.
    """
    trained = list(segmenter.decoder.parameters())
    groups = [{"params": trained, "rate": options.lr}]
    if not segmenter.frozen:
        rate = options.lr * options.backbone_rate
        groups.append({"params": list(segmenter.backbone.parameters()), "rate": rate})
    optimizer = torch.optim.Adam(groups, lr=options.lr)
    due = {round(options.steps * (i + 1) / options.checkpoints) for i in range(options.checkpoints)}
    mirrors = turned(few.truth, twins, exclusive=options.exclusive)
    if segmenter.frozen:
        maps = both_maps(segmenter, few, accelerator) if maps is None else maps
        batches = _map_batches(maps, few, mirrors, options, accelerator, seed)
    else:
        batches = _picture_batches(segmenter, few, mirrors, options, accelerator, seed)
    segmenter.train()
    for step, (given, truth) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = cosine(group["rate"], 0.0, step / options.steps)
        with accelerator.autocast():
            seen = given if segmenter.frozen else segmenter.maps(given)
            logits = segmenter.decoder(seen, truth.shape[-2:])
        optimizer.zero_grad()
        _loss(logits, truth, exclusive=options.exclusive).backward()
        optimizer.step()
        if step + 1 in due:
            _share_weights(segmenter)
            segmenter.eval()
            yield
            segmenter.train()
    segmenter.eval()


def _loss(logits: Float[Tensor, "b c h w"], truth: Tensor, *, exclusive: bool) -> Tensor:
    if exclusive:  # one row per pixel: the memory layout of the logits; halves the time
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
        return F.cross_entropy(rows, truth.long().flatten())
    return F.binary_cross_entropy_with_logits(logits, truth.float())


def _rows(few: Few, options: PartSegmentation, seed: int) -> Iterator[tuple[int, list[int]]]:
    """Number of each step and rows of its batch; an incomplete last batch is dropped."""
    order = Order(len(few.images), min(options.batch_size, len(few.images)), seed)
    for step in shown(range(options.steps), options.steps, "steps"):
        yield step, [row for _, row in order(step)]


def _map_batches(
    maps: Float[Tensor, "2 n d _ _"],
    few: Few,
    mirrors: Tensor,
    options: PartSegmentation,
    accelerator: Accelerator,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Stored maps of a frozen backbone: only the decoder is computed, without colour jitter."""
    truth = torch.stack([few.truth, mirrors])
    for step, rows in _rows(few, options, seed):
        flips = np.random.default_rng([seed, step]).integers(2, size=len(rows)).tolist()
        chosen = maps[flips, rows].contiguous(memory_format=torch.channels_last)
        yield chosen.to(accelerator.device), truth[flips, rows].to(accelerator.device)


def _picture_batches(
    segmenter: Segmenter,
    few: Few,
    mirrors: Tensor,
    options: PartSegmentation,
    accelerator: Accelerator,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images for a trained backbone, with new colour jitter and flips in each step."""
    size = few.images.shape[1]
    for step, rows in _rows(few, options, seed):
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
    """Broadcast rank 0's weights: on accelerators, sums differ in their last bits."""
    if world_size() > 1:
        for tensor in segmenter.state_dict().values():
            broadcast(tensor)
