import copy
import math

import pytest
import torch
from torch import nn

from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.layers.momentum import follow, teacher_of


def student(converted=False):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    return synchronise(network, torch.device("cpu")) if converted else network


def pictures(seed=0):
    return torch.randn(5, 3, 6, 6, generator=torch.manual_seed(seed))


def snapshot(network):
    return copy.deepcopy(network.state_dict())


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key


def test_a_teacher_begins_as_the_student_and_receives_no_gradient():
    network = student()
    teacher = teacher_of(network)
    assert_equal(teacher.state_dict(), network.state_dict())
    ((teacher(pictures()) - network(pictures())) ** 2 + network(pictures())).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("converted", [False, True])
def test_no_forward_pass_moves_the_teachers_statistics_and_it_shares_none(converted):
    """Defect 8: norms of the two that share buffers."""
    network = student()
    teacher = teacher_of(network)
    if converted:
        for one in (network, teacher):
            synchronise(one, torch.device("cpu"))
    before = snapshot(teacher)
    network(pictures())
    teacher(pictures())
    assert_equal(teacher.state_dict(), before)
    assert not torch.equal(network[1].running_mean, before["1.running_mean"])
    shared = {t.data_ptr() for t in network.state_dict().values()}
    assert shared.isdisjoint(t.data_ptr() for t in teacher.state_dict().values())


@pytest.mark.parametrize("converted", [False, True])
def test_in_training_a_teacher_works_with_the_statistics_of_its_batch(converted):
    network = student(converted)
    teacher = teacher_of(network)
    assert torch.equal(teacher(pictures()), network(pictures()))
    teacher.eval()
    network[1].reset_running_stats()
    assert torch.equal(teacher(pictures()), network.eval()(pictures()))


@pytest.mark.parametrize("converted", [False, True])
def test_after_k_steps_the_teacher_is_the_closed_form(converted):
    """Towards a student that stands still: m^k of the start and 1 - m^k of the student."""
    network = student(converted)
    teacher = teacher_of(network)
    begin = snapshot(teacher)
    with torch.no_grad():
        for value in (*network.parameters(), network[1].running_mean, network[1].running_var):
            value += torch.rand_like(value)
    network[1].num_batches_tracked += 7
    for _ in range(5):
        follow(teacher, network, momentum=0.9)
    for key, value in teacher.state_dict().items():
        end = network.state_dict()[key]
        if value.is_floating_point():
            expected = 0.9**5 * begin[key] + (1 - 0.9**5) * end
            torch.testing.assert_close(value, expected, msg=key)
        else:
            assert value == end == 7


def test_towards_a_moving_student_it_is_the_weighted_sum_of_all_it_has_seen():
    network = nn.Linear(3, 2, bias=False).double()
    teacher = teacher_of(network)
    seen, momenta = [network.weight.detach().clone()], [0.5, 0.8, 0.9]
    for momentum in momenta:
        with torch.no_grad():
            network.weight += 1
        seen.append(network.weight.detach().clone())
        follow(teacher, network, momentum)
    shares = [math.prod(momenta)]
    shares += [(1 - m) * math.prod(momenta[i + 1 :]) for i, m in enumerate(momenta)]
    expected = sum(share * weight for share, weight in zip(shares, seen, strict=True))
    torch.testing.assert_close(teacher.weight, expected)


def test_momentum_one_keeps_the_teacher_and_zero_copies_the_student():
    network = student()
    teacher = teacher_of(network)
    with torch.no_grad():
        network[0].weight += 1
    before = snapshot(teacher)
    follow(teacher, network, momentum=1.0)
    assert_equal(teacher.state_dict(), before)
    follow(teacher, network, momentum=0.0)
    assert_equal(teacher.state_dict(), network.state_dict())
