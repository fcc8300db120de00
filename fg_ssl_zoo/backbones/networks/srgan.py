"""The two networks of SRGAN as timm models: `fgssl_srresnet`, `fgssl_srgan_discriminator`.

Paper: Ledig et al., 2017 (arXiv 1609.04802), figure 4; layers as in the code of Breiki, Ridzuan &
Grandhe, 2021 (`Lornatang/SRGAN-PyTorch`).

They are architectures like `resnet50`, so their names contain no data set; a trained model is named
`fgssl_srresnet_DATA.METHOD` by its recipe. Import fg_ssl_zoo before opening such a model, since
stock timm does not have them. timm shows the last part of a module's name when it lists models,
hence the name of this file.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from fg_ssl_zoo.layers.generator import doubling

FULL_MAP = 6
"""Side of the discriminator's last map at 96 and at 88 pixels; other maps are pooled to it."""


class _Chain(nn.Module, ABC):
    """timm's model interface for a network that is a chain of feature maps."""

    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    pool_size: int
    feat_mult: int
    pool: SelectAdaptivePool2d

    @abstractmethod
    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """All feature maps (b, c, h, w) of `feature_info`, one after the other."""

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map."""
        for found in self.maps(x):
            x = found
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features of the last map, or logits if there is a classifier."""
        x = self.hidden(self.pool(x)) if self.global_pool else x
        x = self.head_drop(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(b, num_classes), or (b, head_hidden_size) without a classifier."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Selected maps, and the last one unless `intermediates_only`, as in timm."""
        assert output_fmt == "NCHW", "Output shape must be NCHW."
        wanted, last = self._taken(indices)
        found = []
        for number, x in enumerate(self.maps(x)):  # noqa: B020
            if number in wanted:
                found.append(x)
            if number == last and stop_early and intermediates_only:
                break
        return found if intermediates_only else (x, found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the head; all layers before it are kept."""
        if prune_head:
            self.hidden = nn.Identity()
            self.head_hidden_size = self.num_features
            self._set_head(0, "")
        return self._taken(indices)[0]

    def _taken(self, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
        """Non-negative numbers of the maps, and the largest."""
        wanted = indices if indices is None or isinstance(indices, int) else list(indices)
        return feature_take_indices(len(self.feature_info), wanted)

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; 0 classes for none; `global_pool` as in the constructor."""
        self._set_head(num_classes, self.global_pool if global_pool is None else global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not supported."""
        assert not enable, "gradient checkpointing not supported"

    def _make_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.head_drop = nn.Dropout(drop_rate)
        self.hidden: nn.Module = nn.Identity()
        self._set_head(num_classes, global_pool)

    def _set_head(self, num_classes: int, global_pool: str) -> None:
        if num_classes and not global_pool:
            raise ValueError("global_pool: a classifier needs pooled features; use avg")
        self.num_classes, self.global_pool = num_classes, global_pool
        side = self.pool_size if global_pool else 1
        self.pool = SelectAdaptivePool2d(side, global_pool, flatten=bool(global_pool))
        if isinstance(self.hidden, nn.Identity):
            self.head_hidden_size = self.num_features * self.pool.feat_mult() * side**2
        elif global_pool and self.pool.feat_mult() != self.feat_mult:
            raise ValueError(f"global_pool: {global_pool} does not fit the layer after the pooling")
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()


class SRResNet(_Chain):
    """The trunk of SRGAN's generator, up to the map before upsampling.

        stem     conv 9x9 and PReLU
        blocks   16 times: x + conv-BN-PReLU-conv-BN(x)
        fuse     stem + conv-BN(last block)

    Every map is as large as the image.

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of the image.
        global_pool: `avg`, `max`, `avgmax`, `catavgmax`, or '' for the map itself.
        num_blocks: 16 in the paper.
        drop_last_blocks: Number of blocks left out at the end.
        width: Channels of every layer; 64 in the paper.
        pool_size: Side of the grid after pooling; 4 gives 1,024 features.
        upsample: Whether the two upsampling blocks of the generator follow; the last map is then
            four times as large as the image, as in the paper's downstream classifier.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        num_blocks: int = 16,
        drop_last_blocks: int = 0,
        width: int = 64,
        pool_size: int = 1,
        upsample: bool = False,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 9, padding=4), nn.PReLU())
        self.blocks = nn.Sequential(*[ResidualBlock(width) for _ in range(num_blocks)])
        self.fuse = Fusion(*_conv_norm(width, width))
        self.up = nn.Sequential(*[doubling(width) for _ in range(2 * upsample)])
        self.num_features, self.pool_size = width, pool_size
        self.drop_last_blocks(drop_last_blocks)
        self._make_head(num_classes, global_pool, drop_rate)

    def drop_last_blocks(self, count: int) -> None:
        """Remove residual blocks from the end; the layers after them are kept.

        Raises:
            ValueError: No block would be left.
        """
        there = len(self.blocks)
        if not 0 <= count < there:
            raise ValueError(
                f"drop_last_blocks: {count} of {there} blocks leave none; use 0 to {there - 1}"
            )
        self.blocks = self.blocks[: there - count]
        flat = ["stem", *(f"blocks.{number}" for number in range(len(self.blocks))), "fuse"]
        reductions = [(name, 1) for name in flat]
        reductions += [(f"up.{number}", 0.5 ** (number + 1)) for number in range(len(self.up))]
        width = self.num_features
        self.feature_info = [
            {"num_chs": width, "reduction": by, "module": name} for name, by in reductions
        ]

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """Maps after the stem, after every block, their sum, and after every upsampling."""
        first = x = self.stem(x)
        yield x
        for block in self.blocks:
            x = block(x)
            yield x
        x = self.fuse(x, first)
        yield x
        for enlargement in self.up:
            x = enlargement(x)
            yield x


class Fusion(nn.Sequential):
    """stem + conv-BN(x): one module, so that a hook on it gets the map that `feature_info` says."""

    def forward(self, x: Tensor, stem: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Both (b, width, h, w), to the same shape."""
        return stem + super().forward(x)


class ResidualBlock(nn.Module):
    """x + conv-BN-PReLU-conv-BN(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_norm(width, width), nn.PReLU(), *_conv_norm(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, width, h, w) to the same shape."""
        return x + self.layers(x)


class Discriminator(_Chain):
    """SRGAN's discriminator: eight convolutions, two linear layers, logits.

    The last map is averaged to 6 x 6, so images of at least 16 pixels are accepted; at 96 and 88
    pixels the map already has this size.

    Args:
        num_classes: 0 for no classifier.
        in_chans: Channels of the image.
        global_pool: Pooling to 6 x 6: `avg` or `max`; '' for the map itself.
        width: Channels of the first two convolutions; 64 in the paper (512 at the end).
        hidden_size: Width of the layer before the classifier; 1,024 in the paper.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        width: int = 64,
        hidden_size: int = 1024,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1), nn.LeakyReLU(0.2))
        blocks, before = [first], width
        self.feature_info = [{"num_chs": width, "reduction": 1, "module": "blocks.0"}]
        for number in range(1, 8):
            after, stride = width * 2 ** (number // 2), 1 + number % 2
            blocks += [nn.Sequential(*_conv_norm(before, after, stride), nn.LeakyReLU(0.2))]
            reduction = 2 ** ((number + 1) // 2)
            name = f"blocks.{number}"
            self.feature_info += [{"num_chs": after, "reduction": reduction, "module": name}]
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.num_features, self.pool_size = before, FULL_MAP
        self._make_head(0, global_pool, drop_rate)
        self.feat_mult = self.pool.feat_mult()
        wide = before * self.feat_mult * FULL_MAP**2
        self.hidden = nn.Sequential(nn.Linear(wide, hidden_size), nn.LeakyReLU(0.2))
        self.head_hidden_size = hidden_size
        self.reset_classifier(num_classes)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """Maps after every convolution."""
        for block in self.blocks:
            x = block(x)
            yield x


def _conv_norm(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after)
    )


# --------------------------------------------------------------------------- registration

_COMMON = {"input_size": (3, 96, 96), "interpolation": "bicubic", "classifier": "fc"}
__all__: list[str] = []  # timm appends every name it registers
default_cfgs = generate_default_cfgs({
    "fgssl_srresnet": {
        **_COMMON, "first_conv": "stem.0", "pool_size": (96, 96),
        "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD,
    },
    "fgssl_srgan_discriminator": {
        **_COMMON, "first_conv": "blocks.0.0", "pool_size": (FULL_MAP, FULL_MAP),
        "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0),
    },
})  # fmt: skip


@register_model
def fgssl_srresnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Trunk of SRGAN's generator; features before upsampling, at the image's resolution."""
    return _build(SRResNet, "fgssl_srresnet", pretrained, **kwargs)


@register_model
def fgssl_srgan_discriminator(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SRGAN's discriminator; reads pixels in 0..1 and returns logits."""
    return _build(Discriminator, "fgssl_srgan_discriminator", pretrained, **kwargs)


def _build(network: type[_Chain], name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    maps = {"out_indices": 3, "feature_cls": "getter"}
    return build_model_with_cfg(network, name, pretrained, feature_cfg=maps, **kwargs)
