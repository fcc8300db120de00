"""Synthesized pairs (LDF-style): pairs of decoded images that differ in weak dimensions only.

Paper: Wang, Liu, Figueroa Weston, Tian & Li, ECCV 2024 (arXiv 2407.14676), later called LDF. No
code was released, so this is LDF-style and not LDF.

    views        two independent draws of one image
    contrast     L_C, of MoCo v2 or SimSiam; h = backbone(view)
    select       S, the dimensions of h with the lowest variance or the lowest importance for L_C
    perturb      h' = h outside S; in S h' = h + noise, ... (`layers/weak_dimensions.py`)
    decode       g(h) and g(h'): a synthesized pair (`layers/pixel_decoder.py`)
    reconstruct  L_R, mean squared error of g(h) and the view, in normalised pixels
    pair         L_Cp, the base loss of g(h) and g(h'), which are constants for it
    loss         L_C + alpha L_R + nu L_Cp

L_Cp trains only the encoder; otherwise the decoder would learn to ignore S. nu is 0 until the
decoder is trained. Synthesized keys have their own queue, since they could be distinguished from
real keys by their blur.

The paper's abstract confirms the two criteria, the perturbation of these dimensions only, the
decoder, and the learned invariance; a summary confirms the three loss terms and the two bases. All
layers, numbers and schedules are our choice.

Further choices: a pair is decoded with the decoder's running statistics, so that its images differ
only by h and h'. Decoded images do not update the backbone's running statistics. Perturbed features
are clamped at zero if no feature of the batch is negative (a backbone that ends in ReLU).
BatchNorms see both views of SimSiam together and are synchronised over processes, as in the two
base methods.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.networks.attentive import map_of
from fg_ssl_zoo.config import Count, Positive, Share, Weight
from fg_ssl_zoo.data.sample import Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.base_losses import Agreement, ContrastiveBase, PredictiveBase, take_in
from fg_ssl_zoo.layers.feature_statistics import FeatureBank, MovingMoments
from fg_ssl_zoo.layers.frozen import unremembered
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.layers.momentum import follow
from fg_ssl_zoo.layers.pixel_decoder import PixelDecoder, resized
from fg_ssl_zoo.layers.queue import Queue
from fg_ssl_zoo.layers.weak_dimensions import Criterion, Perturbation, WeakDimensions
from fg_ssl_zoo.method import Batch, DrawsPictures, Method, MethodOutput
from fg_ssl_zoo.ops.distributed import gather, own_share_of_first, world_size
from fg_ssl_zoo.ops.gradcam import gradcam, gradient_at, min_max
from fg_ssl_zoo.ops.image_quality import psnr, side_by_side
from fg_ssl_zoo.ops.schedules import cosine, ramp

PICTURES = 8
"""Number of rows of the logged image."""


class SynthesizedPairs(Method, DrawsPictures):
    """MoCo v2 or SimSiam around a backbone, with LDF-style synthesized pairs.

    Args:
        backbone: The network to train; gives the pooled features `h`.
        base: Method to which the pairs are added; the paper tried both.
        temperature: Temperature of MoCo's InfoNCE; 0.2 in v2.
        queue_size: Number of keys in each of MoCo's two queues, at least a batch. Where a recipe
            does not set it: half of the training images, at most 4,096 and at least a batch.
        momentum: Momentum of MoCo's teacher at the first step, as in `moco`.
        momentum_end: Momentum of MoCo's teacher at the last step, reached along a cosine.
        projection_size: Size of the projections `z`; 128 with MoCo and 2,048 with SimSiam when not
            given.
        predictor_size: Width of the hidden layer of SimSiam's predictor; 512 in its paper.
        reconstruction_weight: Weight alpha of the reconstruction loss. At 0 the decoder is not
            trained.
        pair_weight: Final weight nu of the loss on pairs.
        pair_rise: Shares of the stage between which nu rises from 0 to its final value. `[0, 0]`
            uses the final value from the first step, for an inherited decoder.
        stop_reconstruction: Whether the reconstruction loss trains the decoder alone, and not the
            backbone.
        decoder_size: Side of the decoded images in pixels; 128 adds about a fifth to the cost of a
            step.
        criterion: How the set S of weak dimensions is selected: low `variance`, low importance
            (`gradcam`), the `union` of both sets, or their `intersection`.
        variance: `raw` variance, as in the abstract, or variance `relative` to the squared mean:
            after ReLU and pooling the variance grows with the mean.
        importance: Importance of dimension d: `grad_x_act` is |dL_C/dh_d h_d|, in units of the
            loss; `gradcam` is Grad-CAM's weight |dL_C/dh_d|. Absolute values are summed over
            images, since signed ones cancel.
        variance_share: Share of the dimensions that count as of low variance.
        importance_share: Share of the dimensions that count as of low importance.
        per_sample: Whether importance is that of each image's own gradient instead of the mean over
            many images.
        random_share: Share of S that is replaced once by dimensions drawn at random. 1 is the
            control that a claim about S needs: as many dimensions as the criterion selects.
        reselect_every: Share of the stage after which S is selected again; one epoch of 100.
        perturbation: Change of `h` in S: `gauss` adds noise, `swap` takes the values of another
            image, `zero` sets 0, `mean` sets the mean of the data.
        strength: Standard deviation of `gauss`, in units of the mean standard deviation of all
            dimensions. In units of their own, dimensions of low variance would hardly change.
        statistics: Source of the variances: a `store` of recent features (exact), or `moving`
            averages.
        store_size: Number of feature vectors in the store: 4 d bytes each, on every device and in
            every checkpoint.
        synthetic_norm: Statistics with which the backbone's BatchNorms normalise decoded images:
            those of their `batch`, or the `running` ones of real images. Neither changes the
            running statistics.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `moco_v2`, as in both bases.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.
    """

    papers = (
        "Wang, Liu, Figueroa Weston, Tian, Li: On Learning Discriminative Features from "
        "Synthesized Data for Self-Supervised Fine-Grained Visual Recognition. ECCV 2024, "
        "arXiv 2407.14676. (This method is in its style; there is no released code.)",
    )

    nu: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        base: Literal["moco", "simsiam"] = "moco",
        temperature: Positive = 0.2,
        queue_size: Count = 4096,
        momentum: Share = 0.99,
        momentum_end: Share = 0.999,
        projection_size: Count | None = None,
        predictor_size: Count = 512,
        reconstruction_weight: Weight = 1.0,
        pair_weight: Weight = 0.5,
        pair_rise: tuple[Share, Share] = (0.1, 0.15),
        stop_reconstruction: bool = False,
        decoder_size: Literal[32, 64, 128] = 64,
        criterion: Criterion = "union",
        variance: Literal["raw", "relative"] = "raw",
        importance: Literal["grad_x_act", "gradcam"] = "grad_x_act",
        variance_share: Share = 0.2,
        importance_share: Share = 0.2,
        per_sample: bool = False,
        random_share: Share = 0.0,
        reselect_every: Annotated[Share, Gt(0)] = 0.01,
        perturbation: Perturbation = "gauss",
        strength: Weight = 1.0,
        statistics: Literal["store", "moving"] = "store",
        store_size: Count = 8192,
        synthetic_norm: Literal["batch", "running"] = "batch",
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        if per_sample and random_share:
            raise ValueError("random_share: a random S is the same for all images, so it cannot be "
                             "used with per_sample=true; use random_share=0")  # fmt: skip
        d, k = backbone.num_features, projection_size or (128 if base == "moco" else 2048)
        self.base: ContrastiveBase | PredictiveBase
        self.queue = self.pair_queue = None
        if base == "moco":
            self.base = ContrastiveBase(backbone, d, k, temperature)
            self.queue, self.pair_queue = Queue(queue_size, k), Queue(queue_size, k)
        else:
            self.base = PredictiveBase(d, k, predictor_size)
        self.decoder = PixelDecoder(d, decoder_size)
        self.decoder.requires_grad_(reconstruction_weight > 0)
        store = FeatureBank(store_size, d) if statistics == "store" else MovingMoments(d)
        self.weak = WeakDimensions(
            store, d, criterion=criterion, relative=variance == "relative",
            variance_share=variance_share, importance_share=importance_share,
            per_sample=per_sample, random_share=random_share, every=reselect_every,
            perturbation=perturbation, strength=strength,
        )  # fmt: skip
        self.register_buffer("nu", torch.zeros(()))
        self.importance = importance
        self.momentum, self.momentum_end = momentum, momentum_end
        self.reconstruction_weight, self.pair_weight = reconstruction_weight, pair_weight
        self.stop_reconstruction, self.synthetic_norm = stop_reconstruction, synthetic_norm
        self.pair_rise = pair_rise
        self.augmentations = augmentations_of(preset, augmentation, paper="moco_v2")
        self.nu.fill_(pair_weight * ramp(0.0, *pair_rise))

    @classmethod
    def keeps_queue(cls, options: Mapping[str, Any]) -> bool:
        """True if the base is MoCo."""
        return options.get("base", "moco") == "moco"

    def views(self, image_size: int) -> Views:
        """Two views: `images` (2, s, s, 3)."""
        return RandomViews(image_size, self.augmentations, (None, None))

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """Parameters with the scheduled learning rate; SimSiam's predictor has a constant one."""
        predictor = self.base.predictor if isinstance(self.base, PredictiveBase) else None
        constant = list(predictor.parameters()) if predictor else []
        apart = {id(p) for p in constant}
        yield {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in apart]}
        if constant:
            yield {"params": constant, "constant_lr": True}

    def forward(self, batch: Batch) -> MethodOutput:
        """L_C + alpha L_R + nu L_Cp of `images` (b, 2, h, w, 3); updates queues and store."""
        first, second = self.backbone.normalize(batch["images"].transpose(0, 1))
        base = self.base(self.backbone, first, second, self.queue)
        h, importance = (x[: len(first)] for x in (base.h, self.importance_of(base)))
        weak, loss = self.weak.of(importance), base.loss
        metrics = {"loss/contrast": loss.detach(), **base.metrics, **self.weak.describe(h, weak)}
        if self.reconstruction_weight:
            decoded = self.decoder(h.detach() if self.stop_reconstruction else h)
            true = resized(first, self.decoder.side)
            reconstruction = F.mse_loss(decoded.float(), true)
            loss = loss + self.reconstruction_weight * reconstruction
            seen, wanted = (self.backbone.denormalize(x.detach()) for x in (decoded, true))
            metrics["loss/reconstruction"] = reconstruction.detach()
            metrics["train/psnr"] = psnr(seen.clamp(0, 1), wanted)
        if self.pair_weight and bool(self.nu > 0):
            original, changed = self.synthesize(h.detach().float(), weak)
            pairs = self.agree_on_pairs(original, changed)
            loss = loss + self.nu * pairs
            metrics["loss/pairs"] = pairs.detach()
            difference = self.backbone.denormalize(original) - self.backbone.denormalize(changed)
            metrics["train/pair_difference"] = difference.square().mean().sqrt()
        self.weak.observe(h.detach(), importance)
        take_in(self.queue, base)
        return MethodOutput(loss, metrics)

    def importance_of(self, base: Agreement) -> Float[Tensor, "n d"]:
        """Importance of each dimension of each h for L_C; detached.

        If h is the mean of the last map A over its positions, dL/dA = dL/dh / (h w) at each
        position. Grad-CAM's weight is then dL/dh up to a factor, which needs only a backward pass
        through the heads.
        """
        gradient = gradient_at(base.loss, base.h).float()
        weighed = gradient * base.h.detach() if self.importance == "grad_x_act" else gradient
        return weighed.abs()

    @torch.no_grad()
    def synthesize(
        self, h: Float[Tensor, "b d"], weak: Bool[Tensor, "_ d"]
    ) -> tuple[Float[Tensor, "b 3 s s"], Float[Tensor, "b 3 s s"]]:
        """g(h) and g(h') of this process's images; random draws are made for all processes."""
        changed = torch.where(weak, own_share_of_first(self.weak.replacement(gather(h))), h)
        with evaluating(self.decoder):
            original, perturbed = self.decoder(torch.cat([h, changed])).float().chunk(2)
        return original, perturbed

    def agree_on_pairs(
        self, original: Float[Tensor, "b 3 s s"], changed: Float[Tensor, "b 3 s s"]
    ) -> Float[Tensor, ""]:
        """L_Cp: the base loss of decoded images, in random roles, with their own queue."""
        count = len(original) * world_size()
        drawn = own_share_of_first(torch.rand((count, 1, 1, 1), device=original.device))
        first = torch.where(drawn < 0.5, original, changed)
        second = torch.where(drawn < 0.5, changed, original)
        side = self.backbone.image_size
        as_seen = unremembered(self) if self.synthetic_norm == "batch" else evaluating(self)
        with as_seen:
            seen = (resized(x, side) for x in (first, second))
            pairs: Agreement = self.base(self.backbone, *seen, self.pair_queue)
        take_in(self.pair_queue, pairs)
        return pairs.loss

    def on_step_end(self, progress: float) -> None:
        """Update the teacher, and set S and nu (buffers) for the next step."""
        if isinstance(self.base, ContrastiveBase):
            momentum = cosine(self.momentum, self.momentum_end, progress)
            follow(self.base.teacher, self.base.student(self.backbone), momentum)
        self.weak.reselect(progress)
        self.nu.fill_(self.pair_weight * ramp(progress, *self.pair_rise))

    def picture(self, batch: Batch) -> UInt8[Tensor, "p q 3"]:
        """One row per image: view, g(h), g(h'), difference, Grad-CAM outside of S and of S."""
        first, second = self.backbone.normalize(batch["images"].transpose(0, 1))
        with torch.enable_grad():
            base = self.base(self.backbone, first, second, self.queue)
            importance, gradient = self.importance_of(base), gradient_at(base.loss, base.h)
        n = min(PICTURES, len(first))
        h, first = base.h[:n].detach().float(), first[:n]
        weak = self.weak.of(importance[:n])
        decoded = self.decoder(h), self.decoder(torch.where(weak, self.weak.replacement(h), h))
        original, changed = (self.backbone.denormalize(x).clamp(0, 1) for x in decoded)
        shown = self.backbone.denormalize(resized(first, self.decoder.side))
        columns = [shown, original, changed, (original - changed).abs()]
        maps = map_of(self.backbone.model, self.backbone.model.forward_features(first)).float()
        if maps.shape[1] == h.shape[1]:  # otherwise dimensions of h are not channels of the map
            for group in (~weak, weak):
                heeded = (gradient[:n] * group)[..., None, None]
                light = min_max(gradcam(maps, heeded))[:, None]
                columns.append(shown * F.interpolate(light, shown.shape[2:], mode="bilinear"))
        return side_by_side(*columns)
