import math

import pytest
import torch

from fg_ssl_zoo.ops.similarity import cross_prediction, mean_cosine, spread, unit


def test_mean_cosine_equals_the_loop_and_ignores_scale():
    x, y = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.manual_seed(0))
    cosines = [(a @ b) / (a.norm() * b.norm()) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(mean_cosine(x, y), sum(cosines) / 5)
    torch.testing.assert_close(mean_cosine(3 * x, 0.1 * y), mean_cosine(x, y))
    torch.testing.assert_close(mean_cosine(y, x), mean_cosine(x, y))


def test_equal_opposite_and_orthogonal_vectors_have_cosines_1_minus_1_and_0():
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    turned = torch.stack([-x[:, 1], x[:, 0], -x[:, 3], x[:, 2]], dim=1)
    found = [float(mean_cosine(x, y)) for y in (x, -x, turned)]
    assert found == pytest.approx([1, -1, 0], abs=1e-12)


def test_each_view_predicts_the_other_view_which_is_a_constant():
    """SimSiam, eq. 4, with loops."""
    p, z = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.manual_seed(3))
    p, z = p.requires_grad_(), z.requires_grad_()
    loss = cross_prediction(p, z)
    others = torch.cat([z[3:], z[:3]]).detach()
    expected = [-(a @ b) / (a.norm() * b.norm()) for a, b in zip(p, others, strict=True)]
    torch.testing.assert_close(loss, sum(expected) / 6)
    loss.backward()
    assert p.grad.abs().sum() > 0
    assert z.grad is None
    assert float(cross_prediction(others, z).detach()) == pytest.approx(-1, abs=1e-12)


def test_half_precision_becomes_float32_and_double_stays():
    for given, seen in (("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")):
        x = torch.randn(3, 4).to(getattr(torch, given))
        assert unit(x).dtype == getattr(torch, seen)
        assert mean_cosine(x, x).dtype == getattr(torch, seen)


def test_the_spread_is_that_of_the_sphere_or_nothing():
    """SimSiam, section 4.1."""
    z = torch.randn(4000, 64, generator=torch.manual_seed(2))
    assert float(spread(z)) == pytest.approx(1 / math.sqrt(64), rel=0.01)
    assert float(spread(5 * z)) == pytest.approx(float(spread(z)))
    assert float(spread(z[:1].expand(8, 64))) == pytest.approx(0, abs=1e-6)
    assert float(spread(z[:1])) == 0
    assert not spread(z.requires_grad_()).requires_grad
