"""A head that compares features with learned prototypes."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn


class PrototypeHead(nn.Module):
    """Features -> MLP -> unit vector -> its cosine with each prototype (DINO).

    The prototypes are normalised in the forward pass, which equals weight normalisation with all
    lengths 1; the parameter is a plain matrix, so copies, state dicts and data-parallel training
    need no special treatment. As in facebookresearch/dino there is no BatchNorm, the MLP is
    initialised from a normal distribution of standard deviation 0.02 truncated at -2 and 2, and the
    prototypes like a torch linear layer.

    Args:
        width: Width of the features.
        hidden_size: Width of the two hidden layers, with GELU; 2,048 in the paper.
        bottleneck: Width of the normalised bottleneck; 256 in the paper.
        prototypes: Number of outputs; 65,536 in the paper.
    """

    def __init__(self, width: int, hidden_size: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, bottleneck),
        )
        for layer in self.mlp[::2]:
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02, a=-2.0, b=2.0)
            nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(
        self, h: Float[Tensor, "b d"], fixed: Bool[Tensor, ""] | None = None
    ) -> Float[Tensor, "b k"]:
        """Cosines with all prototypes, in the precision of the weights.

        The last layer does not use autocast: at a temperature of 0.04, rounding to bfloat16 near 1
        changes a logit by a tenth.

        Args:
            h: Features.
            fixed: () whether the gradient of the prototypes is zero. A tensor, since a number would
                have to be read from the device in each step.
        """
        z = self.mlp(h)
        with torch.autocast(h.device.type, enabled=False):
            directions = F.normalize(self.prototypes.weight, dim=1)
            if fixed is not None:  # zero instead of none, which would stop data-parallel training
                still = directions.detach() + 0 * directions
                directions = torch.where(fixed, still, directions)
            return F.linear(F.normalize(z.to(directions.dtype), dim=1), directions)
