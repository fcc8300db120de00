import math

import pytest
import torch
from torch import Tensor

from fg_ssl_zoo.ops.contrastive import nt_xent


def double_sum(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Equation 1 of SimCLR with loops, averaged over all 2n anchors."""
    z = [v / v.norm() for v in [*z0, *z1]]
    n, total = len(z0), z0.new_zeros(())
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(torch.exp(z[i] @ z[k] / temperature) for k in range(2 * n) if k != i)
        total = total - torch.log(torch.exp(z[i] @ z[partner] / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_nt_xent_equals_the_double_sum_of_the_paper(temperature):
    z0, z1 = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.manual_seed(0))
    torch.testing.assert_close(nt_xent(z0, z1, temperature), double_sum(z0, z1, temperature))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("n", [2, 64])
def test_equal_projections_give_ln_of_all_other_views(n, temperature):
    z = torch.ones(n, 3)
    assert float(nt_xent(z, z, temperature)) == pytest.approx(math.log(2 * n - 1), abs=1e-5)


def test_a_common_rotation_and_any_scale_change_nothing():
    z0, z1 = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    turned = nt_xent(3 * z0 @ rotation, 0.5 * z1 @ rotation, 0.3)
    torch.testing.assert_close(turned, nt_xent(z0, z1, 0.3))


def test_swapping_the_views_changes_nothing():
    z0, z1 = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.manual_seed(2))
    torch.testing.assert_close(nt_xent(z0, z1, 0.3), nt_xent(z1, z0, 0.3))


def test_half_precision_projections_are_compared_in_float32():
    z0, z1 = torch.randn(2, 6, 4, generator=torch.manual_seed(3)).bfloat16()
    loss = nt_xent(z0, z1, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, nt_xent(z0.float(), z1.float(), 0.1))
