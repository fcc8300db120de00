"""The centre view against timm's evaluation transform and transformers' image processor."""

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform, resolve_data_config

from fg_ssl_zoo.data.fixed_views import CentreView, WholeView, resize
from tests.pictures import photograph

SHAPES = [(480, 640), (640, 480), (131, 97), (97, 97), (40, 70), (20, 500), (112, 112), (3, 2)]


def seen_by(view, image: np.ndarray) -> np.ndarray:
    return view({"image": image, "index": 0}, np.random.default_rng(0))["image"]


def pixels_of_timm(image: np.ndarray, size: int, **config) -> np.ndarray:
    data = resolve_data_config(pretrained_cfg={"input_size": (3, size, size), **config})
    transform = create_transform(**data, is_training=False, normalize=False)
    return transform(Image.fromarray(image)).permute(1, 2, 0).numpy()


def assert_within_rounding(found: np.ndarray, wanted: np.ndarray, stretched: bool = False) -> None:
    """Pillow rounds to 8 bits between rows and columns, and may begin with either if stretched."""
    assert found.shape == wanted.shape
    assert found.flags.c_contiguous
    off = np.abs(found.astype(int) - wanted)
    assert off.max() <= (4 if stretched else 2)
    assert off.mean() < (0.3 if stretched else 0.02)


@pytest.mark.parametrize("size", [48, 96])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_centre_view_has_the_pixels_of_timms_transform(height, width, size):
    image = photograph(height, width)
    found = seen_by(CentreView(size), image)
    assert_within_rounding(found, pixels_of_timm(image, size, crop_pct=0.875))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0, 1.2])
def test_other_peoples_crops_are_those_of_timm(crop_mode, interpolation, crop_pct):
    cfg = {"crop_pct": crop_pct, "interpolation": interpolation, "crop_mode": crop_mode}
    fill = (124, 116, 104) if crop_mode == "border" else (0, 0, 0)  # timm: the mean of the pixels
    for shape in ((131, 97), (60, 200)):
        image = photograph(*shape)
        found = seen_by(CentreView(64, **cfg, fill=fill), image)
        assert_within_rounding(found, pixels_of_timm(image, 64, **cfg), crop_mode == "squash")


def test_a_whole_view_is_stretched_by_the_same_filter():
    image = photograph(120, 90)
    wanted = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC))
    assert_within_rounding(seen_by(WholeView(64), image), wanted, stretched=True)


def test_a_picture_that_may_not_be_written_and_a_mirrored_one_are_read():
    image = photograph(50, 40)
    mirrored, frozen = image[:, ::-1], image.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(resize(mirrored, 20, 20), resize(mirrored.copy(), 20, 20))
    np.testing.assert_array_equal(resize(frozen, 20, 20), resize(image, 20, 20))


def test_a_strip_is_not_enlarged_as_a_whole():
    """Scaled to 110 x 2,200,000 first, it would take 730 MB."""
    image = photograph(1, 20000)
    found = seen_by(CentreView(96), image)
    np.testing.assert_array_equal(found[0], found[-1])
    assert np.abs(found[0].astype(int) - image[0, 10000]).max() < 80


def test_a_filter_or_a_mode_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"^interpolation: 'cubic' is none of nearest, box, bil"):
        CentreView(32, interpolation="cubic")
    with pytest.raises(ValueError, match=r"^crop_mode: 'centre' is none of center, squash, border"):
        CentreView(32, crop_mode="centre")
