import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fg_ssl_zoo.ops.contrastive import info_nce
from fg_ssl_zoo.ops.gradcam import gradcam, gradient_at, min_max


def a_step(count=3):
    """A map, its mean h, and MoCo's loss of a head on h, in float64."""
    torch.manual_seed(0)
    maps = torch.randn(count, 5, 2, 4, dtype=torch.float64).requires_grad_()
    h = maps.mean((2, 3))
    head = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    keys = torch.randn(8, 4, dtype=torch.float64)[:count]
    queue = F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=1)
    return maps, h, info_nce(head(h), keys, queue, 0.2)


def test_gradcam_equals_the_sum_over_channels_at_every_position():
    maps, gradient = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64)
    found = gradcam(maps, gradient)
    for b in range(3):
        for y in range(4):
            for x in range(6):
                total = sum(maps[b, c, y, x] * gradient[b, c, y, x] for c in range(5))
                torch.testing.assert_close(found[b, y, x], total.clamp_min(0))


def test_behind_a_mean_the_gradient_at_h_tells_that_at_every_position():
    maps, h, loss = a_step()
    at_map, at_h = gradient_at(loss, maps), gradient_at(loss, h)
    torch.testing.assert_close(at_map, (at_h / 8)[:, :, None, None].expand_as(maps))
    closed = gradcam(maps, (at_h / 8)[:, :, None, None])
    torch.testing.assert_close(closed, gradcam(maps, at_map))
    assert closed.max() > 0


def test_the_gradient_of_an_image_is_that_of_its_own_term_whatever_the_batch():
    maps, _, loss = a_step(3)
    alone, _, own = a_step(3)
    (expected,) = torch.autograd.grad(own, alone)
    torch.testing.assert_close(gradient_at(loss, maps), 3 * expected)
    torch.manual_seed(0)
    features = torch.randn(4, 2, requires_grad=True)
    of_four = gradient_at((features**3).sum(1).mean(), features)
    torch.testing.assert_close(of_four, 3 * features.detach() ** 2)
    assert not of_four.requires_grad


def test_the_graph_is_kept_and_no_parameter_gets_a_gradient_on_the_way():
    layer = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    h = layer(x)
    loss = h.square().mean()
    gradient_at(loss, h)
    assert layer.weight.grad is None
    loss.backward()
    torch.testing.assert_close(layer.weight.grad, (2 * h / 8).T @ x)  # 8 numbers in h


def test_min_max_looks_at_one_map_at_a_time_and_knows_no_scale():
    torch.manual_seed(0)
    maps = torch.randn(3, 4, 5, dtype=torch.float64)
    found = min_max(maps)
    for one, its in zip(maps, found, strict=True):
        torch.testing.assert_close(its, (one - one.min()) / (one.max() - one.min()))
    torch.testing.assert_close(min_max(7 * maps + 3), found)
    torch.testing.assert_close(min_max(1e-9 * maps), found)
    assert torch.equal(min_max(maps[1:2]), found[1:2])


@pytest.mark.parametrize("value", [0.0, -3.0, 1e6])
def test_a_constant_map_is_one_everywhere_and_gives_no_gradient(value):
    maps = torch.full((1, 2, 3), value, requires_grad=True)
    found = min_max(maps)
    assert torch.equal(found, torch.ones(1, 2, 3))
    found.sum().backward()
    assert torch.equal(maps.grad, torch.zeros(1, 2, 3))


def test_half_precision_is_stretched_in_single():
    assert min_max(torch.randn(1, 2, 2).bfloat16()).dtype == torch.float32
