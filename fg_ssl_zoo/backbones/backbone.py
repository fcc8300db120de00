"""One face for every timm model: pooled features, feature maps, and the pixels it wants."""

import copy
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.format import Format
from torch import Tensor, nn

from fg_ssl_zoo.config import nearest

_log = logging.getLogger(__name__)


class Backbone(nn.Module):
    """A timm model without its classifier; all that is published.

    Attributes:
        model: The stock timm model; its state dict is what `model.safetensors` holds.
        name: Its timm architecture.
        init: What the weights started from, as written in the recipe.
        num_features: `d`, the width of the pooled feature.
        image_size: Side of the input in pixels.
        mean, std: Per channel, of pixels in 0..1.
        patch_size: Of a ViT, in pixels; `None` for others.
        options: Keywords of its timm constructor that an export has to carry.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        *,
        init: str = "scratch",
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.options = dict(options or {})
        self.model: Any = model
        self.name = name
        self.init = init
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        width = getattr(model, "head_hidden_size", None)  # MobileNet, VGG: a layer behind the map
        self.num_features: int = width or self.model.num_features
        self.patch_size = patch_size_of(model)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Pooled features `h` of normalised images."""
        return self.model(images)

    def feature_maps(
        self, images: Float[Tensor, "b 3 h w"], indices: int | Sequence[int] = 1
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Feature maps (b, d, h, w) of the chosen stages or blocks, the same for ResNet and ViT.

        Args:
            images: Normalised.
            indices: Stage or block numbers, negative ones from the end; an int takes the last n.

        Raises:
            ValueError: The model has no feature maps, or no such stage or block.
        """
        wanted = indices if isinstance(indices, int) else list(indices)
        if not hasattr(self.model, "forward_intermediates"):
            raise ValueError(f"{self.name} has no feature maps that timm can read")
        try:
            return self.model.forward_intermediates(images, indices=wanted, intermediates_only=True)
        except AssertionError as error:  # timm's way to say that an index is out of range
            count = len(getattr(self.model, "feature_info", ()))
            raise ValueError(
                f"{self.name} has {count} feature maps; there is no {indices}"
            ) from error

    def normalize(self, pixels: UInt8[Tensor, "*n h w 3"]) -> Float[Tensor, "*n 3 h w"]:
        """Pixels as the loader ships them become what the network reads, on the pixels' device.

        The result is a channels-last view of the same layout, which costs no copy.
        """
        mean = torch.tensor(self.mean, device=pixels.device) * 255
        std = torch.tensor(self.std, device=pixels.device) * 255
        return ((pixels.float() - mean) / std).movedim(-1, -3)


def weights_fingerprint(backbone: Backbone) -> str:
    """Twelve hex digits that change with any weight."""
    digest = hashlib.blake2b(digest_size=6)
    for key, value in backbone.model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def create_backbone(
    name: str, *, init: str = "scratch", image_size: int = 224, **options: Any
) -> Backbone:
    """Build a backbone by timm name and give it its start weights.

    Args:
        name: Any timm model name, without a tag.
        init: `scratch` (timm's own initialisation), a pretrained tag of that model (`a1_in1k`),
            the path of a `.safetensors` file with timm's keys, or `hf-hub:OWNER/NAME`,
            `local-dir:FOLDER`.
        image_size: Side of the input in pixels; a multiple of the patch size for a ViT.
        **options: Keywords of the timm constructor.

    Raises:
        ValueError: Unknown name, tag, file or option, a size that does not fit, or weights that
            do not match.
    """
    if "." in name or not timm.is_model(name):
        raise ValueError(f"unknown backbone '{name}'{nearest(name, timm.list_models())}")
    given, options = options, {**size_arguments(name, image_size), **options}
    if init == "scratch":
        model = _build(name, options)
        return Backbone(model, name, init=init, image_size=image_size, options=given)
    if init.endswith(".safetensors"):
        model = _build(name, options)
        _load_file(model, Path(init))
        return Backbone(model, name, init=init, image_size=image_size, options=given)
    if init.startswith(("hf-hub:", "local-dir:")):
        source = init
    else:
        tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]
        if init not in tags:
            raise ValueError(
                f"init: '{init}' is neither scratch, a .safetensors file, hf-hub:OWNER/NAME "
                f"nor a pretrained tag of {name}{nearest(init, tags)}"
            )
        source = f"{name}.{init}"
    model = _build(source, {**options, "pretrained": True})
    start = model.pretrained_cfg
    found = start.get("architecture") or name
    if found != name:
        raise ValueError(f"init: {init} holds a {found}; the recipe's backbone is {name}")
    return Backbone(
        model,
        name,
        init=init,
        image_size=image_size,
        mean=start["mean"],
        std=start["std"],
        options=given,
    )


def _build(name: str, arguments: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, num_classes=0, **arguments)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ValueError(
            f"backbone_options: {name} does not take them all ({error}); backbone_options={{}} does"
        ) from error


def size_arguments(name: str, image_size: int) -> dict[str, int]:
    """`img_size` for the models whose weights depend on it; a size that does not fit is refused."""
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        return {}
    patch = _patch_size(name)
    if image_size % patch:
        lower, upper = image_size // patch * patch, (image_size // patch + 1) * patch
        fitting = f"{lower} or {upper}" if lower else str(upper)
        raise ValueError(
            f"data.image_size: {image_size} is not divisible by the patch size {patch} of {name}; "
            f"{fitting} would be"
        )
    return {"img_size": image_size}


def _patch_size(name: str) -> int:
    with torch.device("meta"):
        return patch_size_of(_build(name, {})) or 1


def patch_size_of(model: nn.Module) -> int | None:
    """Side of a ViT's patch in pixels; `None` for a network that takes any size."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    return int(patch[0] if isinstance(patch, tuple | list) else patch) if patch else None


def accept_any_size(backbone: Backbone) -> None:
    """Let a ViT read pictures of other sizes: position embeddings are interpolated on the way.

    What timm's `dynamic_img_size=True` does while it builds; weights and the native size are as
    before. A network without patches reads every size anyway.

    Raises:
        ValueError: A transformer that timm cannot feed other sizes.
    """
    model = backbone.model
    if backbone.patch_size is None or getattr(model, "dynamic_img_size", False):
        return
    if not hasattr(model, "dynamic_img_size"):
        raise ValueError(f"{backbone.name} reads one size of pictures; this method needs others")
    model.dynamic_img_size = True
    model.patch_embed.strict_img_size = False
    model.patch_embed.flatten = False
    model.patch_embed.output_fmt = Format.NHWC


def parameters_behind(backbone: Backbone, index: int) -> list[nn.Parameter]:
    """Parameters that a feature map does not depend on.

    Behind map -2 these are the last stage of a CNN, or the last block and the norm of a ViT; behind
    map -1 a ViT's norm, which its feature maps leave out.
    """
    return _reach(backbone, index, backbone.image_size)[1]


def train_up_to_last_map(backbone: Backbone, side: int) -> tuple[int, int]:
    """Freeze what the last feature map does not depend on, and tell that map's width and side.

    A method that reads the map alone has no gradient for what timm keeps behind it, such as the
    last norm of a ViT; a parameter without one stops data-parallel training.

    Args:
        backbone: Is changed in what requires grad only.
        side: Of the pictures that the method will show, in pixels.

    Returns:
        Channels and height of the map.

    Raises:
        ValueError: Pictures of this side are too small for the network.
    """
    try:
        last, behind = _reach(backbone, -1, side)
    except RuntimeError as error:
        raise ValueError(
            f"data.image_size: {backbone.name} cannot read pictures of {side} pixels "
            f"({error}); a larger size would do"
        ) from error
    for parameter in behind:
        parameter.requires_grad_(False)
    return last.shape[1], last.shape[2]


def _reach(backbone: Backbone, index: int, side: int) -> tuple[Tensor, list[nn.Parameter]]:
    """A feature map of an empty picture, and the parameters that have no gradient from it."""
    twin = copy.deepcopy(backbone).eval().requires_grad_(True)
    parameters = list(twin.parameters())
    with torch.enable_grad():
        image = torch.zeros(1, 3, side, side, device=parameters[0].device)
        (found,) = twin.feature_maps(image, [index])
        gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)
    pairs = zip(backbone.parameters(), gradients, strict=True)
    return found.detach(), [parameter for parameter, gradient in pairs if gradient is None]


def _load_file(model: nn.Module, path: Path) -> None:
    """Load timm keys; what the file lacks stays as initialised and is named in the log.

    Raises:
        ValueError: No such file, a shape that differs, or less than half of the weights found.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"init: there is no file {path}")
    found, wanted = load_file(path), model.state_dict()
    shared = {key: value for key, value in found.items() if key in wanted}
    wrong = [key for key, value in shared.items() if value.shape != wanted[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"init: {key} in {path} has shape {tuple(found[key].shape)}; "
            f"the backbone's is {tuple(wanted[key].shape)} ({len(wrong)} differ)"
        )
    if len(shared) < len(wanted) / 2:
        raise ValueError(
            f"init: {path} holds {len(shared)} of the backbone's {len(wanted)} weights"
        )
    missing = sorted({key.rpartition(".")[0] for key in wanted if key not in shared})
    if missing:
        _log.warning("init: %s lacks %s; they start at random", path, ", ".join(missing))
    model.load_state_dict(shared, strict=False)
