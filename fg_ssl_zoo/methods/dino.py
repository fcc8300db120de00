"""DINO: the student predicts, from crops of an image, the teacher's output for the large crops.

Paper: Caron, Touvron, Misra, Jegou, Mairal, Bojanowski & Joulin, 2021 (arXiv 2104.14294).

    views      x_1, x_2: two large (global) crops; x_3, ...: small (local) crops, of a smaller size
    student    P_s(x) = softmax(head(backbone(x)) / 0.1), of all crops: one pass for each size
    teacher    P_t(x) = softmax((t(x) - c) / T), t: an average of the student; of x_1, x_2 only
    loss       mean over the pairs g in {1, 2}, v != g of -P_t(x_g) log P_s(x_v)
    centre     c <- 0.9 c + 0.1 mean of t over the batch of all processes, after the loss
    average    teacher <- m teacher + (1 - m) student after each step, m from 0.996 to 1

The centre prevents one output from dominating; the low T prevents equal outputs. T rises linearly
from 0.04 to 0.07 over the first `teacher_warmup` of the stage. The directions of the prototypes
(the head's last layer) are fixed over the first `freeze_last_layer` of the stage. The paper
evaluates the teacher, which is exported beside the student as `teacher`.

Deviations:
- schedules follow steps (official code: T and the freeze follow epochs);
- the gradient is clipped by its total norm (official code: for each parameter);
- while the prototypes are fixed, weight decay still shortens their vectors, which the head
  normalises;
- class token and position embeddings have no weight decay (official code: only biases and norms
  have none);
- `preset: fine_grained` keeps colour, and its local crops show parts (`LOCAL_SCALES`);
- colour jitter is one affine map (see `data/views.py`).
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, cast

import torch
from annotated_types import Ge
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import accept_size
from fg_ssl_zoo.config import Count, Positive, Share
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import Augmentation, MultiCrop, RandomViews, augmentations_of
from fg_ssl_zoo.layers.distillation import Distillation
from fg_ssl_zoo.layers.momentum import follow, keep_all_paths, teacher_of
from fg_ssl_zoo.layers.prototype_head import PrototypeHead
from fg_ssl_zoo.method import Batch, HasCompanions, Method, MethodOutput
from fg_ssl_zoo.ops.schedules import cosine

# Strengths of facebookresearch/dino; the blur of its local crops is in pixels at 96.
_GLOBAL = Augmentation(crop_scale=(0.4, 1.0), saturation=0.2, blur=1.0)
_GLOBAL_2 = replace(_GLOBAL, blur=0.1, solarize=0.2)
_LOCAL = replace(_GLOBAL, blur=0.5, blur_sigma=(0.1 * 224 / 96, 2.0 * 224 / 96))
_ALONE = (0.14, 1.0)  # scale of global crops without local ones, as that repository advises

LOCAL_SCALES = {"paper": (0.05, 0.4), "fine_grained": (0.15, 0.4)}
"""Area of a local crop as a share of the image; other presets use that of `fine_grained`.

Our choice: by CUB's keypoints, 15 % of the paper's local crops show no part of the bird, and 6 % of
ours, which still leave out half of the parts.
"""

LOCAL_SIDE = 96 / 224
"""Ratio of the input sides of local and global crops (paper)."""


class DINO(Method, HasCompanions):
    """Self-distillation without labels around a backbone.

    Args:
        backbone: The network to train; gives the pooled features `h`. A ViT is made to accept local
            crops too.
        prototypes: Number of outputs of the head; 65,536 in the paper for 1.3 million images, 4,096
            in solo-learn's recipes for ImageNet-100 and CIFAR.
        hidden_size: Width of the head's hidden layers; 2,048 in the paper.
        bottleneck: Width of the head's bottleneck; 256 in the paper.
        local_crops: Number of local crops of each image; 8 in the paper. With 0, there are two
            global crops only.
        local_size: Side of a local crop in pixels. When not given: 96/224 of the image size, for a
            ViT rounded to whole patches.
        local_crop_scale: Range of the area of a local crop, as a share of the image. When not
            given: 0.15 to 0.4, or 0.05 to 0.4 with `preset: paper`.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for DINO's
            views. Local crops are drawn like the first global crop, at another scale.
        augmentation: Strengths of `Augmentation` that replace those of the preset in all crops;
            `crop_scale` in the global crops only.
        student_temperature: Temperature of the student's softmax; 0.1 in the paper.
        teacher_temperature: First and last temperature of the teacher's softmax; 0.04 and 0.07 in
            the official longer run.
        teacher_warmup: Share of the stage over which the teacher's temperature rises; 30 of 300
            epochs in the official run.
        momentum: Momentum of the teacher at the first step; it rises to 1. 0.996 in the paper: an
            average over eleven epochs of CUB at a batch of 256. The repository suggests 0.9995 for
            that batch, an average over 85 epochs.
        centre_momentum: Momentum of the centre; 0.9 in the paper.
        freeze_last_layer: Share of the stage in which the prototypes are fixed; one epoch of 100 in
            the official code.
    """

    papers = (
        "Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging Properties in "
        "Self-Supervised Vision Transformers. ICCV 2021, arXiv 2104.14294.",
    )
    figures = (
        "74.5 % kNN and 77.0 % linear, ViT-S/16 on ImageNet with 65,536 prototypes (official "
        "repository)",
        "67.5 % kNN and 75.3 % linear, ResNet-50 on ImageNet with 65,536 prototypes (official "
        "repository)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        prototypes: Annotated[int, Ge(2)] = 4096,
        hidden_size: Count = 2048,
        bottleneck: Count = 256,
        local_crops: Annotated[int, Ge(0)] = 8,
        local_size: Count | None = None,
        local_crop_scale: tuple[Share, Share] | None = None,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
        student_temperature: Positive = 0.1,
        teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07),
        teacher_warmup: Share = 0.1,
        momentum: Share = 0.996,
        centre_momentum: Share = 0.9,
        freeze_last_layer: Share = 0.01,
    ) -> None:
        super().__init__(backbone)
        self.local_crops, self.local_size = local_crops, local_size
        side = self.side_of_local_crops(backbone.image_size) if local_crops else backbone.image_size
        if side != backbone.image_size:
            accept_size(backbone, side)
        self.head = PrototypeHead(backbone.num_features, hidden_size, bottleneck, prototypes)
        self.teacher = teacher_of(nn.Sequential(backbone, self.head))
        keep_all_paths(self.teacher)
        changes = augmentation or {}
        alone = {} if local_crops or preset != "paper" else {"crop_scale": _ALONE}
        large = {**alone, **changes}
        self.augmentations = augmentations_of(preset, large, paper=(_GLOBAL, _GLOBAL_2))
        scale = LOCAL_SCALES.get(preset, LOCAL_SCALES["fine_grained"])
        small = {**changes, "crop_scale": local_crop_scale or scale}
        self.local_augmentation, _ = augmentations_of(preset, small, paper=(_LOCAL, _LOCAL))
        self.momentum = momentum
        self.distillation = Distillation(
            prototypes,
            student_temperature=student_temperature,
            teacher_temperature=teacher_temperature,
            teacher_warmup=teacher_warmup,
            centre_momentum=centre_momentum,
            freeze_last_layer=freeze_last_layer,
        )

    def side_of_local_crops(self, image_size: int) -> int:
        """Side of a local crop in pixels; a ValueError names the nearest valid side."""
        step = self.backbone.patch_size or 1
        wanted = self.local_size or image_size * LOCAL_SIDE
        fitting = min(max(step, round(wanted / step) * step), image_size // step * step)
        if self.local_size not in (None, fitting):
            kind = f"a multiple of the patch size {step}" if step > 1 else "a number of pixels"
            raise ValueError(
                f"local_size: {self.local_size} is not {kind} up to the images' {image_size}; "
                f"{fitting} is"
            )
        return fitting

    def views(self, image_size: int) -> Views:
        """`images` (2, s, s, 3), and `local_images` (n, l, l, 3) unless n is 0."""
        whole = RandomViews(image_size, self.augmentations, (None, None))
        side, n = self.side_of_local_crops(image_size), self.local_crops
        local = RandomViews(side, [self.local_augmentation] * n, [None] * n)
        return MultiCrop(whole, local if n else None)

    def forward(self, batch: Batch) -> MethodOutput:
        """Cross entropy of the student's outputs for each view under the teacher's outputs."""
        crops = [batch["images"]]
        if self.local_crops:
            crops.append(batch["local_images"])
            if crops[0].shape[2:] == crops[1].shape[2:]:
                crops = [torch.cat(crops, dim=1)]
        h = torch.cat([self.backbone(self._by_view(pixels)) for pixels in crops])  # (v * b, d)
        logits = self.head(h, fixed=self.distillation.prototypes_fixed)
        with torch.no_grad():
            seen = self.teacher(self._by_view(batch["images"])).unflatten(0, (2, -1))  # (2, b, k)
        student = logits.unflatten(0, (-1, seen.shape[1]))  # (v, b, k)
        return MethodOutput(*self.distillation(student, seen))

    def _by_view(self, pixels: UInt8[Tensor, "b v h w 3"]) -> Float[Tensor, "_ 3 h w"]:
        """Normalised images: all first views, then all second views, ..."""
        return self.backbone.normalize(pixels.transpose(0, 1).flatten(0, 1))

    def on_step_end(self, progress: float) -> None:
        """Update the teacher, and set temperature and freeze for the next step."""
        student = nn.Sequential(self.backbone, self.head)
        follow(self.teacher, student, cosine(self.momentum, 1.0, progress))
        self.distillation.set_progress(progress)

    def companions(self) -> Mapping[str, Backbone]:
        """The teacher's backbone, which the paper evaluates."""
        return {"teacher": cast(Backbone, copy.deepcopy(self.teacher[0]))}
