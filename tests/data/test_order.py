"""Orders with blocks and weights: what an epoch holds, and that it is a function of its place."""

import numpy as np
import pytest

from fg_ssl_zoo.data.combine import Subset
from fg_ssl_zoo.data.order import LANES, Group, Order, Share, groups_of, order_of


def epochs(order, count):
    """(pass, index) of so many epochs."""
    return [key for step in range(count * order.steps_per_epoch) for key in order(step)]


def blocks(*sizes, buffer):
    return Group(sum(sizes), blocks=np.array(sizes), buffer=buffer)


def test_one_group_is_a_permutation_of_numpy():
    expected = np.random.default_rng([5, 2]).permutation(30)
    order = Order(30, 30, 5)
    assert order(2) == [(2, int(index)) for index in expected]
    assert Order(30, 30, 5, (blocks(10, 20, buffer=30),))(2) == order(2)  # a buffer for all


@pytest.mark.parametrize(("batch_size", "buffer"), [(7, 5), (32, 5), (16, 1), (1, 40)])
def test_blocks_give_every_picture_once_an_epoch(batch_size, buffer):
    group = blocks(5, 0, 40, 3, 60, 12, buffer=buffer)
    order = Order(120, batch_size, 0, (group,))
    drawn = epochs(order, 2)
    assert order.steps_per_epoch == 120 // batch_size
    assert len(set(drawn)) == len(drawn)
    if 120 % batch_size == 0:
        assert sorted(index for epoch, index in drawn if epoch == 1) == list(range(120))
    assert drawn[: len(drawn) // 2] != drawn[len(drawn) // 2 :]


@pytest.mark.parametrize("buffer", [10, 256])
def test_no_picture_of_a_single_block_is_always_dropped(buffer):
    order = Order(1000, 64, 0, (blocks(1000, buffer=buffer),))  # 40 of 1000 fill no batch
    read = np.bincount([index for _, index in epochs(order, 60)], minlength=1000)
    assert read.min() >= 50  # expected: 57.6


def test_a_lane_reads_few_blocks_at_a_time_and_all_in_turn():
    sizes = [100] * 64
    order = Order(6400, 32, 0, (blocks(*sizes, buffer=50),))
    each = 32 // LANES
    for lane in range(LANES):
        read = [
            index // 100
            for step in range(order.steps_per_epoch)
            for _, index in order(step)[lane * each : (lane + 1) * each]
        ]
        assert len(set(read)) == 64 // LANES
        for start in range(0, len(read) - 50, 50):
            assert len(set(read[start : start + 50])) <= 3


def test_processes_read_lanes_of_their_own():
    order = Order(6400, 32, 0, (blocks(*[100] * 64, buffer=50),))
    steps = range(order.steps_per_epoch)
    read = [
        {index // 100 for batch in Share(order, steps, rank, 4, 1) for _, index in batch}
        for rank in range(4)
    ]
    assert [len(found) for found in read] == [16] * 4
    assert len(set.union(*read)) == 64


def test_weights_are_how_often_a_picture_is_read_per_epoch():
    order = Order(40, 5, 3, (Group(10, weight=2), Group(10, weight=0.5), Group(20)))
    assert (order.per_epoch, order.steps_per_epoch) == (45, 9)
    drawn = epochs(order, 4)
    assert len(set(drawn)) == len(drawn)
    times = np.bincount([index for _, index in drawn], minlength=40)
    np.testing.assert_array_equal(times, [8] * 10 + [2] * 10 + [4] * 20)
    first = [index for _, index in drawn[:45]]
    assert np.bincount(first, minlength=40)[:10].tolist() == [2] * 10
    assert sum(10 <= index < 20 for index in first) == 5
    assert drawn[:45] != sorted(drawn[:45])
    again = Order(40, 5, 3, (Group(10, weight=2), Group(10, weight=0.5), Group(20)))
    assert again(30) == drawn[150:155]  # without the steps before it


def test_a_subset_keeps_weights_and_blocks(birds):
    class Weighted:
        name, classes, labels = "x", [], None
        groups = [Group(6, weight=3), blocks(4, 2, 4, buffer=2)]  # noqa: RUF012

        def __len__(self):
            return 16

        def __getitem__(self, index):
            return birds[index]

    some = Subset(Weighted(), np.array([0, 5, 6, 11, 12, 13]))
    found = groups_of(some)
    assert [(g.count, g.weight) for g in found] == [(2, 3), (4, 1)]
    assert found[1].blocks.tolist() == [1, 1, 2]
    assert len(groups_of(Subset(Weighted(), np.array([3, 1])))) == 1
    assert order_of(birds, 4, 0)(3) == Order(16, 4, 0)(3)
