"""`load(...).embed` shows a model the pixels that timm and transformers show it."""

import json

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor

from fg_ssl_zoo import export, load
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import parse_recipe
from fg_ssl_zoo.data.inputs import GivenImages
from fg_ssl_zoo.data.sample import CorruptImage
from tests.pictures import photograph

SHAPES = [(480, 640), (640, 480), (131, 97)]
PHOTOGRAPHS = [photograph(h, w, seed) for seed, (h, w) in enumerate(SHAPES)]
RECIPE = parse_recipe(
    {"name": "fgssl_x_y.simclr", "backbone": "test_resnet", "stages": [{"method": "simclr"}]}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=96).eval()
    return export(backbone, tmp_path_factory.mktemp("m") / "model", RECIPE, {"rows": []})


def with_timm(folder, **changes) -> np.ndarray:
    """The lines that are printed after an export."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    config = resolve_data_config(changes, model=model)
    transform = create_transform(**config, is_training=False)
    pictures = torch.stack([transform(Image.fromarray(picture)) for picture in PHOTOGRAPHS])
    return model(pictures).detach().numpy()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=1)


def embedded(folder, **options) -> np.ndarray:
    return load(str(folder), accelerator=Accelerator(cpu=True), **options).embed(PHOTOGRAPHS)


def test_a_picture_that_has_gone_is_unreadable_as_one_of_a_data_set_is(tmp_path):
    Image.fromarray(PHOTOGRAPHS[0]).save(tmp_path / "a.png")
    images = GivenImages(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(CorruptImage, match=r"a\.png: cannot be read \(No such file"):
        images[0]


def test_embed_equals_the_printed_lines_of_timm_and_transformers(folder):
    found = embedded(folder)
    assert cosines(found, with_timm(folder)).min() > 0.9999
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.fromarray(picture) for picture in PHOTOGRAPHS])["pixel_values"]
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    assert cosines(found, model(pixels).detach().numpy()).min() > 0.9999
    assert cosines(found[:1], found[1:2]).max() < 0.9999  # the images do differ


@pytest.mark.parametrize(
    "own",
    [
        {"interpolation": "bilinear", "crop_pct": 0.95},
        {"crop_mode": "squash", "crop_pct": 1.0},
        {"crop_mode": "border", "crop_pct": 1.0},
    ],
)
def test_another_model_is_shown_its_own_pixels_at_every_size(own, folder, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for file in ("config.json", "model.safetensors"):
        (theirs / file).write_bytes((folder / file).read_bytes())
    config = json.loads((theirs / "config.json").read_text())
    config["pretrained_cfg"] |= own
    (theirs / "config.json").write_text(json.dumps(config))
    assert cosines(embedded(theirs), with_timm(theirs)).min() > 0.9999
    larger = with_timm(theirs, img_size=128)
    assert cosines(embedded(theirs, image_size=128), larger).min() > 0.9999
    other = with_timm(theirs, crop_pct=0.7)
    assert cosines(embedded(theirs, crop_pct=0.7), other).min() > 0.9999
