"""One interface for every timm model: pooled features, feature maps, preprocessing."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float, UInt8
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from torch import Tensor, nn

from fg_ssl_zoo.config import CROP_PCT, printable, reason_of
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.layers.pointwise import subsample_first


class WrongSize(ValueError):
    """Images of a size that a network cannot read."""


class Backbone(nn.Module):
    """A timm model without its classifier; the part of a training that is published.

    Attributes:
        model: The stock timm model; its state dict is what `model.safetensors` holds.
        name: Its timm architecture.
        init: Start weights, as written in the recipe.
        num_features: `d`, the width of the pooled feature.
        image_size: Side of the input in pixels.
        mean, std: Mean and standard deviation per channel, of pixels in 0..1.
        crop_pct, interpolation, crop_mode: How an image is cropped and resized, as in timm.
        patch_size: Patch size of a ViT, in pixels; `None` for others.
        options: Keywords of its timm constructor that an export must contain.
        listener: If it is a list, images and features of every forward pass with gradient are
            appended to it.
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
        subsample_first(model)
        self.options = dict(options or {})
        self.model: Any = model
        self.name = name
        self.init = init
        self.image_size = image_size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.crop_pct, self.interpolation, self.crop_mode = crop_pct, interpolation, crop_mode
        width = getattr(model, "head_hidden_size", None)  # MobileNet, VGG: a layer after the map
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
            indices: Stage or block numbers, negative ones from the end; an int n means the last n.

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
        except AssertionError as error:  # timm's error for an index out of range, and for a size
            count = len(getattr(self.model, "feature_info", ()))
            numbers = [-wanted] if isinstance(wanted, int) else wanted
            if all(-count <= number < count for number in numbers):
                raise
            raise ValueError(
                f"{self.name} has {count} feature maps; there is no {indices}"
            ) from error

    def map_and_features(
        self, images: Float[Tensor, "b 3 h w"]
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b d"]]:
        """The last feature map (of a ViT, after its last norm) and the pooled features `h`.

        Both come from one forward pass.
        """
        (last,), features = self.maps_and_features(images, [-1])
        return last, features

    def maps_and_features(
        self, images: Float[Tensor, "b 3 h w"], indices: Sequence[int]
    ) -> tuple[list[Float[Tensor, "b _ _ _"]], Float[Tensor, "b d"]]:
        """Feature maps as in `feature_maps` (of a ViT, after its last norm), and pooled features.

        All come from one forward pass. The network must have `forward_intermediates`, as most timm
        models do.
        """
        with self._precision_for(images):
            norm = not isinstance(self.model, Hiera | HieraDet)  # have none, and refuse the word
            end, maps = self.model.forward_intermediates(images, indices=list(indices), norm=norm)
            return maps, self._reported(images, self.model.forward_head(end))

    def _reported(self, images: Tensor, features: Tensor) -> Tensor:
        if self.listener is not None and features.requires_grad:
            self.listener.append((images, features))
        return features

    def _precision_for(self, images: Tensor) -> AbstractContextManager[Any]:
        """No autocast where torch's bf16 gradient is wrong: a strided convolution on one pixel.

        On a CPU (torch 2.15) this gradient reads uninitialised memory. It happens for images of
        16 pixels in a network of stride 32.
        """
        info = getattr(self.model, "feature_info", None) or [{"reduction": 1}]
        single = min(images.shape[-2:]) <= info[-1].get("reduction", 1) / 2
        tiny = single and self.patch_size is None and images.device.type == "cpu"
        return torch.autocast("cpu", enabled=False) if tiny else nullcontext()

    @property
    def centre_view(self) -> dict[str, Any]:
        """Keywords of `CentreView`: how an image is cropped and resized."""
        fill = tuple(round(255 * value) for value in self.mean)
        return {
            "size": self.image_size,
            "crop_pct": self.crop_pct,
            "interpolation": self.interpolation,
            "crop_mode": self.crop_mode,
            "fill": fill if self.crop_mode == "border" else (0, 0, 0),
        }

    def normalize(self, pixels: UInt8[Tensor, "*n h w 3"]) -> Float[Tensor, "*n 3 h w"]:
        """Normalise uint8 pixels from the loader, on their device.

        The result is a channels-last view with the same layout, without a copy. Rows of 3 w numbers
        are scaled in place, which is twice as fast as broadcasting over a last axis of 3.
        """
        width = pixels.shape[-2]
        mean, std = (_on_device(x, pixels.device) * 255 for x in (self.mean, self.std))
        rows = pixels.flatten(-2).float()  # (*n, h, 3 w)
        rows.mul_((1 / std).repeat(width)).add_((-mean / std).repeat(width))
        return rows.unflatten(-1, (width, 3)).movedim(-1, -3)

    def denormalize(self, images: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
        """Invert `normalize`: pixels around 0..1, not clamped."""
        mean, std = (_on_device(x, images.device) for x in (self.mean, self.std))
        return images.float() * std[:, None, None] + mean[:, None, None]


def _on_device(values: Sequence[float], device: torch.device) -> Float[Tensor, " n"]:
    """Numbers that the device fills in itself: a copy from the host would make the step wait."""
    return torch.stack([torch.full((), value, device=device) for value in values])


def weights_fingerprint(backbone: Backbone) -> str:
    """Twelve hex digits that change with any weight."""
    digest = hashlib.blake2b(digest_size=6)
    for key, value in backbone.model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def patch_size_of(model: nn.Module) -> int | None:
    """Side of a ViT's patch in pixels; `None` for a network that accepts any size.

    For a hybrid: patch side on the map of its stem, times the stride of that map.
    """
    embed = getattr(model, "patch_embed", None)
    patch, stride = (getattr(embed, key, None) for key in ("patch_size", "feature_ratio"))
    sides = [side[0] if isinstance(side, tuple | list) else side for side in (patch, stride)]
    return int(sides[0] * (sides[1] or 1)) if sides[0] else None


def failure_at(model: nn.Module, size: int) -> str | None:
    """Why a network cannot read an image of `size` pixels; `None` if it can.

    timm does not say which sizes fit: HaloNet reads whole blocks only, CrossViT and EfficientFormer
    one size.
    """
    image = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
    try:
        with evaluating(model), torch.no_grad():
            model(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        return printable(reason_of(error))
    return None
