import pytest
import torch
from torch import nn

from fg_ssl_zoo.layers.pixel_decoder import PixelDecoder, resized


@pytest.mark.parametrize(("side", "widths"), [
    (32, [128, 64, 32]), (64, [256, 128, 64, 32]), (128, [512, 256, 128, 64, 32]),
])  # fmt: skip
def test_blocks_double_the_side_and_all_comes_from_the_vector(side, widths):
    with torch.device("meta"):
        decoder = PixelDecoder(20, side)
        assert decoder(torch.zeros(2, 20)).shape == (2, 3, side, side)
    convolutions = [m for m in decoder.blocks.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == widths
    assert all(m.kernel_size == (3, 3) and m.stride == (1, 1) for m in convolutions)
    assert decoder.first.weight.shape == (512 * 16, 20)


def test_pictures_do_not_depend_on_their_batch_outside_of_training():
    torch.manual_seed(0)
    decoder = PixelDecoder(6, 32)
    decoder(torch.randn(8, 6))
    decoder.eval()
    h = torch.randn(4, 6)
    torch.testing.assert_close(decoder(h)[:1], decoder(h[:1]), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(decoder(h)[0], decoder(h)[1], atol=1e-3)


def test_a_reduction_averages_and_keeps_the_mean():
    images = torch.rand(2, 3, 64, 64, generator=torch.manual_seed(0))
    small = resized(images, 16)
    assert small.shape == (2, 3, 16, 16)
    torch.testing.assert_close(small.mean(), images.mean(), rtol=0, atol=5e-3)
    assert small.std() < 0.5 * images.std()
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(resized(flat, 20), torch.full((1, 3, 20, 20), 0.3))
