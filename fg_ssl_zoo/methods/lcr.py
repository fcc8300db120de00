"""LCR: predict the Grad-CAM of the contrastive loss, and pool the features with it.

Paper: Shu, van den Hengel & Liu: Learning Common Rationale to Improve Self-Supervised
Representation for Fine-Grained Visual Recognition Problems, CVPR 2023. Code: `GANPerf/LCR`.

    views      two independent draws of one image; the first is the query's, the second the key's
    map        A, the last features of the backbone; h is their mean over the positions
    contrast   L_C, MoCo v2: q = projector(h); k of the teacher; negatives from a queue
    target     G = relu(sum_c A_c dL_C/dA_c) at every position, a constant
    attention  a = max over 32 channels of ReLU(BN(conv 1x1(A))), `backbones/networks/attentive.py`
    loss       L_C + weight KL(softmax G || softmax a), over all positions of an image

After training, the attention weights the mean over the positions. That network is exported beside
the backbone as `fgssl_attentive`; the backbone itself has timm's own pooling.

Deviations:
- a and G are scaled to 0..1 within each image, and G uses the gradient of each image's own loss
  (official code: over the batch, so both depend on the other images);
- the softmax of the KL runs over the whole map (official code: over each row), and the KL is
  averaged over images with weight 1 (official code: a sum with weight 0.01);
- a constant map counts as uniform attention, that is, the plain mean;
- the gradient of the KL flows into the backbone;
- momentum 0.99 to 0.999 and at most 4,096 keys, for small data sets (paper: 0.999 and 65,536);
- BatchNorms are synchronised over processes instead of shuffling images;
- biases and norms have no weight decay (official code: all parameters have it);
- the second attention and the second queue of the official code, which are not in its loss, are
  left out.
"""

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.build import size_arguments
from fg_ssl_zoo.backbones.fgssl_models import stock_of
from fg_ssl_zoo.backbones.networks.attentive import AttentionBranch, check_pooling, map_of
from fg_ssl_zoo.config import Count, Positive, Share
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.heads import moco_projector
from fg_ssl_zoo.layers.momentum import follow, teacher_of
from fg_ssl_zoo.layers.queue import Queue
from fg_ssl_zoo.method import Batch, DrawsPictures, HasCompanions, Method, MethodOutput
from fg_ssl_zoo.ops.contrastive import info_nce
from fg_ssl_zoo.ops.distributed import gather
from fg_ssl_zoo.ops.gradcam import gradcam, gradient_at, min_max
from fg_ssl_zoo.ops.schedules import cosine

PICTURES = 8
"""Number of rows of the logged image."""


class LCR(Method, DrawsPictures, HasCompanions):
    """MoCo v2 around a backbone, with a branch that predicts the Grad-CAM of its loss.

    Args:
        backbone: The network to train. Its pooled features must be the mean of its last feature
            map: a ResNet, or a ViT with `backbone_options: {global_pool: avg, fc_norm: false}`.
        temperature: Temperature of InfoNCE; 0.2 in MoCo v2.
        queue_size: Number of keys that are kept as negatives, at least a batch; 65,536 in the
            paper's code. Where a recipe does not set it: half of the training images, at most 4,096
            and at least a batch (our choice), because a longer queue holds older keys of the
            query's own image.
        momentum: Momentum of the teacher at the first step; 0.999 throughout in the paper's code.
        momentum_end: Momentum of the teacher at the last step, reached along a cosine.
        projection_size: Size of queries and keys; 128 in MoCo v2, 256 in the paper's code.
        attention_weight: Weight of the KL divergence, a mean over images. The paper's code uses
            0.01 of a sum. With its SGD, 0.01 of our mean does not train the branch; 1 does
            (docs/methods.md).
        attention_channels: Number of channels of the attention branch; 32 in the paper's code.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `moco_v2`.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
    """

    papers = (
        "Shu, van den Hengel, Liu: Learning Common Rationale to Improve Self-Supervised "
        "Representation for Fine-Grained Visual Recognition Problems. CVPR 2023.",
        "Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning. "
        "arXiv 2003.04297, 2020.",
    )
    figures = (
        "71.31 % linear top-1 on CUB-200-2011, ResNet-50 from supervised ImageNet weights, "
        "attention-weighted pooling, best epoch on the test set (the paper, quoted in GANPerf/LCR "
        "issue 2)",
        "64.71 % and 66.85 % in reruns of its code by others (GANPerf/LCR issues 2, 5, 7)",
        "68.17 % with the start weights in the paper, 63.76 % and 63.85 % in reruns (GANPerf/"
        "LCR issues 2, 6)",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: Positive = 0.2,
        queue_size: Count = 4096,
        momentum: Share = 0.99,
        momentum_end: Share = 0.999,
        projection_size: Count = 128,
        attention_weight: Positive = 1.0,
        attention_channels: Count = 32,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        check_pooling(backbone.model, backbone.name, backbone.image_size)
        self.projector = moco_projector(backbone.num_features, projection_size)
        self.teacher = teacher_of(self.student())
        self.queue = Queue(queue_size, projection_size)
        self.attention = AttentionBranch(backbone.model.num_features, attention_channels)
        self.temperature = temperature
        self.momentum, self.momentum_end = momentum, momentum_end
        self.attention_weight = attention_weight
        self.attention_channels = attention_channels
        self.augmentations = augmentations_of(preset, augmentation, paper="moco_v2")

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        return RandomViews(image_size, self.augmentations, (None, None))

    def student(self) -> nn.Sequential:
        """The modules that the teacher averages; built at each call, as they are registered."""
        return nn.Sequential(self.backbone, self.projector)

    def forward(self, batch: Batch) -> MethodOutput:
        """L_C + weight KL of `images` (b, 2, h, w, 3)."""
        first, second = self.backbone.normalize(batch["images"]).unbind(1)
        model = self.backbone.model
        features = model.forward_features(first)
        queries = self.projector(model.forward_head(features))
        with torch.no_grad():
            keys = self.teacher(second)
        contrast = info_nce(queries, keys, self.queue.negatives(), self.temperature)
        self.queue.push(gather(keys))

        maps = map_of(model, features)
        attention, target = self.attention(maps), rationale(model, contrast, features)
        difference = attention_loss(attention, target)
        metrics = {
            "loss/contrast": contrast.detach(),
            "loss/attention": difference.detach(),
            "train/attention_correlation": correlation(attention.detach(), target),
        }
        return MethodOutput(contrast + self.attention_weight * difference, metrics)

    def on_step_end(self, progress: float) -> None:
        """Update the teacher."""
        momentum = cosine(self.momentum, self.momentum_end, progress)
        follow(self.teacher, self.student(), momentum)

    def companions(self) -> Mapping[str, Backbone]:
        """The backbone with its attention, which computes the features of the paper."""
        own = self.backbone
        architecture, stock_options = stock_of(own.name, own.model)
        sized = size_arguments(architecture, own.image_size)
        options = {
            "trunk": architecture,
            "trunk_options": {**stock_options, **sized, **own.options},
            "attention_channels": self.attention_channels,
        }
        model: Any = timm.create_model("fgssl_attentive", num_classes=0, **options)
        model.trunk.load_state_dict(own.model.state_dict())
        model.attention.load_state_dict(self.attention.state_dict())
        model.to(next(own.parameters()).device)
        return {
            "attention": Backbone(
                model, "fgssl_attentive", init=own.init, image_size=own.image_size, mean=own.mean,
                std=own.std, options=options,
            )
        }  # fmt: skip

    def picture(self, batch: Batch) -> UInt8[Tensor, "p q 3"]:
        """First views, each beside its pixels multiplied by the attention."""
        shown = batch["images"][:PICTURES, 0]
        features = self.backbone.model.forward_features(self.backbone.normalize(shown))
        attention = self.attention(map_of(self.backbone.model, features))
        light = F.interpolate(attention[:, None].float(), size=shown.shape[1:3]).movedim(1, -1)
        return torch.cat([shown, (shown * light).round().byte()], dim=2).flatten(0, 1)


def rationale(
    model: nn.Module, loss: Float[Tensor, ""], features: Float[Tensor, "b ..."]
) -> Float[Tensor, "b h w"]:
    """G, the Grad-CAM of a mean loss at a timm model's last features; 0..1, without gradient."""
    gradient = gradient_at(loss, features)
    return min_max(gradcam(map_of(model, features.detach()), map_of(model, gradient)))


def attention_loss(
    attention: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """KL(softmax target || softmax attention) over the positions, averaged over the images."""
    learnt, wanted = (x.flatten(1).log_softmax(1) for x in (attention, target))
    return F.kl_div(learnt, wanted, reduction="batchmean", log_target=True)


def correlation(a: Float[Tensor, "b h w"], b: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Pearson correlation of two maps over their positions, averaged over the images."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return F.cosine_similarity(a, b).mean()
