"""Options of part discovery."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.hypercolumns import RESNET_LAYERS, MapName, default_layers
from fg_ssl_zoo.config import parse


@dataclass(frozen=True)
class Discovery:
    """How parts are discovered.

    Attributes:
        num_parts: Number of clusters `k`; 15 for CNNs and 5 for ViTs in the released code.
        scope: `image` clusters each image alone, so numbers do not agree between images (the
            released code for ResNet); `dataset` gives a part the same number in all images.
        layers: Layers as for `hypercolumns`. When empty: `default_layers` of the network for scope
            `image`, and only the deepest of them for `dataset`, since over a data set shallow maps
            group pixels by colour and edges (NMI with the keypoints of 64 birds 0.12 with layer3 to
            maxpool, 0.34 with layer3; ResNet-18, ImageNet weights).
        normalize: Whether each layer is scaled to unit length.
        size: Side of the part maps in pixels; a CNN is clustered at this size, a ViT at its own.
        stride: Step of a ViT's patches in pixels; less than the patch size makes them overlap.
        foreground: Whether part 0 is the background, and the object is divided into parts (ViT
            only).
        threshold: Mean saliency above which a cluster is salient; 0.065 in the release.
        votes: Share of images in which it must be salient; 0.75 in the release.
        heads: Heads whose attention is the saliency; all when not given (0, 2, 4, 5 of DINO's
            ViT-S in the release).
        pca: Number of principal components of the sample that are clustered (scope `dataset` only).
        sample: Number of pixels of the data set that are clustered (scope `dataset` only).
        restarts: Number of starts of k-means, of which the best is kept; 10 in the release.
        smooth: Side of the majority filter's window in pixels of the map, odd; 1 for none.
        seed: Seed of k-means and of the sample.
    """

    num_parts: int = 15
    scope: str = "dataset"
    layers: tuple[MapName, ...] = ()
    normalize: bool = True
    size: int = 64
    stride: int | None = None
    foreground: bool = False
    threshold: float = 0.065
    votes: float = 0.75
    heads: tuple[int, ...] | None = None
    pca: int | None = None
    sample: int = 50_000
    restarts: int = 1
    smooth: int = 1
    seed: int = 0

    def layers_of(self, backbone: Backbone) -> tuple[MapName, ...]:
        """The layers that are read of this network."""
        own = default_layers(backbone)
        return self.layers or (own[:1] if self.scope == "dataset" else own)

    def __post_init__(self) -> None:
        most = min(self.size**2, 255 - self.foreground)
        if not 1 <= self.num_parts <= most:
            raise ValueError(
                f"num_parts: {self.num_parts} parts on maps of {self.size} x {self.size} pixels; "
                f"use 1 to {most}"
            )
        if self.scope not in ("image", "dataset"):
            raise ValueError(f"scope: '{self.scope}' is neither image nor dataset")
        if self.scope == "image" and self.pca is not None:
            raise ValueError("pca: needs scope=dataset, since components are those of the data set")
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise ValueError(f"smooth: {self.smooth} is not an odd number of pixels; use 1, 3, 5")


def discovery_for(
    backbone: Backbone, changes: Mapping[str, Any] | None = None, *, released: bool = False
) -> Discovery:
    """15 parts for a CNN; 5 and the background for a ViT.

    Args:
        backbone: Backbone whose features are clustered.
        changes: Fields of `Discovery` with other values.
        released: Whether to use the values of cvl-umass/PARTICLE. Their ViT-S/8 takes patches at a
            stride of 4 pixels, half a patch.

    Raises:
        RecipeError: An unknown field, or an invalid value.
    """
    if backbone.patch_size is None:
        known = Discovery(num_parts=15)
        layers = RESNET_LAYERS if default_layers(backbone) == RESNET_LAYERS else ()
        theirs: dict[str, Any] = {"scope": "image", "layers": layers}
    else:
        known = Discovery(num_parts=5, foreground=True)
        theirs = {"stride": max(1, backbone.patch_size // 2), "heads": (0, 2, 4, 5)}
    if released:
        known = replace(known, restarts=10, **theirs)
    return parse(Discovery, {**asdict(known), **(changes or {})}, where="discovery")
