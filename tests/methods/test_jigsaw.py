import math

import numpy as np
import pytest
import torch

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.maps import accept_size
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import ViewDataset
from fg_ssl_zoo.data.views import crop_resize
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.jigsaw import Jigsaw, Tiles, standardised
from fg_ssl_zoo.ops.permutations import split_tiles, stored_permutations


def build(backbone="test_resnet", size=96, **options):
    torch.manual_seed(0)
    method = create_method("jigsaw", create_backbone(backbone, image_size=size), **options)
    assert isinstance(method, Jigsaw)
    return method


def test_a_round_trip_through_the_order_gives_the_tiles_back(birds):
    orders = stored_permutations(20)
    seen = Tiles(96, 32, orders, brightness=0.0)(birds[0], np.random.default_rng(0))
    cells = split_tiles(crop_resize(birds[0]["image"], (4, 4, 56, 56), 96), 3)  # 64 x 225 / 256
    back = np.empty_like(seen["tiles"])
    back[orders[seen["permutation"]]] = seen["tiles"]
    np.testing.assert_array_equal(back, cells)


def test_the_same_picture_shows_other_crops_in_every_epoch(birds):
    dataset = ViewDataset(birds, build().views(96), seed=0)
    seen = [dataset[epoch, 0] for epoch in range(8)]
    assert len({sample["permutation"] for sample in seen}) > 3
    assert len({sample["tiles"].tobytes() for sample in seen}) == 8
    np.testing.assert_array_equal(dataset[3, 0]["tiles"], seen[3]["tiles"])


def test_tiles_have_a_gap_and_a_brightness_of_their_own():
    white = {"image": np.full((300, 300, 3), 100, np.uint8), "index": 0}
    tiles = build().views(225)(white, np.random.default_rng(0))["tiles"]
    assert tiles.shape == (9, 64, 64, 3)  # of cells of 75
    shades = {int(tile[0, 0, 0]) for tile in tiles}
    assert len(shades) > 5
    assert all(50 <= shade <= 150 for shade in shades)


def test_the_loss_of_an_even_guess_is_the_logarithm_of_the_orders(birds):
    method = build(num_permutations=100).eval()
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    sample = method.views(96)(birds[0], np.random.default_rng(0))
    batch = {key: torch.as_tensor(value)[None] for key, value in sample.items()}
    assert method(batch).loss.item() == pytest.approx(math.log(100))


def test_layers_behind_the_last_map_are_not_trained(birds):
    """A parameter without a gradient would stop data-parallel training."""
    method = build("test_efficientnet", num_permutations=4)
    sample = method.views(96)(birds[0], np.random.default_rng(0))
    batch = {key: torch.as_tensor(value)[None] for key, value in sample.items()}
    method.eval()(batch).loss.backward()
    trained = {name for name, weight in method.named_parameters() if weight.requires_grad}
    assert {
        name for name, weight in method.named_parameters() if weight.grad is not None
    } == trained
    assert not method.backbone.model.conv_head.weight.requires_grad
    assert "backbone.model.blocks.0.0.conv.weight" in trained


def test_the_order_of_the_tiles_reaches_the_classifier(birds):
    method = build(num_permutations=10).eval()
    sample = method.views(96)(birds[0], np.random.default_rng(0))
    tiles = torch.as_tensor(sample["tiles"])[None]
    with torch.no_grad():
        features = method.tile_features(method.backbone.normalize(tiles[0])).flatten()
        turned = method.tile_features(method.backbone.normalize(tiles[0].flip(0)))
    torch.testing.assert_close(features.reshape(9, -1).flip(0), turned, rtol=1e-3, atol=1e-4)
    assert method.classifier.in_features == len(features)


def test_dropout_is_off_in_evaluation(birds):
    method = build(dropout=0.9).eval()
    sample = method.views(96)(birds[0], np.random.default_rng(0))
    batch = {key: torch.as_tensor(value)[None] for key, value in sample.items()}
    assert torch.equal(method(batch).loss, method(batch).loss)


def test_standardised_tiles_have_no_colour_of_their_own():
    tiles = torch.rand(5, 3, 8, 8) * torch.rand(5, 3, 1, 1) + torch.rand(5, 3, 1, 1)
    out = standardised(tiles)
    torch.testing.assert_close(out.mean((2, 3)), torch.zeros(5, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std((2, 3)), torch.ones(5, 3), atol=1e-3, rtol=0)
    assert build(tile_norm=True).tile_norm


def test_a_vit_reads_tiles_through_interpolated_positions_and_its_own_size_as_before():
    torch.manual_seed(0)
    backbone = create_backbone("test_vit", image_size=96).eval()
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        before = backbone(images)
        accept_size(backbone, 32)
        torch.testing.assert_close(backbone(images), before)
        assert backbone(images[..., :32, :32]).shape == before.shape
        (found,) = backbone.feature_maps(images, [-1])
    assert found.shape[-2:] == (6, 6)
    seen = build("test_vit").views(96)(DrawnBirds(1)[0], np.random.default_rng(0))
    assert seen["tiles"].shape == (9, 16, 16, 3)


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("test_resnet", 64, r"64 is not a multiple of 3; 63 is"),
        ("test_resnet", 2, r"2 is not a multiple of 3; 3 is"),
        (
            "test_vit",
            48,
            r"with 48 pixels, a tile is smaller than a patch of 16 pixels; use 57",
        ),
    ],
)
def test_a_size_that_does_not_fit_names_one_that_does(backbone, size, message):
    method = build(backbone, 96)
    with pytest.raises(ValueError, match=message):
        method.views(size)
    if "use 57" in message:
        method.views(57)


def test_orders_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match=r"num_permutations: 2000 is not between 2 and 1000"):
        build(num_permutations=2000)
