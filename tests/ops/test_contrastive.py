import math

import pytest
import torch
from torch import Tensor

from fg_ssl_zoo.ops.contrastive import info_nce, nt_xent


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


# --------------------------------------------------------------------------- InfoNCE


def info_nce_of_the_paper(queries, keys, negatives, temperature):
    """Equation 1 of MoCo with loops; the queue is of unit length."""
    total = queries.new_zeros(())
    for q, k in zip(queries, keys, strict=True):
        q, k = q / q.norm(), k / k.norm()
        own = torch.exp(q @ k / temperature)
        others = sum(torch.exp(q @ n / temperature) for n in negatives)
        total = total - torch.log(own / (own + others))
    return total / len(queries)


def queue_of(count, width):
    items = torch.randn(count, width, dtype=torch.float64, generator=torch.manual_seed(5))
    return items / items.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_and_its_gradient_equal_the_loops_of_the_paper(temperature):
    queries, keys = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.manual_seed(4))
    queries.requires_grad_()
    loss = info_nce(queries, keys, queue_of(11, 7), temperature)
    expected = info_nce_of_the_paper(queries, keys, queue_of(11, 7), temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, queries)[0] for value in (loss, expected))
    )


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize(("size", "expected"), [(4096, 8.318), (65536, 11.090)])
def test_equal_vectors_give_ln_of_the_queue_and_one(size, expected, temperature):
    one = torch.nn.functional.normalize(torch.ones(2, 3), dim=1)
    loss = float(info_nce(one, one, one[:1].expand(size, 3), temperature))
    assert loss == pytest.approx(math.log(1 + size), abs=1e-4)
    assert loss == pytest.approx(expected, abs=1e-3)


def test_the_order_and_the_scale_of_keys_do_not_matter_to_info_nce():
    queries, keys = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.manual_seed(6))
    loss = info_nce(queries, keys, queue_of(11, 7), 0.2)
    turned = info_nce(3 * queries.flip(0), 0.5 * keys.flip(0), queue_of(11, 7).flip(0), 0.2)
    torch.testing.assert_close(turned, loss)


def test_autocast_does_not_round_the_cosines():
    z0, z1 = torch.randn(2, 6, 16, generator=torch.manual_seed(7))
    negatives = queue_of(32, 16).float()
    plain = nt_xent(z0, z1, 0.05), info_nce(z0, z1, negatives, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        cast = nt_xent(z0, z1, 0.05), info_nce(z0, z1, negatives, 0.05)
    assert cast == plain
