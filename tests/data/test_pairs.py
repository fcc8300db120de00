import numpy as np
import pytest

from fg_ssl_zoo.data import pairs
from fg_ssl_zoo.data.pairs import (
    PAIRS,
    coarse_dropout,
    cropped_region,
    gamma,
    liveliest_window,
    patch_swap,
    power_law,
    tile_shuffle,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(1, 255, (128, 160, 3), dtype=np.uint8)


def rng(seed=0):
    return np.random.default_rng(seed)


def pixels(image):
    return sorted(map(tuple, image.reshape(-1, 3)))


@pytest.mark.parametrize("name", PAIRS)
def test_an_edit_keeps_the_shape_and_its_input_and_follows_its_seed(name, image):
    before = image.copy()
    for edit in filter(None, (PAIRS[name].first, PAIRS[name].second)):
        first, second, other = edit(image, rng()), edit(image, rng()), edit(image, rng(1))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()
        assert all(0 <= a - b < 16 for a, b in zip(image.shape, first.shape, strict=True))
        assert first.dtype == np.uint8
        np.testing.assert_array_equal(image, before)


def test_gamma_keeps_black_and_white_and_is_the_identity_at_one(image):
    np.testing.assert_array_equal(power_law(image, 1.0), image)
    ends = np.array([[[0, 255, 0]]], np.uint8)
    for seed in range(5):
        np.testing.assert_array_equal(gamma(ends, rng(seed)), ends)


def test_holes_are_black_squares_of_the_papers_sizes(image):
    np.testing.assert_array_equal(coarse_dropout(image, rng(), holes=(0, 0)), image)
    one = coarse_dropout(image, rng(), holes=(1, 1))
    black = (one == 0).all(axis=-1)
    side = round(black.sum() ** 0.5)
    assert black.sum() == side * side
    assert round(10 / 4) <= side <= round(25 / 4)  # 128 px is a quarter of 512
    np.testing.assert_array_equal(one[~black], image[~black])


def test_the_liveliest_window_is_where_the_edges_are():
    image = np.full((100, 100, 3), 128, np.uint8)
    image[60:80, 20:40] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    x, y = liveliest_window(image, 24, 24)
    assert 16 <= x <= 20
    assert 56 <= y <= 60


def test_a_region_is_shown_in_the_middle_of_a_white_canvas(image):
    shown = cropped_region(image, rng(), side=(256, 256))  # half of the shorter side
    assert (shown[32:96, 48:112] != 255).all()
    assert (shown[:32] == 255).all()
    assert (shown[:, 112:] == 255).all()
    np.testing.assert_array_equal(
        cropped_region(image[:, :128], rng(), side=(512, 512)), image[:, :128]
    )


def test_a_patch_swap_keeps_all_pixels(image):
    for seed in range(10):
        edited = patch_swap(image, rng(seed))
        assert pixels(edited) == pixels(image)
        np.testing.assert_array_equal(patch_swap(edited, rng(seed)), image)  # its own inverse


@pytest.mark.parametrize("shuffle", ["uniform", "dcl", "dcl_release", "pmg"])
def test_a_tile_shuffle_keeps_all_pixels_and_one_tile_is_the_picture(shuffle, image):
    assert pixels(tile_shuffle(image, rng(), 4, shuffle)) == pixels(image)
    np.testing.assert_array_equal(tile_shuffle(image, rng(), 1, shuffle), image)


def test_a_picture_smaller_than_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"an image of 9 x 3 pixels has no 4 x 4 tiles"):
        tile_shuffle(np.zeros((3, 9, 3), np.uint8), rng(), grid=4)


def test_names_of_pairs_are_those_a_recipe_may_hold():
    assert tuple(PAIRS) == pairs.PairName.__args__
