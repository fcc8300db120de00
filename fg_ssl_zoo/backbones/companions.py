"""Networks that are built around a trained backbone and published beside it."""

from typing import Any

import timm
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.networks.srgan import SRResNet


def generator_of(trunk: Backbone, up: nn.Sequential) -> Backbone | None:
    """SRGAN's whole generator up to its last convolution, as a backbone.

    Args:
        trunk: Any backbone; `None` is returned for one that is not SRResNet's trunk.
        up: The enlargements that were trained behind it; `None` is returned for another width.
    """
    first: Any = up[0]
    if not isinstance(trunk.model, SRResNet) or first[0].in_channels != trunk.model.num_features:
        return None
    options = {**trunk.options, "upsample": True}
    model = timm.create_model(trunk.name, num_classes=0, **options)
    weights = {**trunk.model.state_dict(), **{f"up.{k}": v for k, v in up.state_dict().items()}}
    model.load_state_dict(weights)
    return Backbone(
        model, trunk.name, init=trunk.init, image_size=trunk.image_size, mean=trunk.mean,
        std=trunk.std, options=options,
    )  # fmt: skip
