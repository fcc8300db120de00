"""1 x 1 convolutions with a stride: the numbers of torch in float64, and no crash in float32."""

import copy

import pytest
import torch
from torch import nn

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.layers.pointwise import SubsampledConv2d, subsample_first


@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("side", [7, 8])
def test_output_and_gradients_are_those_of_the_convolution(stride, bias, side):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 5, 1, stride, bias=bias).double()
    changed = copy.deepcopy(plain)
    subsample_first(changed)
    assert isinstance(changed, SubsampledConv2d)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    seen = [images.clone().requires_grad_() for _ in range(2)]
    outputs = [network(x) for network, x in zip((plain, changed), seen, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(seen[1].grad, seen[0].grad)
    torch.testing.assert_close(changed.weight.grad, plain.weight.grad)


@pytest.mark.parametrize(
    "right",
    [
        nn.Conv2d(16, 8, 1, 2),
        nn.Conv2d(4, 4, 1, 2, groups=4),
        nn.Conv2d(3, 8, 3, 2),
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(3, 8, 1, 2, padding=1),
    ],
)
def test_other_convolutions_stay(right):
    subsample_first(right)
    assert type(right) is nn.Conv2d


def test_its_gradient_in_float32_is_that_of_float64():
    """`nn.Conv2d` crashes here within a few steps on AVX2 and AVX-512 (torch 2.15)."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 64, 1, 2, bias=False)
    exact = copy.deepcopy(layer).double()
    subsample_first(layer)
    for _ in range(20):
        images = torch.randn(8, 96, 96, 3).movedim(-1, 1)  # channels-last
        for network, seen in ((layer, images), (exact, images.double())):
            network.zero_grad()
            network(seen).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad.double(), exact.weight.grad, rtol=1e-4, atol=1)


def test_a_backbone_has_no_such_layer_left():
    backbone = create_backbone("repvgg_a0", image_size=32)
    strided = {
        type(module)
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.in_channels < 16
    }
    assert strided == {SubsampledConv2d}
