"""One face for every timm model: pooled features, feature maps, and the pixels it wants."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from fg_ssl_zoo.backbones.fgssl_models import published_as, stock_of
from fg_ssl_zoo.backbones.options import check_features, check_options, create_model
from fg_ssl_zoo.backbones.published import WEIGHTS, exported_folder
from fg_ssl_zoo.backbones.published_config import check_source, read_config
from fg_ssl_zoo.backbones.start_weights import PARTIAL, is_file_name, read_weights, start_from
from fg_ssl_zoo.backbones.zoo import TRAIN, PretrainedWeightsError, explain, published_folder
from fg_ssl_zoo.config import CROP_PCT, home_path, nearest, printable, recipe_files

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
        crop_pct, interpolation, crop_mode: How a picture is brought to the input, in timm's words.
        patch_size: Of a ViT, in pixels; `None` for others.
        options: Keywords of its timm constructor that an export has to carry.
        listener: While it is a list, pictures and features of every pass with a gradient go there.
    """

    listener: list[tuple[Tensor, Tensor]] | None = None

    def __init__(
        self,
        model: nn.Module,
        name: str,
        *,
        init: str = "scratch",
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        crop_pct: float = CROP_PCT,
        interpolation: str = "bicubic",
        crop_mode: str = "center",
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
        self.crop_pct, self.interpolation, self.crop_mode = crop_pct, interpolation, crop_mode
        width = getattr(model, "head_hidden_size", None)  # MobileNet, VGG: a layer behind the map
        self.num_features: int = width or self.model.num_features
        self.patch_size = patch_size_of(model)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Pooled features `h` of normalised images."""
        with self._precision_for(images):
            return self._reported(images, self.model(images))

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
            with self._precision_for(images):
                return self.model.forward_intermediates(
                    images, indices=wanted, intermediates_only=True
                )
        except AssertionError as error:  # timm's way to say that an index is out of range
            count = len(getattr(self.model, "feature_info", ()))
            raise ValueError(
                f"{self.name} has {count} feature maps; there is no {indices}"
            ) from error

    def map_and_features(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b d"]]:
        """The last feature map, a ViT's behind its last norm, and the pooled features `h`.

        Both are of one pass.
        """
        (last,), features = self.maps_and_features(images, [-1])
        return last, features

    def maps_and_features(
        self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]
    ) -> tuple[list[Float[Tensor, "b _ _ _"]], Float[Tensor, "b d"]]:
        """Feature maps as `feature_maps`, a ViT's behind its last norm, and the pooled features.

        All are of one pass; the network has to have `forward_intermediates`, as most of timm's do.
        """
        with self._precision_for(images):
            end, maps = self.model.forward_intermediates(images, indices=list(indices), norm=True)
            return maps, self._reported(images, self.model.forward_head(end))

    def _reported(self, images: Tensor, features: Tensor) -> Tensor:
        if self.listener is not None and features.requires_grad:
            self.listener.append((images, features))
        return features

    def _precision_for(self, images: Tensor) -> AbstractContextManager[Any]:
        """No autocast where torch's bf16 gradient is wrong: a strided convolution on one pixel.

        On a CPU (torch 2.15) it reads memory that nothing has written. Pictures of 16 pixels end so
        in a network that divides their side by 32.
        """
        info = getattr(self.model, "feature_info", None) or [{"reduction": 1}]
        single = min(images.shape[-2:]) <= info[-1].get("reduction", 1) / 2
        tiny = single and self.patch_size is None and images.device.type == "cpu"
        return torch.autocast("cpu", enabled=False) if tiny else nullcontext()

    @property
    def centre_view(self) -> dict[str, Any]:
        """Keywords of `CentreView`: how a picture is brought to the input."""
        fill = tuple(round(255 * value) for value in self.mean)
        return {
            "size": self.image_size,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "crop_mode": self.crop_mode,
            "fill": fill if self.crop_mode == "border" else (0, 0, 0),
        }

    def normalize(self, pixels: UInt8[Tensor, "*n h w 3"]) -> Float[Tensor, "*n 3 h w"]:
        """Pixels as the loader ships them become what the network reads, on the pixels' device.

        The result is a channels-last view of the same layout, which costs no copy. Whole rows of
        3 w numbers are scaled in place: a last axis of 3 would be broadcast at half the speed.
        """
        width = pixels.shape[-2]
        mean, std = (torch.tensor(x, device=pixels.device) * 255 for x in (self.mean, self.std))
        rows = pixels.flatten(-2).float()  # (*n, h, 3 w)
        rows.mul_((1 / std).repeat(width)).add_((-mean / std).repeat(width))
        return rows.unflatten(-1, (width, 3)).movedim(-1, -3)

    def denormalize(self, images: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
        """Back from what the network reads to pixels around 0..1, not cut."""
        mean, std = (torch.tensor(x, device=images.device) for x in (self.mean, self.std))
        return images.float() * std[:, None, None] + mean[:, None, None]


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
        init: One of

            - `scratch`: timm's own initialisation;
            - `a1_in1k`, `dino`: a pretrained tag of that model;
            - `FILE.safetensors`, under anybody's keys (`backbones/start_weights.py`);
              `FILE.safetensors#partial` where the file holds a part on purpose;
            - `runs/NAME`, an exported folder, `fgssl_resnet50_cub.simclr`: a model of ours to
              continue from;
            - `hf-hub:OWNER/NAME`, `local-dir:FOLDER`: as timm reads them.

            All but a bare file bring the mean and std of their pixels.
        image_size: Side of the input in pixels; a multiple of the patch size for a ViT.
        **options: Keywords of the timm constructor.

    Raises:
        ValueError: Unknown name, tag, file or option, a size that does not fit, or weights that
            do not match.
    """
    if "." in name or not timm.is_model(name):
        raise ValueError(f"unknown backbone '{printable(name)}'{nearest(name, timm.list_models())}")
    check_options(options)
    arguments = {**size_arguments(name, image_size, **options), **options}
    pixels: Mapping[str, Any] = {}
    if init == "scratch":
        model = build(name, name, **arguments)
    elif is_file_name(init):
        model = build(name, name, **arguments)
        file = init.removesuffix(PARTIAL)
        start_from(model, read_weights(home_path(file)), file, partial=init.endswith(PARTIAL))
        _tell_pixels(name, file)
    elif init in _tags(name) or init.startswith(("hf-hub:", "local-dir:")):
        model = _from_timm(name, init, arguments)
        pixels = model.pretrained_cfg
        _tell_resized(model, pixels, image_size, init)
        options = {**built_with(init), **options}  # what timm has built, and an export must carry
    else:
        model = build(name, name, **arguments)
        pixels = _continue_from(model, _folder_of_ours(name, init), name, init)
    if options:
        check_features(model, name, options, image_size)
    given = {key: pixels[key] for key in ("mean", "std") if key in pixels}
    return Backbone(model, name, init=init, image_size=image_size, options=options, **given)


def _tags(name: str) -> list[str]:
    return [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name}.*")]


def _from_timm(name: str, init: str, arguments: Mapping[str, Any]) -> Any:
    """The model with a tag's weights, or with those of a folder or a repository.

    Raises:
        ValueError: They cannot be had, or are those of another network.
    """
    source = f"{name}.{init}" if init in _tags(name) else init
    model = build(source, source, pretrained=True, **arguments)
    found = model.pretrained_cfg.get("architecture") or name
    if found not in (name, stock_of(name, model)[0]):
        raise ValueError(f"init: {init} holds a {found}; the recipe's backbone is {name}")
    with torch.device("meta"):
        wanted = build(name, name, **arguments).state_dict()
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    if shapes != {key: value.shape for key, value in wanted.items()}:
        raise ValueError(f"init: {init} was built with other backbone_options than the recipe's")
    return model


def _tell_pixels(name: str, file: str) -> None:
    """Warn where a bare file, which states no mean and std, is of a network that may want others.

    Wrong ones cost a lot: EfficientNet-Lite1 has 78.7 % kNN on cub100 with its own, 70.5 % with
    ImageNet's.
    """
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and (cfg.mean, cfg.std) != (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD):
        _log.warning(
            "init: %s states no mean and std of its pixels; ImageNet's are used, timm's %s has %s "
            "and %s. Put config.json beside it and write local-dir:FOLDER to choose",
            file, name, cfg.mean, cfg.std,
        )  # fmt: skip


def _tell_resized(model: Any, cfg: Mapping[str, Any], image_size: int, init: str) -> None:
    size = cfg["input_size"][-1]
    if getattr(model, "pos_embed", None) is not None and size != image_size:
        _log.info("init: %s: position embeddings resized from %d to %d px", init, size, image_size)


def _folder_of_ours(name: str, init: str) -> Path:
    """The exported folder of a run, of a folder, or of one of our names.

    Raises:
        ValueError: These words mean nothing, or the weights cannot be had.
    """
    if published := published_as(init):
        try:
            return published_folder(*published)
        except PretrainedWeightsError as error:
            raise ValueError(f"init: {error}") from error
    if home_path(init).is_dir():
        return exported_folder(home_path(init))
    if (recipe := Path(init).name) in recipe_files() and init.startswith("runs/"):
        raise ValueError(f"init: there is no {init}; train it first: {TRAIN.format(recipe)}")
    known = ["scratch", *_tags(name), *timm.list_pretrained("fgssl*")]
    raise ValueError(
        f"init: '{printable(init)}' is neither scratch, a .safetensors file, a run or exported "
        f"folder, hf-hub:OWNER/NAME, one of our names nor a pretrained tag of {name}"
        f"{printable(nearest(init, known))}"
    )


def _continue_from(model: Any, folder: Path, name: str, init: str) -> Mapping[str, Any]:
    """Load an exported folder, which holds a stock architecture; what it says of its pixels.

    Raises:
        ValueError: It holds another network, or one of other options.
    """
    config, wanted = read_config(folder), stock_of(name, model)[0]
    if config["architecture"] != wanted:
        raise ValueError(
            f"init: {init} holds a {config['architecture']}; the recipe's backbone is {wanted}"
        )
    try:
        start_from(model, read_weights(folder / WEIGHTS), init)
    except ValueError as error:
        built = {k: v for k, v in config.get("model_args", {}).items() if k != "img_size"}
        raise ValueError(
            f"{error}; its backbone_options are {built}" if built else error
        ) from error
    return config.get("pretrained_cfg", {})


def built_with(source: str) -> dict[str, Any]:
    """Constructor keywords that a folder or repository names, without size and classifier."""
    arguments = check_source(source).get("model_args") or {}
    return {key: arguments[key] for key in arguments if key not in ("img_size", "num_classes")}


def build(source: str, words: str, **arguments: Any) -> Any:
    """The timm model; what the Hub or a file answers names the words that asked.

    Raises:
        ValueError: An option that it does not take, or weights or a configuration that cannot be
            had.
    """
    if source.startswith("local-dir:"):
        source = f"local-dir:{home_path(source.removeprefix('local-dir:'))}"
    try:
        check_source(source, arguments.get("cache_dir"))
        return create_model(source, words, arguments)
    except (OSError, HfHubHTTPError, SafetensorError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        reason = line if source.startswith("local-dir:") else explain(error)
        raise ValueError(f"no weights for {words}: {reason}") from error
    except PretrainedWeightsError as error:
        raise ValueError(str(error)) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError,
            TypeError) as error:  # fmt: skip
        if not source.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
            raise
        raise ValueError(f"{words}: {_misfit(source, error)}") from error


def _misfit(source: str, error: Exception) -> str:
    """What timm or torch says of a folder whose weights or arguments fit no network, on one line.

    torch lists missing, unexpected and misshapen tensors in lines below the first.
    """
    arguments = check_source(source).get("model_args") or {}
    texts = ", ".join(f"{k}: {v!r}" for k, v in arguments.items() if isinstance(v, str))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[1:3] or lines or ["no reason given"])
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    hint = f"; texts among its model_args: {texts}" if texts else ""
    return f"its weights do not fit its config.json ({type(error).__name__}: {said}){hint}"


def size_arguments(
    name: str, image_size: int, built: nn.Module | None = None, **options: Any
) -> dict[str, int]:
    """`img_size` for the models whose weights depend on it; a size that does not fit is refused.

    Args:
        name: Of a timm architecture.
        image_size: Side of the input in pixels.
        built: The same network for pictures of any size, where there is one: it tells its patches.
        **options: Of the constructor otherwise, among which may be another patch size.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.fixed_input_size:
        return {}
    with torch.device("meta"):
        shape = build(name, name, **options) if built is None else built
    patch = patch_size_of(shape) or 1
    if image_size % patch:
        lower, upper = image_size // patch * patch, (image_size // patch + 1) * patch
        fitting = f"{lower} or {upper}" if lower else str(upper)
        raise ValueError(
            f"data.image_size: {image_size} is not divisible by the patch size {patch} of {name}; "
            f"{fitting} would be"
        )
    return {"img_size": image_size}


def patch_size_of(model: nn.Module) -> int | None:
    """Side of a ViT's patch in pixels; `None` for a network that takes any size.

    A hybrid's patches are of its stem's map: they cover as many times that map's stride.
    """
    embed = getattr(model, "patch_embed", None)
    patch, stride = (getattr(embed, key, None) for key in ("patch_size", "feature_ratio"))
    sides = [side[0] if isinstance(side, tuple | list) else side for side in (patch, stride)]
    return int(sides[0] * (sides[1] or 1)) if sides[0] else None
