"""Distillation: train a network of any architecture on the features of another, without labels.

Papers: Hinton, Vinyals & Dean, 2015 (arXiv 1503.02531) for the logits; Romero et al., 2015 (arXiv
1412.6550) for the maps.

    views      one random view of an image; teacher and student may read it at different sizes
    teacher    pooled features f, maps F_s with s cells a side, class logits t; fixed
    student    pooled features h and maps H_s: the last map with about as many cells; of a ViT,
               where all maps have the same cells, the map at the same share of its depth
    target     x' = (x - mean) / (std + 1e-3) per channel, over the batch of all processes
    features   L_f = mean (linear(h) - f')^2
    maps       L_m = sum over s of the mean of (linear(H_s) - F_s')^2
    logits     L_l = T^2 KL(softmax(t / T) || softmax(linear(h) / T))
    loss       (a L_f + b L_m + c L_l) / (a + b * number of maps + c)

The linear heads are discarded after the stage. A student without feature maps in timm is trained on
pooled features (and logits) alone. With `targets: cached` the teacher reads the centre crop of
every image once, and the student predicts these features from random views; maps are not used then.

Our choice: the standardised error (without it, only the channels with the largest scale are
learned), the weights, and maps of stride 8 or more only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone, WrongSize, weights_fingerprint
from fg_ssl_zoo.backbones.create import open_backbone, open_classifier
from fg_ssl_zoo.backbones.maps import accept_size
from fg_ssl_zoo.config import Positive, Weight
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import image_loader, resolve_num_workers
from fg_ssl_zoo.data.sample import Images, Views
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.layers.pixel_decoder import resized
from fg_ssl_zoo.method import Batch, Method, MethodOutput, Notes
from fg_ssl_zoo.ops.distributed import mean_over_processes, rank, sum_over_processes, world_size

Size = Annotated[int, Ge(16)]

FINEST = 8
"""Smallest stride of a map that is compared: finer maps show edges, which any network learns."""
FINEST_FOLD = 4
"""Most cells a side of a finer map that one cell of a ViT predicts; the map is averaged to that."""


class Distillation(Method):
    """A student that is trained to predict the features of a fixed teacher for the same view.

    Args:
        backbone: The student, which is trained.
        teacher: Any model that `fgssl eval` opens: a run, an exported folder, `local-dir:FOLDER`,
            `hf-hub:OWNER/NAME`, a timm or fgssl name, `ARCHITECTURE@FILE.safetensors`.
        teacher_size: Side of the teacher's images in pixels. When not given: the student's, or the
            teacher's own if it accepts one size only.
        student_size: Side of the student's images in this stage, in pixels; the recipe's
            `image_size` when not given. Smaller images cost less. Convolutional networks only.
        targets: `online`: the teacher computes the features of the student's view at every step.
            `cached`: it computes the features of each image's centre crop once before the stage,
            which is faster; only pooled features are then learned.
        feature_weight: Weight `a` of the squared error of the pooled features.
        map_weight: Weight `b` of the squared error of each feature map of stride 8 or more; 0 for
            pooled features alone.
        logit_weight: Weight `c` of the divergence of the class scores; needs a teacher with a
            classifier.
        temperature: Temperature `T` of the class scores; Hinton et al. report 2 to 20.
        preset: Named pair of views: a key of `fg_ssl_zoo.data.views.PRESETS`, or `paper` for
            `fine_grained`.
        augmentation: Strengths of `Augmentation` that replace those of the preset, such as
            `{grayscale: 0}`.

    Raises:
        ValueError: No such teacher, one without weights or classifier, or sizes that do not fit.
    """

    papers = (
        "Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. 2015, "
        "arXiv 1503.02531.",
        "Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets. "
        "ICLR 2015, arXiv 1412.6550.",
    )
    has_outside_teacher = True
    negatives = "all"  # targets are standardised over the batch of all processes

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: str,
        teacher_size: Size | None = None,
        student_size: Size | None = None,
        targets: Literal["online", "cached"] = "online",
        feature_weight: Weight = 2.0,
        map_weight: Weight = 1.0,
        logit_weight: Weight = 0.0,
        temperature: Positive = 4.0,
        preset: str = "fine_grained",
        augmentation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(backbone)
        if targets == "cached":
            map_weight = 0.0
        if not feature_weight + logit_weight:  # later parameters have no gradient
            raise ValueError(
                "feature_weight and logit_weight are both 0; one of them must be above 0"
            )
        self.cached, self.temperature = targets == "cached", temperature
        self.feature_weight, self.map_weight = feature_weight, map_weight
        self.logit_weight = logit_weight
        self.augmentation, _ = augmentations_of(preset, augmentation, paper="fine_grained")
        self.size = student_size or backbone.image_size
        if self.size != backbone.image_size:
            if backbone.patch_size is not None:
                raise ValueError(
                    f"student_size: {backbone.name} accepts images of {backbone.image_size} pixels "
                    "only"
                )
            try:
                accept_size(backbone, self.size)
            except WrongSize as error:
                raise ValueError(f"student_size: {error}") from error
        taught = open_teacher(teacher, teacher_size or self.size, teacher_size is None)
        classifier = open_classifier(teacher) if logit_weight else None
        if logit_weight and classifier is None:
            raise ValueError(
                f"logit_weight: teacher '{teacher}' has no classifier; set 0, or name another one"
            )
        self._outside = (taught, classifier)  # a tuple: neither in the state nor in the export
        self.pairs = self._pairs(taught) if map_weight else []
        self.maps = nn.ModuleList(
            nn.Linear(pair.width, pair.fold**2 * pair.target_width) for pair in self.pairs
        )
        d = backbone.num_features
        self.features = nn.Linear(d, taught.num_features) if feature_weight else None
        self.logits = nn.Linear(d, classifier.out_features) if classifier else None

    @classmethod
    def outside_teachers(cls, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Name, weights and licence of the teacher, for results and card."""
        teacher = open_teacher(options["teacher"], options.get("teacher_size"), True)
        return [
            {
                "model": options["teacher"],
                "architecture": teacher.name,
                "weights": weights_fingerprint(teacher),
                "license": _license(options["teacher"], teacher),
            }
        ]

    @property
    def teacher(self) -> Backbone:
        """The fixed network; not a submodule, so it is not in checkpoints."""
        return self._outside[0]

    def views(self, image_size: int) -> Views:
        """`images` (1, s, s, 3) at the larger of both sizes."""
        size = self.size if self.cached else max(self.size, self.teacher.image_size)
        return RandomViews(size, (self.augmentation,), (None,))

    def annotate(self, images: Images, accelerator: Accelerator) -> Notes:
        """`teacher` (n, d): the teacher's features of each image, with `targets: cached`."""
        if not self.cached:
            return {}
        return {"teacher": _features_of_all(self.teacher, images, accelerator)}

    def forward(self, batch: Batch) -> MethodOutput:
        """The error of `images` (b, 1, h, w, 3)."""
        pixels = batch["images"][:, 0]
        indices = [pair.mine for pair in self.pairs]
        maps, h = self._look(self.backbone, self.size, pixels, indices)
        with torch.no_grad():
            theirs, f, logits = self._targets(batch, pixels)
        terms: list[tuple[str, float, Tensor]] = []
        if self.features is not None:
            error = F.mse_loss(self.features(h).float(), standardised(f))
            terms.append(("features", self.feature_weight, error))
        for pair, head, mine, target in zip(self.pairs, self.maps, maps, theirs, strict=True):
            rows = mine.flatten(2).mT.flatten(0, 1)  # (b cells, c)
            cells = _folded(target, mine.shape[-2:], pair.fold).flatten(2).mT.flatten(0, 1)
            error = F.mse_loss(head(rows).float(), standardised(cells))
            terms.append((f"map_{pair.name}", self.map_weight, error))
        if self.logits is not None:
            assert logits is not None
            found = self.logits(h).float()
            terms.append(("logits", self.logit_weight, divergence(found, logits, self.temperature)))
        loss = sum(weight * term for _, weight, term in terms)
        total = sum(weight for _, weight, _ in terms)
        metrics = {f"loss/{name}": term.detach() for name, _, term in terms}
        return MethodOutput(torch.as_tensor(loss) / total, metrics)

    def _targets(self, batch: Batch, pixels: Tensor) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The teacher's maps, features and logits."""
        teacher, classifier = self._outside
        if next(teacher.parameters()).device != pixels.device:
            teacher.to(pixels.device)
        if self.cached:
            maps, f = [], batch["teacher"]
        else:
            indices = [pair.theirs for pair in self.pairs]
            maps, f = self._look(teacher, teacher.image_size, pixels, indices)
        if classifier is None:
            return maps, f, None
        return maps, f, classifier.to(pixels.device)(f)

    def _look(
        self, network: Backbone, size: int, pixels: Tensor, indices: Sequence[int]
    ) -> tuple[list[Tensor], Tensor]:
        """Selected maps and pooled features of pixels (b, h, w, 3), resized to `size`."""
        images = network.normalize(pixels)
        if images.shape[-1] != size:
            images = resized(images, size)
        return network.maps_and_features(images, indices) if indices else ([], network(images))

    def _pairs(self, teacher: Backbone) -> list["MapPair"]:
        """The maps that are compared.

        Each teacher map of stride 8 or more is paired with the student map with the nearest number
        of cells per side, if the two differ by at most a factor of 1.5. All maps of a ViT (or
        a mixer) have the same number of cells: there, teacher map i of n is paired with the block
        at i/n of its depth, and a cell predicts the cells of a finer map that lie in it.
        """
        mine = _maps(self.backbone, self.size)
        theirs = _last_by_cells(_maps(teacher, teacher.image_size))
        coarse = [m for m in theirs if m.cells <= math.ceil(teacher.image_size / FINEST)]
        pairs: dict[int, MapPair] = {}
        by_depth = len(mine) > 1 and len({m.cells for m in mine}) == 1
        for i, their in enumerate(coarse if mine else (), 1):
            if by_depth:
                own = mine[max(0, round(i / len(coarse) * len(mine)) - 1)]
                fold, name = max(1, their.cells // own.cells), f"block_{own.number + 1}"
            else:
                own = min(_last_by_cells(mine), key=lambda m: abs(m.cells / their.cells - 1))
                fold, name = 1, str(own.cells)
                if not 2 / 3 <= own.cells / their.cells <= 3 / 2:
                    continue
            pairs[own.number] = MapPair(
                own.number, their.number, own.width, their.width, min(fold, FINEST_FOLD), name
            )
        return [pairs[own] for own in sorted(pairs)]


class MapSize(NamedTuple):
    """A feature map of a network: its number, cells per side and channels."""

    number: int
    cells: int
    width: int


class MapPair(NamedTuple):
    """A student map and the teacher map that it predicts."""

    mine: int
    theirs: int
    width: int
    target_width: int
    fold: int
    """Each cell of the student predicts fold x fold cells of the teacher."""
    name: str


def open_teacher(words: str, size: int | None, may_be_own: bool) -> Backbone:
    """The teacher in evaluation mode, without gradient.

    Args:
        words: Text for `open_backbone`.
        size: Side of its images in pixels; its own when not given.
        may_be_own: Whether a teacher that does not accept this size uses its own instead.

    Raises:
        ValueError: No such model, a model with random weights, or a size that it does not accept.
    """
    if words.endswith("@scratch"):
        raise ValueError(f"teacher: '{words}' has random weights; name a trained model")
    try:
        teacher = open_backbone(words, image_size=size)
    except WrongSize as error:
        if not may_be_own:
            said = str(error).removeprefix("data.image_size: ")
            raise ValueError(f"teacher_size: {said}") from error
        teacher = open_backbone(words)
    except ValueError as error:
        raise ValueError(f"teacher: {str(error).removeprefix('init: ')}") from error
    return teacher.eval().requires_grad_(False)


def _license(words: str, teacher: Backbone) -> str | None:
    """Licence of the teacher's weights, from timm or its folder; `None` for a bare file."""
    cfg = getattr(teacher.model, "pretrained_cfg", None) or {}
    return None if ".safetensors" in words else cfg.get("license")


@torch.no_grad()
def standardised(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Zero mean and unit standard deviation per channel over the rows of all processes.

    A channel that hardly varies (standard deviation far below 1e-3) becomes zero.
    """
    x = x.float()
    x = x - mean_over_processes(x.mean(0))
    return x / (mean_over_processes(x.square().mean(0)).sqrt() + 1e-3)


def divergence(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, ""]:
    """T^2 KL(teacher || student) of softened distributions (Hinton et al., section 2)."""
    log_q = (student / temperature).log_softmax(dim=-1)
    log_p = (teacher.float() / temperature).log_softmax(dim=-1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _with_cells(x: Float[Tensor, "b c _ _"], cells: Sequence[int]) -> Float[Tensor, "b c y x"]:
    """A map resized to another number of cells, bilinear with antialiasing."""
    if x.shape[-2:] == tuple(cells):
        return x
    return F.interpolate(x.float(), size=tuple(cells), mode="bilinear", antialias=True)


def _folded(
    x: Float[Tensor, "b c _ _"], cells: Sequence[int], fold: int
) -> Float[Tensor, "b d y x"]:
    """A map resized to fold x cells along each side, with fold x fold of them in one cell."""
    return F.pixel_unshuffle(_with_cells(x, [fold * side for side in cells]), fold)


def _maps(backbone: Backbone, size: int) -> list[MapSize]:
    """The feature maps for images of `size`; none for a network that does not return them."""
    if not hasattr(backbone.model, "forward_intermediates"):
        return []
    device = next(backbone.parameters()).device
    with evaluating(backbone), torch.no_grad():
        image = torch.zeros(1, 3, size, size, device=device)
        maps = backbone.feature_maps(image, list(range(len(backbone.model.feature_info))))
    return [MapSize(number, x.shape[-1], x.shape[1]) for number, x in enumerate(maps)]


def _last_by_cells(maps: Sequence[MapSize]) -> list[MapSize]:
    """The last map of each number of cells."""
    return list({m.cells: m for m in maps}.values())


@torch.inference_mode()
def _features_of_all(teacher: Backbone, images: Images, accelerator: Accelerator) -> Tensor:
    """Features (n, d) of the centre crop of every image, equal on every process.

    Features of an unreadable image are 0; the loop replaces such an image and its notes.
    """
    teacher.to(accelerator.device)
    mine = list(range(len(images)))[rank() :: world_size()]
    found = torch.zeros(len(images), teacher.num_features)
    workers = resolve_num_workers("auto", world_size())
    for batch in image_loader(
        images,
        CentreView(**teacher.centre_view),
        mine,
        batch_size=64,
        num_workers=workers,
        title="teacher",
    ):
        if batch:
            pixels = batch["image"].to(accelerator.device)
            with accelerator.autocast():
                found[batch["index"]] = teacher(teacher.normalize(pixels)).float().cpu()
    return sum_over_processes(found.to(accelerator.device)).cpu()
