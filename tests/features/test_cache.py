import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import weights_fingerprint
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import Subset, image_name, load_images
from fg_ssl_zoo.features import cache
from fg_ssl_zoo.features.cache import features_of
from fg_ssl_zoo.features.extract import Layer, extract
from tests.pictures import write_photos


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return create_backbone("test_resnet", image_size=48).eval()


@pytest.fixture
def extractions(monkeypatch):
    """How often features were computed."""
    count = []

    def counted(*arguments, **keywords):
        count.append(1)
        return extract(*arguments, **keywords)

    monkeypatch.setattr(cache, "extract", counted)
    return count


def test_the_same_is_computed_once_and_read_back_equal(backbone, birds, tmp_path, extractions):
    first, second = (
        features_of(backbone, birds, Accelerator(cpu=True), cache=tmp_path) for _ in range(2)
    )
    assert len(extractions) == 1
    for name in ("features", "labels", "indices"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_whatever_changes_the_features_has_a_file_of_its_own(
    backbone, birds, tmp_path, extractions
):
    def read(**options):
        features_of(backbone, birds, Accelerator(cpu=True), cache=tmp_path, **options)

    read()
    read(crop_pct=1.0)
    read(layer=-2)
    backbone.options = {"global_pool": "max"}
    read()
    backbone.options = {}
    backbone.image_size = 32
    read()
    with torch.no_grad():
        next(backbone.parameters()).add_(1e-3)
    read()
    assert len(extractions) == 6
    assert len(list(tmp_path.glob("*.safetensors"))) == 6
    assert not list(tmp_path.glob("*.partial"))


def test_a_picture_that_is_replaced_under_its_name_is_read_again(
    backbone, birds, tmp_path, extractions
):
    write_photos(tmp_path / "photos", birds)
    file = tmp_path / "photos" / "3.png"
    photos = Subset(load_images(Data(path=str(tmp_path / "photos")), "train"), np.array([1, 5]))
    name = image_name(photos, 1)

    def compute():
        return features_of(backbone, photos, Accelerator(cpu=True), cache=tmp_path / "cache")

    first = compute()
    file.write_bytes(file.read_bytes())  # none of these two
    assert torch.equal(compute().features, first.features)
    assert len(extractions) == 1
    (tmp_path / "photos" / name).write_bytes(file.read_bytes())
    assert torch.equal(compute().features[0], first.features[0])
    assert not torch.equal(compute().features[1], first.features[1])
    assert len(extractions) == 2


def test_a_picture_above_the_bound_is_read_once_the_bound_is_higher(
    backbone, birds, tmp_path, monkeypatch
):
    write_photos(tmp_path / "photos", birds)
    cv2.imwrite(str(tmp_path / "photos" / "0.png"), np.zeros((90, 80, 3), np.uint8))
    images = load_images(Data(path=str(tmp_path / "photos")), "train")

    def missing():
        found = features_of(backbone, images, Accelerator(cpu=True), cache=tmp_path / "cache")
        return len(images) - len(found.indices)

    monkeypatch.setenv("FG_SSL_ZOO_MAX_PIXELS", "7000")
    assert missing() == missing() == 1
    monkeypatch.setenv("FG_SSL_ZOO_MAX_PIXELS", "7200")
    assert missing() == 0


def test_a_damaged_file_is_made_anew(backbone, birds, tmp_path, extractions):
    expected = features_of(backbone, birds, Accelerator(cpu=True), cache=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    again = features_of(backbone, birds, Accelerator(cpu=True), cache=tmp_path)
    assert torch.equal(again.features, expected.features)
    assert len(extractions) == 2


def test_features_that_are_no_numbers_name_the_pictures(backbone, birds, tmp_path):
    torch.nn.init.constant_(next(backbone.parameters()), float("nan"))
    with pytest.raises(ValueError, match=r"features of drawn\[0\], .* and 11 more are not finite"):
        features_of(backbone, birds, Accelerator(cpu=True), cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_follows_every_weight(backbone):
    before = weights_fingerprint(backbone)
    assert before == weights_fingerprint(backbone)
    backbone.model.state_dict()["bn1.running_mean"][0] = 7
    assert weights_fingerprint(backbone) != before


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_layer_is_the_mean_of_its_map(name, birds, tmp_path):
    backbone = create_backbone(name, image_size=48).eval()
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        (found,) = backbone.feature_maps(pixels, [0])
        torch.testing.assert_close(Layer(0)(backbone, pixels), found.mean((2, 3)))
        assert Layer(0, 2)(backbone, pixels).shape == (2, 4 * found.shape[1])
    with pytest.raises(ValueError, match=rf"{name} has \d+ feature maps; there is no \[99\]"):
        Layer(99)(backbone, pixels)
