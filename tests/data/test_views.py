import colorsys
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import transforms

from fg_ssl_zoo.config import RecipeError
from fg_ssl_zoo.data.pairs import gamma, power_law
from fg_ssl_zoo.data.views import (
    LUMA,
    PRESETS,
    RGB,
    YIQ,
    Augmentation,
    RandomViews,
    View,
    _colour_matrix,
    augmentations_of,
    crop_resize,
    draw_view,
    render,
    render_mask,
)

PLAIN = Augmentation(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draw(how: Augmentation, seed: int = 0, height: int = 64, width: int = 64) -> View:
    return draw_view(np.random.default_rng(seed), height, width, 64, how)


def with_only(**changes: Any) -> Augmentation:
    return Augmentation(**{**vars(PLAIN), **changes})


def test_a_view_without_changes_is_the_picture():
    image = noise(64, 64)
    np.testing.assert_array_equal(render(image, draw(PLAIN), 64), image)


def test_the_matrix_equals_one_step_after_another():
    how = with_only(jitter=1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    image = np.full((64, 64, 3), (120, 100, 90), np.uint8) + noise(64, 64) // 16
    view = draw(how, seed=3)
    # The same draws, applied as brightness, contrast to the mean grey, saturation and hue in YIQ.
    u = np.random.default_rng(3).random(16)
    brightness, contrast, saturation = 1 + 0.4 * (2 * u[5:8] - 1)
    turn = 0.1 * (2 * u[8] - 1) * 2 * np.pi
    pixels = image.astype(float) * brightness
    grey = (pixels @ LUMA).mean()
    pixels = grey + (pixels - grey) * contrast
    to_yiq = np.array(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    yiq = pixels @ to_yiq.T
    chroma = (yiq[..., 1] + 1j * yiq[..., 2]) * saturation * np.exp(1j * turn)
    yiq[..., 1], yiq[..., 2] = chroma.real, chroma.imag
    expected = (yiq @ np.linalg.inv(to_yiq).T).clip(0, 255)
    assert np.abs(render(image, view, 64) - expected).max() <= 1.0


def test_grayscale_leaves_no_colour_and_keeps_the_luma():
    image = noise(64, 64)
    seen = render(image, draw(with_only(grayscale=1)), 64)
    assert (seen.max(axis=2) - seen.min(axis=2)).max() <= 1
    assert np.abs(seen[..., 0] - image @ LUMA).max() <= 1


def test_a_small_hue_turn_moves_hue_and_keeps_grey():
    how = with_only(jitter=1, brightness=0, contrast=0, saturation=0, hue=0.1)
    grey = np.full((64, 64, 3), 128, np.uint8)
    assert np.abs(render(grey, draw(how), 64).astype(int) - 128).max() <= 1
    red = np.full((64, 64, 3), (200, 60, 60), np.uint8)
    turned = render(red, draw(how, seed=5), 64)[0, 0] / 255
    hue = colorsys.rgb_to_hsv(*turned)[0]
    assert 0.001 < min(hue, 1 - hue) < 0.15


@pytest.mark.parametrize("size", [32, 96, 224])
def test_the_blur_is_scaled_with_the_size_of_the_view(size):
    how = with_only(blur=1, blur_sigma=(2, 2))
    assert draw_view(np.random.default_rng(0), 64, 64, size, how).sigma == 2 * size / 224


@pytest.mark.parametrize("colour", [(200, 40, 10), (10, 40, 200)])
def test_contrast_turns_about_the_luma_of_red_green_blue(colour):
    view = View((0, 0, 8, 8), False, np.eye(3) * 0.5, 0.5, 0.0, False)  # contrast 0.5
    seen = render(np.full((8, 8, 3), colour, np.uint8), view, 8)[0, 0]
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    np.testing.assert_allclose(seen, [luma + (c - luma) * 0.5 for c in colour], atol=1)


def test_every_view_has_its_own_augmentation():
    bright = {"image": np.full((40, 40, 3), 200, np.uint8), "index": 0}
    views = RandomViews(16, (PLAIN, with_only(solarize=1)), (None, None))
    first, second = views(bright, np.random.default_rng(0))["images"]
    assert (first == 200).all()
    assert (second == 55).all()


def test_solarize_inverts_the_bright_half_only():
    image = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, 2)
    seen = render(image, draw(with_only(solarize=1)), 64)
    np.testing.assert_array_equal(seen[image < 128], image[image < 128])
    np.testing.assert_array_equal(seen[image >= 128], 255 - image[image >= 128])


SHAPES = {"square": (160, 160), "wide": (200, 320), "tall": (900, 300), "strip": (40, 400)}


class _Given:
    """Uniform draws in the order in which torchvision asks for them; in float64 and none twice."""

    log, exp = staticmethod(torch.log), staticmethod(torch.exp)

    def __init__(self, tries, place):
        self.draws, self.place = [u for pair in tries for u in pair], list(place)

    def tensor(self, values):
        return torch.tensor(values, dtype=torch.float64)

    def empty(self, _):
        return self

    def uniform_(self, low, high):
        return torch.as_tensor(low + self.draws.pop(0) * (high - low), dtype=torch.float64)

    def randint(self, low, high, size):
        return torch.tensor(int(low + self.place.pop() * (high - low)))  # y is drawn first


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", ["simclr", "fine_grained"])
def test_a_crop_is_that_of_torchvision_given_the_same_draws(shape, preset, monkeypatch):
    how, (height, width) = PRESETS[preset][0], SHAPES[shape]
    picture = torch.empty(3, height, width)
    for seed in range(100):
        u = np.random.default_rng(seed).random(34).tolist()
        tries, place = [(u[0], u[1]), *zip(u[16::2], u[17::2], strict=True)], (u[2], u[3])
        monkeypatch.setattr(transforms, "torch", _Given(tries, place))
        y, x, h, w = transforms.RandomResizedCrop.get_params(
            picture, list(how.crop_scale), list(how.crop_ratio)
        )
        assert draw(how, seed, height, width).box == (x, y, w, h)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", ["simclr", "fine_grained"])
def test_areas_and_ratios_of_crops_are_distributed_as_those_of_torchvision(shape, preset):
    how, (height, width) = PRESETS[preset][0], SHAPES[shape]
    picture = torch.empty(3, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [
            transforms.RandomResizedCrop.get_params(
                picture, list(how.crop_scale), list(how.crop_ratio)
            )
            for _ in range(1000)
        ]
    )[:, [1, 0, 3, 2]]
    ours = np.array([draw(how, seed, height, width).box for seed in range(1000)])
    for quantity in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3]):
        # Two samples of 1,000 of one distribution differ by more than 0.087 once in a thousand.
        assert ks_2samp(quantity(ours), quantity(theirs)).statistic < 0.087


def test_crops_stay_inside_and_keep_area_and_ratio():
    how = with_only(crop_scale=(0.6, 1), crop_ratio=(3 / 4, 4 / 3))
    for seed in range(300):
        x, y, w, h = draw(how, seed, height=120, width=140).box
        assert 0 <= x <= x + w <= 140
        assert 0 <= y <= y + h <= 120
        assert w * h >= 0.59 * 120 * 140  # sides are whole pixels
        assert 0.74 <= w / h <= 1.35


def test_a_strip_is_cut_to_the_nearest_ratio_in_its_middle():
    how = with_only(crop_scale=(0.5, 1), crop_ratio=(3 / 4, 4 / 3))
    assert draw(how, 0, height=30, width=300).box == (130, 0, 40, 30)
    assert draw(how, 0, height=300, width=30).box == (0, 130, 30, 40)


def test_crops_reach_every_corner():
    boxes = [draw(with_only(crop_scale=(0.2, 0.3)), seed, 48, 64).box for seed in range(500)]
    for start, length, side in ((0, 2, 64), (1, 3, 48)):
        assert min(box[start] for box in boxes) == 0
        assert max(box[start] + box[length] for box in boxes) == side


@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_reduced_crop_is_close_to_its_area_mean(size):
    smooth = cv2.GaussianBlur(noise(160, 160), (0, 0), 6)
    expected = cv2.resize(smooth[10:150, 20:150], (size, size), interpolation=cv2.INTER_AREA)
    seen = crop_resize(smooth, (20, 10, 130, 140), size)
    assert np.abs(seen.astype(int) - expected).mean() < 2


def test_masks_move_with_the_picture():
    spot = np.zeros((80, 100), np.uint8)
    spot[30:34, 60:64] = 7
    image = np.repeat(spot[..., None] * 36, 3, axis=2)
    how = with_only(crop_scale=(0.3, 1), flip=0.5)
    for seed in range(40):
        view = draw(how, seed, 80, 100)
        seen, mask = render(image, view, 64), render_mask(spot, view, 64)
        left, top, w, h = view.box
        x, y = (62 - left) / w, (32 - top) / h  # the middle of the spot, in shares of the view
        x = 1 - x if view.flip else x
        if 0.1 < x < 0.9 and 0.1 < y < 0.9:
            row, column = int(y * 64), int(x * 64)
            assert mask[row, column] == 7
            assert seen[row, column, 0] > 150


def test_a_reduced_mask_takes_the_middle_of_every_step_as_the_picture_does():
    columns = np.tile(np.arange(60, dtype=np.uint8), (60, 1))
    view = View((0, 0, 60, 60), False, np.eye(3), 0.0, 0.0, False)
    np.testing.assert_array_equal(render_mask(columns, view, 12)[0], np.arange(2, 60, 5))
    picture = render(np.repeat(columns[..., None], 3, axis=2), view, 12)
    assert np.abs(picture[..., 0].astype(int) - render_mask(columns, view, 12)).max() <= 1


def test_the_views_depend_on_the_generator_alone(birds):
    views = RandomViews(48, augmentations_of("fine_grained"), (None, gamma))
    one, two, other = (views(birds[0], np.random.default_rng(seed))["images"] for seed in (1, 1, 2))
    assert one.shape == (2, 48, 48, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_two_views_of_a_preset_differ(preset, birds):
    views = RandomViews(48, augmentations_of(preset), (None, None))
    first, second = views(birds[1], np.random.default_rng(0))["images"]
    assert (first != second).mean() > 0.5


def test_gamma_one_is_the_identity_and_the_ends_stay():
    image = noise(16, 16)
    np.testing.assert_array_equal(power_law(image, 1.0), image)
    ends = np.array([[[0, 255, 0]]], np.uint8)
    for exponent in (0.5, 2.5):
        np.testing.assert_array_equal(power_law(ends, exponent), ends)
    middle = np.full((1, 1, 3), 64, np.uint8)
    assert power_law(middle, 2.0)[0, 0, 0] == round(255 * (64 / 255) ** 2)


def test_gamma_draws_its_exponent_from_the_papers_range():
    middle = np.full((1, 1, 3), 128, np.uint8)
    generator = np.random.default_rng(0)
    seen = [int(gamma(middle, generator)[0, 0, 0]) for _ in range(500)]
    low, high = 255 * (128 / 255) ** 2.5, 255 * (128 / 255) ** 0.5
    assert low - 1 <= min(seen) < low + 3
    assert high - 3 < max(seen) <= high + 1


def test_a_misspelt_strength_or_preset_names_the_nearest():
    with pytest.raises(
        RecipeError, match=r"augmentation\.grayscal: unknown key; did you mean gray"
    ):
        augmentations_of("simclr", {"grayscal": 0})
    with pytest.raises(ValueError, match=r"preset: unknown .simclar.; did you mean simclr"):
        augmentations_of("simclar")
    with pytest.raises(RecipeError, match=r"augmentation\.flip: should be less than or equal to 1"):
        augmentations_of("simclr", {"flip": 2})
    with pytest.raises(
        RecipeError, match=r"augmentation\.crop_ratio\[0\]: should be greater than 0"
    ):
        augmentations_of("simclr", {"crop_ratio": [0, 1]})


def test_the_colour_matrix_turns_and_scales_the_chroma_plane():
    for saturation, turn in ((1.0, 0.0), (0.0, 1.0), (0.7, 0.3), (1.8, -2.0)):
        c, s = np.cos(turn) * saturation, np.sin(turn) * saturation
        wanted = RGB @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ YIQ
        np.testing.assert_allclose(_colour_matrix(saturation, turn), wanted, atol=1e-12)
