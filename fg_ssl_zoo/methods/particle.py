"""PARTICLE: discover parts by clustering, then contrast them across views; repeat.

Paper: Saha & Maji, 2023 (arXiv 2309.13822). A stage with `rounds: 3` repeats the two steps.

    annotate   f(x) = features of pixel x: a CNN's hypercolumn, a ViT's keys; k-means over all x
               (of an image, or of the whole set); part map of an image = number of its cluster
    views      two random views v of an image b; its part map is cut and mirrored with it
    pool       h_m = mean of the last feature map F under part m of the cut map
    student    q_m = predictor(projector(h_m))
    teacher    t_m = projector(h_m) of a moving average of the student's weights
    contrast   for drawn parts i, from view v to the other view u, unit vectors and tau = 0.1:
               P(b, i)    = {j : part of t_ubj = part of q_vbi}
               l(v, b, i) = -w / |P| sum_{j in P} log softmax(q_vbi . t / tau)_ubj
               w          = [|P| > 0] / number of draws of this part in (v, b)
               L_parts    = mean_bi l(1, b, i) + mean_bi l(2, b, i)
               over the targets t of all parts, images and views but q's own part in its own view
    ViT        L = L_parts + L_DINO between the same two views (`layers/distillation.py`)

Discovery is in `parts/discovery.py`, L_parts in `ops/region_contrast.py`. An image with a single
part and views without a common part contribute 0 to the loss.

Deviations from the released code: parts are drawn with replacement among those that both views
show, once for both networks (release: for each network, and absent parts too, whose zero features
are then positives of each other). The teacher has running statistics of its own, and its momentum
rises to 1 (release: 0.996 for a CNN, and less in the first 2,240 steps). BatchNorms see both views
of the batch together (release: one view at a time). Biases, norms, and a ViT's class token and
position embeddings have no weight decay (release: all parameters have it). Targets are those of all
processes. Views keep colour; `preset: paper` uses the release's, with solarisation from 128 on
(release: 0.5 on bytes, which inverts everything). The heads have a higher learning rate than a
ViT's backbone (release: 2.5e-8, at which neither changes noticeably).
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import torch
from accelerate import Accelerator
from annotated_types import Ge
from jaxtyping import Float, Int64
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.maps import train_up_to_last_map
from fg_ssl_zoo.config import Count, Positive, Share
from fg_ssl_zoo.data.loader import resolve_num_workers
from fg_ssl_zoo.data.regions import RandomRegionViews, noted
from fg_ssl_zoo.data.sample import Images, Views
from fg_ssl_zoo.data.views import augmentations_of
from fg_ssl_zoo.layers.distillation import Distillation
from fg_ssl_zoo.layers.heads import layer_norm_mlp
from fg_ssl_zoo.layers.momentum import follow, keep_all_paths, teacher_of
from fg_ssl_zoo.layers.prototype_head import PrototypeHead
from fg_ssl_zoo.method import Batch, FindsParts, Method, MethodOutput, Notes
from fg_ssl_zoo.ops.distributed import world_size
from fg_ssl_zoo.ops.region_contrast import num_compared, pool_regions, region_contrast
from fg_ssl_zoo.ops.schedules import cosine
from fg_ssl_zoo.ops.similarity import spread
from fg_ssl_zoo.parts import discover_parts, discovery_for

PAPER = augmentations_of("byol", {"grayscale": 0.0})
"""The release's views: BYOL's without grey (`train_particle_resnet.py` of cvl-umass/PARTICLE)."""


def values_for(backbone: Backbone, source: str) -> dict[str, Any]:
    """Defaults of options that are not given: ours, or those of cvl-umass/PARTICLE."""
    vit = backbone.patch_size is not None
    values = {
        "num_samples": 6 if vit else 10, "hidden_size": 2048 if vit else 4096, "distillation": vit,
        "backbone_rate": 0.01 if vit else 1.0, "prototypes": 4096, "momentum_end": 1.0,
        "preset": "fine_grained",
    }  # fmt: skip
    theirs = {"momentum_end": 1.0 if vit else 0.996, "backbone_rate": 1.0, "prototypes": 65536}
    return {**values, **theirs, "preset": "paper"} if source == "release" else values


_CODE = "released code (README of cvl-umass/PARTICLE)"


class Particle(Method, FindsParts):
    """PARTICLE around a backbone.

    Defaults of options that are not given depend on the network and on `values` (docs/methods.md).

    Args:
        backbone: The network to train; gives the features that are clustered, and the last feature
            map.
        values: Defaults of the options that are not given: `ours`, or `release` for those of the
            official code.
        num_parts: Number of clusters of the part discovery; 15 for a CNN (25 in the first commit of
            the release), 5 and the background for a ViT.
        scope: `dataset` clusters all images together, so that a part number means the same in every
            image and the log can score the parts; `image` clusters each image alone, as the release
            does for a ResNet.
        layers: Layers whose features are clustered: numbers or names of feature maps, as
            `hypercolumns` takes them.
        foreground: Whether the attention of a ViT separates the background, which becomes part 0.
        discovery: Further fields of `fg_ssl_zoo.parts.Discovery`, such as `{stride: 4, smooth: 3}`.
        num_samples: Number of parts compared per image, drawn with replacement; 10 for a CNN, 6 for
            a ViT.
        temperature: Temperature of the contrastive loss; 0.1 in the release.
        local_negatives: Whether the other parts of the same image are negatives, as in the release.
        gather_targets: Whether the targets of all processes are compared, so that the loss equals
            that of one process with the whole batch; otherwise those of each process alone.
        hidden_size: Width of the hidden layer of projector and predictor; 4,096 for a CNN, 2,048
            for a ViT.
        projection_size: Size of the projections and predictions; 256 in the release.
        momentum: Momentum of the teacher at the first step of a round.
        momentum_end: Momentum of the teacher at the last step of a round.
        distillation: Whether DINO's loss is added.
        prototypes: Number of outputs that DINO's loss compares.
        backbone_rate: Learning rate of the backbone as a share of the heads' rate.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for the
            release's views. `release` is short for `values: release`.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.

    Raises:
        ValueError: Invalid options of the discovery, or images too small for the backbone.
    """

    papers = (
        "Saha, Maji: PARTICLE: Part Discovery and Contrastive Learning for Fine-grained "
        "Recognition. ICCV Workshops 2023, arXiv 2309.13822.",
    )
    figures = (
        "35.4 -> 42.0 % on CUB, 35.5 -> 44.1 % on Aircraft, 29.7 -> 37.4 % on Cars, linear, "
        "ResNet-50 from DetCon's ImageNet weights (abstract of arXiv 2309.13822)",
        f"40.88 % on CUB, 43.99 % on Aircraft, linear, the same by the {_CODE}",
        f"84.15 % on CUB, 73.59 % on Aircraft, linear, ViT-S/8 from DINO's by the {_CODE}",
        "part segmentation, mIoU on PASCUB and OID-aircraft: 49.23 and 58.95, ResNet-50; "
        f"50.59 and 61.68, ViT-S/8 by the {_CODE}",
    )

    def __init__(
        self,
        backbone: Backbone,
        *,
        values: Literal["ours", "release"] = "ours",
        num_parts: Count | None = None,
        scope: Literal["image", "dataset"] | None = None,
        layers: tuple[int | str, ...] | None = None,
        foreground: bool | None = None,
        discovery: dict[str, Any] | None = None,
        num_samples: Count | None = None,
        temperature: Positive = 0.1,
        local_negatives: bool = True,
        gather_targets: bool = True,
        hidden_size: Count | None = None,
        projection_size: Count = 256,
        momentum: Share = 0.996,
        momentum_end: Share | None = None,
        distillation: bool | None = None,
        prototypes: Annotated[int, Ge(2)] | None = None,
        backbone_rate: Positive | None = None,
        preset: str | None = None,
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        if preset == "release":
            values, preset = "release", None
        asked = _given(num_parts=num_parts, scope=scope, layers=layers, foreground=foreground)
        self.discovery = discovery_for(
            backbone, {**asked, **(discovery or {})}, released=values == "release"
        )
        asked = _given(
            num_samples=num_samples, hidden_size=hidden_size, distillation=distillation,
            prototypes=prototypes, momentum_end=momentum_end, backbone_rate=backbone_rate,
            preset=preset,
        )  # fmt: skip
        chosen = {**values_for(backbone, values), **asked}
        self.augmentations = augmentations_of(chosen["preset"], augmentation, paper=PAPER)
        self.num_samples, self.distils = chosen["num_samples"], chosen["distillation"]
        self.temperature, self.local_negatives = temperature, local_negatives
        self.gather_targets = gather_targets
        if not local_negatives:
            self.negatives = "all" if gather_targets else "process"
        self.momentum, self.momentum_end = momentum, chosen["momentum_end"]
        self.backbone_rate, hidden = chosen["backbone_rate"], chosen["hidden_size"]
        width, _ = self._last_map(backbone.image_size)
        self.projector = layer_norm_mlp(width, hidden, projection_size)
        self.predictor = layer_norm_mlp(projection_size, hidden, projection_size)
        if self.distils:  # sizes, temperatures and frozen first epoch of the release
            self.head = PrototypeHead(backbone.num_features, 2048, 256, chosen["prototypes"])
            self.distillation = Distillation(chosen["prototypes"], teacher_warmup=0.2)
        self.teacher = teacher_of(self._followed())
        keep_all_paths(self.teacher)

    def annotate(self, images: Images, accelerator: Accelerator) -> Notes:
        """`regions` (n, m, m): the parts discovered with the current backbone."""
        return {"regions": self._discover(images, accelerator)}

    def parts(
        self, images: Images, accelerator: Accelerator, learn_from: Images | None = None
    ) -> Tensor | None:
        """The part maps numbered from 1; `None` if numbers differ between images."""
        if self.discovery.scope != "dataset":
            return None
        found = self._discover(images, accelerator, learn_from)
        return found if self.discovery.foreground else found + 1

    def _discover(
        self, images: Images, accelerator: Accelerator, learn_from: Images | None = None
    ) -> Tensor:
        return discover_parts(
            self.backbone, images, accelerator, self.discovery,
            learn_from=learn_from, num_workers=resolve_num_workers("auto", world_size()),
        )  # fmt: skip

    def views(self, image_size: int) -> Views:
        """`images` (2, s, s, 3), `masks` (2, c, c) on the feature map, `ids` (2, n), `weight`."""
        _, cells = self._last_map(image_size)
        return RandomRegionViews(image_size, cells, self.num_samples, self.augmentations, noted)

    def forward(self, batch: Batch) -> MethodOutput:
        """L_parts and L_DINO of `images` (b, 2, h, w, 3); both views take one pass of each."""
        images, masks, ids = (
            batch[key].transpose(0, 1).flatten(0, 1) for key in ("images", "masks", "ids")
        )  # the first views, then the second ones
        images = self.backbone.normalize(images)
        z, h = _look(self._followed(), images, masks, ids)
        q = self.predictor(z)
        with torch.no_grad():
            t, h_of_teacher = _look(self.teacher, images, masks, ids)
        q, t = (x.unflatten(0, (2, -1, self.num_samples)) for x in (q, t))
        ids = ids.unflatten(0, (2, -1))
        loss = region_contrast(
            q, t, ids, self.temperature,
            weights=batch["weight"], local_negatives=self.local_negatives,
            gather_targets=self.gather_targets,
        )  # fmt: skip
        regions = num_compared(ids, batch["weight"])
        metrics = {"train/z_std": spread(z), "train/regions": regions}
        if not self.distils:
            return MethodOutput(loss, metrics)
        logits = self.head(h, fixed=self.distillation.prototypes_fixed)
        with torch.no_grad():
            seen = self.teacher[2](h_of_teacher)
        dino, signs = self.distillation(*(x.unflatten(0, (2, -1)) for x in (logits, seen)))
        metrics |= {"loss/parts": loss.detach(), "loss/dino": dino.detach(), **signs}
        return MethodOutput(loss + dino, metrics)

    def param_groups(self) -> Iterator[dict[str, Any]]:
        """The heads at the full learning rate, the backbone at a share of it."""
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        apart = {id(p) for p in trained}
        yield {"params": trained, "lr_scale": self.backbone_rate}
        yield {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in apart]}

    def on_step_end(self, progress: float) -> None:
        """Update the teacher, with a momentum that rises, and DINO's schedules."""
        follow(self.teacher, self._followed(), cosine(self.momentum, self.momentum_end, progress))
        if self.distils:
            self.distillation.set_progress(progress)

    def _followed(self) -> nn.Sequential:
        """The modules that the teacher averages; built at each call, as they are registered."""
        heads = [self.projector, self.head] if self.distils else [self.projector]
        return nn.Sequential(self.backbone, *heads)

    def _last_map(self, side: int) -> tuple[int, int]:
        """Width and side of the map; without DINO's loss, what it does not depend on is frozen."""
        found = train_up_to_last_map(self.backbone, side, norm=True)
        if self.distils:
            self.backbone.requires_grad_(True)
        return found


def _look(
    network: nn.Sequential,
    images: Float[Tensor, "n 3 h w"],
    masks: Int64[Tensor, "n c c"],
    ids: Int64[Tensor, "n s"],
) -> tuple[Float[Tensor, "_ p"], Float[Tensor, "n d"]]:
    """Projections of the drawn parts, (n s, p), and the pooled features."""
    backbone, projector = cast(Backbone, network[0]), network[1]
    last, h = backbone.map_and_features(images)
    return projector(pool_regions(last, masks, ids).flatten(0, 1)), h


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}
