import copy

import torch
from torch import nn

from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.layers.frozen import (
    frozen,
    keep_statistics,
    norms_of,
    norms_with_statistics,
    unremembered,
)


def judge():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))


def test_a_judge_passes_gradients_on_and_keeps_none():
    network, images = judge(), torch.randn(5, 3, 6, 6, requires_grad=True)
    before = copy.deepcopy(network.state_dict())
    with frozen(network) as same:
        assert same is network
        out = same(images)
    out.square().sum().backward()
    (expected,) = torch.autograd.grad(copy.deepcopy(network)(images).square().sum(), images)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(images.grad, expected)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    for key, value in network.state_dict().items():  # running statistics and their count too
        assert torch.equal(value, before[key]), key


def test_a_judge_judges_as_in_training_and_is_released_as_it_was():
    network, images = judge(), torch.randn(5, 3, 6, 6)
    network[3].bias.requires_grad_(False)
    for converted in (False, True):
        if converted:
            synchronise(network, torch.device("cpu"))
        with frozen(network) as same:
            judged = same(images)
        twin = copy.deepcopy(network)
        assert torch.equal(judged, twin(images))
        assert network[1].track_running_stats
        assert [p.requires_grad for p in network.parameters()] == [True] * 5 + [False]


def test_what_is_unremembered_learns_as_ever_and_no_norm_counts_it():
    network, images = judge(), torch.randn(5, 3, 6, 6)
    twin = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())
    with unremembered(network) as same:
        out = same(images)
    assert torch.equal(out, twin(images))
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    out.sum().backward()
    twin(images).sum().backward()
    for a, b in zip(network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    network(images)
    assert network[1].num_batches_tracked == 1


def test_norms_with_statistics_are_those_that_have_seen_data():
    network = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm1d(3)), nn.LayerNorm(2))
    assert norms_of(network) == {"0", "1.0"}
    assert norms_with_statistics(network) == frozenset()
    network[0](torch.randn(5, 4, 2, 2))
    assert norms_with_statistics(network) == {"0"}


def test_kept_statistics_are_normalised_with_and_scale_and_shift_learn():
    network = judge()
    network(torch.randn(64, 3, 6, 6))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    keep_statistics(network, norms_of(network))
    images = torch.randn(2, 3, 6, 6) * 5
    twin = copy.deepcopy(network).eval()
    expected, found = twin(images), network(images)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    for own, known in zip(network[1].parameters(), twin[1].parameters(), strict=True):
        torch.testing.assert_close(own.grad, known.grad)
    for key in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(network.state_dict()[key], before[key])
