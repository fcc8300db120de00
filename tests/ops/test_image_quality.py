import math

import pytest
import torch

from fg_ssl_zoo.ops.image_quality import psnr, quality, side_by_side, ssim, strip


def pictures():
    torch.manual_seed(0)
    a = torch.rand(2, 3, 14, 16, dtype=torch.float64)
    return a, (a + 0.2 * torch.randn_like(a)).clamp(0, 1)


def ssim_by_loops(a, b):
    """Wang et al., 2004, window by window."""
    weights = [
        [math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)]
        for i in range(11)
    ]
    weights = torch.tensor(weights, dtype=torch.float64)
    weights = weights / weights.sum()
    values = []
    for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                p, q = (z[top : top + 11, left : left + 11] for z in (x, y))
                mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
                var_p = (weights * (p - mean_p) ** 2).sum()
                var_q = (weights * (q - mean_q) ** 2).sum()
                both = (weights * (p - mean_p) * (q - mean_q)).sum()
                up = (2 * mean_p * mean_q + 0.01**2) * (2 * both + 0.03**2)
                values.append(up / ((mean_p**2 + mean_q**2 + 0.01**2) * (var_p + var_q + 0.03**2)))
    return torch.stack(values).mean()


def test_ssim_equals_the_loop_over_windows():
    a, b = pictures()
    torch.testing.assert_close(ssim(a, b), ssim_by_loops(a, b))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert ssim(a, a).item() == pytest.approx(1)


def test_ssim_of_two_even_pictures_is_the_quotient_of_their_light():
    a, b = torch.full((1, 3, 12, 12), 0.2), torch.full((1, 3, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_an_error_of_a_tenth_everywhere_is_20_db_and_each_picture_counts_once():
    a = torch.full((2, 3, 12, 12), 0.5, dtype=torch.float64)
    assert psnr(a, a + 0.1).item() == pytest.approx(20, abs=1e-4)
    b = a + torch.tensor([0.1, 0.01])[:, None, None, None]
    assert psnr(a, b).item() == pytest.approx(30, abs=1e-4)
    assert psnr(a, a).item() == pytest.approx(100)


def test_low_precision_of_the_step_does_not_reach_the_measures():
    a, b = (x.float() for x in pictures())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(a, b), ssim(a.float(), b.float()))
        torch.testing.assert_close(ssim(a, b).double(), ssim(a.double(), b.double()))


def test_quality_cuts_to_the_range_and_has_no_gradient():
    true = torch.ones(1, 3, 12, 12)
    found = quality((true + 0.7).requires_grad_(), true)
    assert found["train/psnr"].item() == pytest.approx(100)
    assert not any(value.requires_grad for value in found.values())


def test_a_strip_shows_low_restored_and_true_beside_each_other():
    low = torch.tensor([[[10] * 3, [20] * 3], [[30] * 3, [40] * 3]], dtype=torch.uint8)[None]
    high = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)
    shown = strip(low, torch.full((1, 3, 8, 8), 0.5), high)
    assert shown.shape == (8, 24, 3)
    assert shown[:4, :4].unique().tolist() == [10]
    assert shown[4:, 4:8].unique().tolist() == [40]
    assert shown[:, 8:16].unique().tolist() == [128]
    assert torch.equal(shown[:, 16:], high[0])
    assert (
        strip(*(x.repeat(9, 1, 1, 1) for x in (low, torch.rand(1, 3, 8, 8), high))).shape[0] == 64
    )


def test_columns_stand_side_by_side_and_are_cut():
    a, b = torch.full((3, 3, 4, 4), 2.0), torch.rand(3, 3, 4, 4)
    shown = side_by_side(a, b, most=2)
    assert (shown.shape, shown.dtype) == ((8, 8, 3), torch.uint8)
    assert (shown[:, :4] == 255).all()
    assert torch.equal(shown[4:, 4:], (b[1] * 255).round().byte().movedim(0, -1))
