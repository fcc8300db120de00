"""1 x 1 convolutions with a stride, without the kernel of oneDNN that writes out of bounds."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_BLOCK = 16
"""Channels that oneDNN's kernel reads at once with AVX-512; with as many or more it is correct."""


class SubsampledConv2d(nn.Conv2d):
    """A 1 x 1 convolution with a stride, computed without one on every stride-th pixel.

    Its output equals that of `nn.Conv2d` up to rounding.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d y x"]:
        """Convolve every stride-th pixel; (y, x) = (ceil(h / stride), ceil(w / stride))."""
        rows, columns = self.stride
        return F.conv2d(input[..., ::rows, ::columns], self.weight, self.bias)


def subsample_first(model: nn.Module) -> None:
    """Turn convolutions that oneDNN computes wrongly on a CPU into `SubsampledConv2d`.

    The gradient of a 1 x 1 convolution with a stride and fewer input channels than a block writes
    behind its buffer if the input is channels-last and fp32 (AVX2, AVX-512): the process crashes,
    hangs, or has wrong gradients. RepVGG, MobileOne and FastViT start with such a layer. Source:
    github.com/uxlfoundation/oneDNN/issues/6035, still open with torch 2.15.

    Args:
        model: Changed in place; its state dict stays the same.
    """
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.padding == (0, 0)
            and module.groups == 1
            and module.in_channels < SMALLEST_BLOCK
        ):
            module.__class__ = SubsampledConv2d
