import numpy as np
import pytest

from fg_ssl_zoo.ops.permutations import (
    SHUFFLES,
    dcl,
    dcl_release,
    join_tiles,
    maximal_hamming,
    pmg,
    split_tiles,
    stored_permutations,
)


def draws(shuffle, n, count=3000):
    generator = np.random.default_rng(0)
    return np.stack([shuffle(generator, n) for _ in range(count)])


def columns_moved(orders, n):
    return abs(orders % n - np.arange(n * n) % n)


def smallest_distance(orders: np.ndarray) -> int:
    """The smallest number of places in which two of the permutations differ."""
    apart = (orders[:, None] != orders[None]).sum(axis=-1)
    return int(apart[~np.eye(len(orders), dtype=bool)].min())


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_every_shuffle_is_a_permutation_that_its_seed_decides(name, n):
    first, second = (SHUFFLES[name](np.random.default_rng(4), n) for _ in range(2))
    assert sorted(first) == list(range(n * n))
    np.testing.assert_array_equal(first, second)


def test_pmg_is_one_cycle_through_all_tiles():
    for order in draws(pmg, 3, count=50):
        seen, at = set(), 0
        while at not in seen:
            seen.add(at)
            at = int(order[at])
        assert len(seen) == 9


def test_dcl_moves_no_tile_by_twice_its_range():
    moved = columns_moved(draws(dcl, 7), 7)
    assert moved.max() == 3
    assert moved.mean() == pytest.approx(0.66, abs=0.01)  # by simulation of the definition
    assert (moved == 0).mean() == pytest.approx(0.47, abs=0.01)


def test_the_release_of_dcl_carries_tiles_all_the_way():
    orders = draws(dcl_release, 7)
    moved = columns_moved(orders, 7)
    assert moved.max() == 6
    assert moved.mean() == pytest.approx(0.86, abs=0.01)
    assert (moved > 1).mean() == pytest.approx(0.107, abs=0.005)
    assert (orders == np.arange(49)).mean() == pytest.approx(0.104, abs=0.005)


def test_stored_permutations_are_far_apart():
    for count, distance in ((10, 8), (64, 7), (200, 6), (1000, 5)):
        orders = stored_permutations(count)
        assert orders.shape == (count, 9)
        assert (np.sort(orders, axis=1) == np.arange(9)).all()
        assert smallest_distance(orders) == distance
    with pytest.raises(ValueError, match=r"num_permutations: 1001 is not between 2 and 1000"):
        stored_permutations(1001)


def test_the_greedy_choice_is_the_farthest_of_all():
    orders = maximal_hamming(4, 4, seed=1)
    assert smallest_distance(orders) == 4  # a Latin square, which greedy finds for four
    assert smallest_distance(maximal_hamming(4, 24)) == 2  # all permutations there are


def test_tiles_come_apart_and_together():
    image = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    tiles = split_tiles(image, 3)
    assert tiles.shape == (9, 4, 6, 3)
    np.testing.assert_array_equal(tiles[1], image[:4, 6:12])
    np.testing.assert_array_equal(join_tiles(tiles), image)


@pytest.mark.parametrize(("side", "fitting"), [(97, 96), (2, 3), (98, 99)])
def test_a_side_without_equal_tiles_names_the_nearest(side, fitting):
    with pytest.raises(ValueError, match=rf"{side} pixels has no 3 equal tiles; use {fitting}"):
        split_tiles(np.zeros((side, side, 3), np.uint8), 3)
