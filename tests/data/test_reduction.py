"""Images are decoded only so far as no crop is enlarged, and what is seen stays the same."""

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.data.decode import decode
from fg_ssl_zoo.data.folders import FolderImages
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.reduction import CropRange, Reduction
from fg_ssl_zoo.data.views import (
    Augmentation,
    MultiCrop,
    RandomViews,
    augmentations_of,
    draw_view,
    render,
)


def smooth(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg(image):
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    return encoded.tobytes()


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (2.0, 3.0), (0.2, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("area", [0.08, 0.6, 1.0])
def test_no_crop_of_a_reduced_picture_is_smaller_than_its_view(area, ratio):
    how, size = Augmentation(crop_scale=(area, 1.0), crop_ratio=ratio), 32
    reduction = Reduction([CropRange(size, area, *ratio)])
    for width, height in itertools.product((40, 150, 333, 1000, 2111), repeat=2):
        factor = reduction(width, height)
        if factor == 1:
            continue
        small = -(-height // factor), -(-width // factor)
        for seed in range(40):
            view = draw_view(np.random.default_rng(seed), *small, size, how)
            assert min(view.box[2:]) >= size


def test_the_factor_at_known_points():
    whole = Reduction([CropRange(100, 1.0, 1.0, 1.0)])
    assert [whole(side, 1000) for side in (199, 200, 399, 400, 799, 800)] == [1, 2, 2, 4, 4, 8]
    part = Reduction([CropRange(100, 0.25, 1.0, 1.0)])  # half of the side
    assert [part(side, side) for side in (399, 400, 800, 1600, 9999)] == [1, 2, 4, 8, 8]
    both = Reduction([CropRange(100, 1.0, 1.0, 1.0), CropRange(50, 0.01, 1.0, 1.0)])
    assert both(1000, 1000) == 2  # the second needs 50 of 100 pixels


def test_a_jpeg_is_decoded_at_a_part_of_its_sides_and_other_files_whole():
    image, odd = smooth(1600, 1200), smooth(203, 150)
    for factor in (1, 2, 4, 8):
        small = decode(jpeg(image), "x.jpg", lambda width, height, factor=factor: factor)
        means = cv2.resize(image, small.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(means.astype(int) - small).mean() < 1
        small = decode(jpeg(odd), "x.jpg", lambda width, height, factor=factor: factor)
        assert small.shape == (-(-150 // factor), -(-203 // factor), 3)
    _, png = cv2.imencode(".png", image)
    assert decode(png.tobytes(), "x.png", lambda *_: 8).shape == image.shape
    assert np.array_equal(decode(jpeg(image), "x.jpg", lambda *_: 1), decode(jpeg(image), "x.jpg"))


@pytest.fixture
def photos(tmp_path):
    """Two large JPEGs and a small one."""
    for number, size in enumerate([(1600, 1200), (1200, 1600), (160, 120)]):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(smooth(*size, seed=number)))
    return FolderImages(tmp_path, [f"{number}.jpg" for number in range(3)], name="photos")


PLAIN = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0, "flip": 0.0, "solarize": 0.0}


@pytest.mark.parametrize("preset", ["simclr", "fine_grained"])
def test_a_crop_of_a_reduced_picture_is_nearer_to_area_means_than_that_of_the_whole_one(
    photos, preset
):
    views = RandomViews(64, augmentations_of(preset, PLAIN), (None, None))
    assert views.reduction is not None
    of_small, of_whole = [], []
    for index in range(2):
        whole = photos[index]["image"]
        small = photos.for_training(index, views.reduction)["image"]
        factor = len(whole) // len(small)
        assert factor == {"simclr": 4, "fine_grained": 8}[preset]
        for seed in range(5):
            how = views.augmentations[0]
            view = draw_view(np.random.default_rng(seed), *small.shape[:2], 64, how)
            x, y, w, h = (factor * side for side in view.box)
            area = cv2.resize(
                whole[y : y + h, x : x + w], (64, 64), interpolation=cv2.INTER_AREA
            ).astype(int)
            same = replace(view, box=(x, y, w, h))
            of_small.append(np.abs(render(small, view, 64) - area).mean())
            of_whole.append(np.abs(render(whole, same, 64) - area).mean())
    assert np.mean(of_small) <= np.mean(of_whole)


def test_the_loader_gives_views_reduced_pictures_and_small_ones_whole(photos):
    views = RandomViews(64, augmentations_of("simclr"), (None, None))
    seen = ViewDataset(photos, views, seed=3)
    for index in range(3):
        generator = np.random.default_rng([3, 0, index])
        reduced = views(photos.for_training(index, views.reduction), generator)
        assert np.array_equal(seen[0, index]["images"], reduced["images"])
    whole = views(photos[2], np.random.default_rng([3, 0, 2]))
    assert np.array_equal(seen[0, 2]["images"], whole["images"])


def test_an_orientation_in_the_file_is_applied_to_the_reduced_picture(photos, tmp_path):
    from PIL import Image

    with Image.open(tmp_path / "0.jpg") as image:
        exif = image.getexif()
        exif[0x0112] = 6  # turned by a right angle
        image.save(tmp_path / "0.jpg", exif=exif, quality=95)
    whole = photos[0]["image"]
    small = photos.for_training(0, lambda *_: 4)["image"]
    assert whole.shape == (1600, 1200, 3)
    assert small.shape == (400, 300, 3)
    means = cv2.resize(whole, (300, 400), interpolation=cv2.INTER_AREA)
    assert np.abs(means.astype(int) - small).mean() < 4


def test_views_that_edit_the_whole_picture_get_it_whole():
    def edit(image, generator):
        return image

    pair = augmentations_of("simclr")
    assert RandomViews(64, pair, (None, edit)).reduction is None
    whole, local = RandomViews(64, pair, (None, None)), RandomViews(32, pair, (None, None))
    assert RandomViews(64, pair, (None, edit), after=True).reduction == whole.reduction
    assert MultiCrop(whole).reduction == whole.reduction
    both = MultiCrop(whole, local).reduction
    assert both is not None
    assert len(both.crops) == 4
    assert MultiCrop(RandomViews(64, pair, (edit, None)), local).reduction is None


def test_pictures_with_noted_parts_stay_whole(photos):
    class Somewhere:
        names = ("beak",)

        def of(self, index, height, width):
            assert (height, width) == (1200, 1600)
            return np.zeros((1, 3), np.float32)

    photos.points = Somewhere()
    assert photos.for_training(0, lambda *_: 8)["image"].shape == (1200, 1600, 3)


def test_a_view_of_a_reduced_picture_has_the_same_draws():
    how = augmentations_of("simclr")[0]
    large, small = (draw_view(np.random.default_rng(1), *size, 64, how) for size in
                    ((1200, 1600), (600, 800)))  # fmt: skip
    assert np.array_equal(large.matrix, small.matrix)
    assert (large.flip, large.sigma, large.solarize) == (small.flip, small.sigma, small.solarize)
    assert np.allclose(large.box, 2 * np.array(small.box), atol=4)
    assert render(smooth(800, 600), small, 64).shape == (64, 64, 3)
