import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.ops.distributed import rank, world_size
from fg_ssl_zoo.ops.region_contrast import (
    num_compared,
    pool_regions,
    region_contrast,
    sample_regions,
    vote_cells,
)
from tests.runs import launch

B, S, D = 4, 3, 6


def loss_of_the_paper(p, t, ids, temperature, weights=None, local_negatives=True):
    """DetCon, eq. 3, with the weights of its official code, one prediction at a time."""
    p, t = (x / x.norm(dim=-1, keepdim=True) for x in (p, t))
    _, b, s, _ = p.shape
    total = torch.zeros((), dtype=p.dtype)
    for v in (0, 1):
        u = 1 - v
        for n in range(b):
            for i in range(s):
                name, logits, positives = ids[v, n, i], [], []
                for view in (u, v):
                    for m in range(b):
                        for j in range(s):
                            same = m == n and ids[view, m, j] == name
                            if m == n and (view == v or not same) and not local_negatives:
                                continue
                            if view == v and same:
                                continue
                            if view == u and same:
                                positives.append(len(logits))
                            logits.append(p[v, n, i] @ t[view, m, j] / temperature)
                if positives:
                    log_p = torch.log_softmax(torch.stack(logits), dim=0)
                    duplicates = sum(int(other == name) for other in ids[v, n])
                    term = -log_p[positives].mean() / duplicates
                    total = total + term * (1 if weights is None else weights[n])
    return total / (b * s)


def vectors(b=B, s=S, seed=0):
    generator = torch.manual_seed(seed)
    return torch.randn(2, 2, b, s, D, dtype=torch.float64, generator=generator).unbind()


def distinct(b=B, s=S):
    return torch.arange(s).expand(2, b, s)


IDS = torch.tensor(
    [[[0, 1, 2], [0, 0, 1], [5, 5, 5], [1, 2, 3]], [[0, 1, 2], [1, 0, 1], [5, 5, 5], [4, 5, 6]]]
)
"""Distinct, partly doubled, all alike, and without a common region."""


@pytest.mark.parametrize("local_negatives", [True, False])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 0.0, 1.0]).double()])
def test_the_loss_and_its_gradient_equal_the_loops_of_the_paper(local_negatives, weights):
    p, t = vectors()
    p.requires_grad_()
    how = {"weights": weights, "local_negatives": local_negatives}
    loss, expected = (
        region_contrast(p, t, IDS, 0.3, **how),
        loss_of_the_paper(p, t, IDS, 0.3, **how),
    )
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(x, p)[0] for x in (loss, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize(("b", "s"), [(4, 3), (2, 16), (1, 2)])
def test_equal_vectors_give_twice_the_logarithm_of_2_b_s_minus_1(b, s, temperature):
    same = torch.ones(2, b, s, D)
    ids = distinct(b, s)
    loss = region_contrast(same, same, ids, temperature)
    assert loss.item() == pytest.approx(2 * math.log(2 * b * s - 1), rel=1e-5)
    apart = region_contrast(same, same, ids, temperature, local_negatives=False)
    assert apart.item() == pytest.approx(2 * math.log(2 * (b - 1) * s + 1), rel=1e-5, abs=1e-6)


def test_a_region_drawn_twice_leaves_out_its_twins_and_counts_once():
    """Four draws of two regions: half as many terms, each without the two of its own view."""
    same = torch.ones(2, 1, 4, D)
    ids = torch.tensor([7, 7, 9, 9]).expand(2, 1, 4)
    assert region_contrast(same, same, ids, 0.1).item() == pytest.approx(math.log(6), rel=1e-5)


@pytest.mark.parametrize("local_negatives", [True, False])
def test_pictures_without_a_common_region_count_nothing_and_give_no_nan(local_negatives):
    p, t = (x.float() for x in vectors(b=1))
    p.requires_grad_()
    ids = torch.stack([torch.zeros(1, S, dtype=torch.int64), torch.ones(1, S, dtype=torch.int64)])
    loss = region_contrast(p, t, ids, 0.1, local_negatives=local_negatives)
    loss.backward()
    assert loss == 0
    assert (p.grad == 0).all()


def test_views_and_scales_of_the_vectors_do_not_matter():
    p, t = vectors()
    loss = region_contrast(p, t, IDS, 0.2)
    torch.testing.assert_close(region_contrast(3 * p, t / 5, IDS, 0.2), loss)
    swapped = region_contrast(p.flip(0), t.flip(0), IDS.flip(0), 0.2)
    torch.testing.assert_close(swapped, loss)


def test_half_precision_around_it_does_not_coarsen_the_loss():
    p, t = (x.float() for x in vectors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = region_contrast(p, t, IDS, 0.1)
        half = region_contrast(p.bfloat16(), t.bfloat16(), IDS, 0.1)
    torch.testing.assert_close(loss, region_contrast(p, t, IDS, 0.1))
    assert half.dtype == torch.float32


def loss_of_a_share(path):
    Accelerator(cpu=True)
    mine = slice(rank() * 2, rank() * 2 + 2)
    p, t = (x[:, mine].clone() for x in vectors())
    p.requires_grad_()
    loss = region_contrast(p, t, IDS[:, mine], 0.2)
    (gradient,) = torch.autograd.grad(loss, p)
    alone = region_contrast(p, t, IDS[:, mine], 0.2, gather_targets=False).detach()
    torch.save([loss.detach(), gradient / world_size(), alone], path / f"{rank()}.pt")


def test_two_processes_give_the_loss_and_the_gradient_of_one(tmp_path):
    p, t = vectors()
    p.requires_grad_()
    loss = region_contrast(p, t, IDS, 0.2)
    (gradient,) = torch.autograd.grad(loss, p)
    launch(loss_of_a_share, tmp_path)
    shares = [torch.load(tmp_path / f"{r}.pt") for r in (0, 1)]
    torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([s[1] for s in shares], dim=1), gradient)
    for r, (_, _, alone) in enumerate(shares):  # as if there were no other process
        mine = slice(2 * r, 2 * r + 2)
        wanted = region_contrast(p[:, mine], t[:, mine], IDS[:, mine], 0.2).detach()
        torch.testing.assert_close(alone, wanted)


# --------------------------------------------------------------------------- pooling


def test_pooling_equals_the_loops():
    generator = torch.manual_seed(0)
    features = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=generator)
    masks = torch.randint(0, 4, (2, 3, 4), dtype=torch.uint8, generator=generator)
    ids = torch.tensor([[0, 1, 1, 200], [2, 3, 0, 1]])
    pooled = pool_regions(features, masks, ids)
    for b in range(2):
        for s in range(4):
            found = [
                features[b, :, y, x] for y in range(3) for x in range(4)
                if masks[b, y, x] == ids[b, s]
            ]  # fmt: skip
            expected = torch.stack(found).mean(dim=0) if found else torch.zeros(5).double()
            torch.testing.assert_close(pooled[b, s], expected)
    assert (pooled[0, 3] == 0).all()  # region 200 has no cell


def test_pooling_a_constant_map_returns_the_constant():
    pooled = pool_regions(
        torch.full((1, 2, 4, 4), 3.0), torch.arange(16).view(1, 4, 4) % 3, torch.arange(3)[None]
    )
    torch.testing.assert_close(pooled, torch.full((1, 3, 2), 3.0))


@pytest.mark.parametrize(("side", "cells"), [(12, 3), (10, 3), (4, 4)])
def test_a_cell_takes_its_commonest_region(side, cells):
    mask = np.random.default_rng(0).integers(0, 3, (side, side), dtype=np.uint8)
    mask[0, 0] = 255
    expected = np.zeros((cells, cells), np.uint8)
    for i in range(cells):
        for j in range(cells):
            votes = [
                mask[y, x] for y in range(side) for x in range(side)
                if (y * cells // side, x * cells // side) == (i, j)
            ]  # fmt: skip
            expected[i, j] = max(range(256), key=lambda r: (votes.count(r), -r))  # ties: the lower
    np.testing.assert_array_equal(vote_cells(mask, cells), expected)


# --------------------------------------------------------------------------- sampling


def test_only_regions_that_both_views_show_are_drawn():
    """Defect 7: ten draws of a crop with two regions used to reach absent ones."""
    first = np.array([[3, 3], [8, 3]], np.uint8)
    second = np.array([[8, 8], [3, 5]], np.uint8)
    for seed in range(50):
        ids = sample_regions(first, second, 10, np.random.default_rng(seed))
        assert ids.shape == (2, 10)
        assert set(ids.ravel()) <= {3, 8}
        np.testing.assert_array_equal(ids[0], ids[1])


def test_draws_are_uniform_over_regions_however_large():
    first = np.zeros((10, 10), np.uint8)
    first[0, :3] = 1, 2, 3
    ids = sample_regions(first, first, 4000, np.random.default_rng(0))
    assert np.abs(np.bincount(ids[0]) / 4000 - 0.25).max() < 0.03


def test_views_without_a_common_region_draw_their_own_and_later_draws_stay():
    first, second = np.full((2, 2), 4, np.uint8), np.array([[5, 6], [5, 6]], np.uint8)
    generator, other = np.random.default_rng(1), np.random.default_rng(1)
    ids = sample_regions(first, second, 12, generator)
    sample_regions(first, first, 12, other)
    assert set(ids[0]) == {4}
    assert set(ids[1]) == {5, 6}
    assert generator.random() == other.random()


def test_regions_are_counted_once_and_only_where_both_views_show_them():
    ids = torch.tensor([[[0, 0, 1], [2, 2, 2], [3, 4, 5]], [[0, 1, 0], [6, 6, 6], [5, 4, 3]]])
    assert num_compared(ids, torch.ones(3)) == pytest.approx((2 + 0 + 3) / 3)
    assert num_compared(ids, torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(2 / 3)
