"""Backbone: one face for ResNet and ViT."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from fg_ssl_zoo.backbones.backbone import WrongSize, weights_fingerprint
from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.backbones.maps import accept_size, parameters_behind, train_up_to_last_map

SMALL_HIERA = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 1, 1)}


def test_features_and_maps_have_the_same_form_for_resnet_and_vit():
    pixels = torch.randn(2, 3, 64, 64)
    for name in ("test_resnet", "test_vit"):
        backbone = create_backbone(name, image_size=64).eval()
        assert backbone(pixels).shape == (2, backbone.num_features)
        (last,) = backbone.feature_maps(pixels)
        assert last.shape[:2] == (2, backbone.num_features)
        assert last.shape[2] == last.shape[3]
        assert len(backbone.feature_maps(pixels, [0, -1])) == 2
        assert backbone.init == "scratch"


def test_the_last_map_pools_to_the_features_of_a_resnet():
    backbone = create_backbone("test_resnet", image_size=64).eval()
    pixels = torch.randn(2, 3, 64, 64)
    (last,) = backbone.feature_maps(pixels)
    torch.testing.assert_close(last.mean((2, 3)), backbone(pixels))


def test_denormalize_brings_the_pixels_back():
    backbone = create_backbone("test_resnet", image_size=64)
    backbone.mean, backbone.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    pixels = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    found = backbone.denormalize(backbone.normalize(pixels))
    torch.testing.assert_close(found, pixels.movedim(-1, 1) / 255, rtol=0, atol=1e-6)


def test_normalize_is_the_end_of_timms_transform():
    backbone = create_backbone("test_vit", image_size=32)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    config = {
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "mean": backbone.mean,
        "std": backbone.std,
    }
    wanted = timm.data.create_transform(**config)(Image.fromarray(picture))
    found = backbone.normalize(torch.from_numpy(picture)[None])[0]
    torch.testing.assert_close(found, wanted)
    assert backbone.normalize(torch.from_numpy(np.stack([picture] * 2))).shape == (2, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet18.a1_in1k"},
            "unknown backbone 'resnet18.a1_in1k'; did you mean .*resnet18",
        ),
        ({"name": "resnet19"}, "unknown backbone 'resnet19'; did you mean .*resnet18"),
        (
            {"name": "test_vit", "image_size": 70},
            "70 is not divisible by the patch size 16 of test_vit; use 64 or 80",
        ),
        (
            {"name": "halonet26t", "image_size": 72},
            r"data\.image_size: halonet26t cannot read images of 72 pixels \(.*\); 256, its own",
        ),
        (
            {"name": "halonet26t", "image_size": 72, "drop_path_rate": 0.1},
            r"data\.image_size: halonet26t cannot read images of 72 pixels",
        ),
        ({"name": "test_vit", "image_size": 10}, "not divisible by .* use 16"),
        ({"name": "test_resnet", "init": "r160_in1"}, "init: 'r160_in1' is neither .*r160_in1k"),
        (
            {"name": "resnet50", "init": "fgssl_resnet50_cub.simcrl"},
            r"init: .* is neither .*did you mean .*fgssl_resnet50_cub\.simclr",
        ),
        ({"name": "test_resnet", "init": "no/file.safetensors"}, "there is no file no/file"),
    ],
)
def test_what_does_not_exist_or_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_backbone(**arguments)


def test_options_reach_the_timm_constructor_and_leave_the_weights_loadable():
    active = create_backbone("resnet10t", zero_init_last=False)
    plain = create_backbone("resnet10t")
    assert plain.model.layer1[0].bn2.weight.abs().max() == 0
    assert active.model.layer1[0].bn2.weight.abs().min() == 1
    plain.load_state_dict(active.state_dict())


def test_an_option_that_the_backbone_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"backbone_options: test_vit .*zero_init_last"):
        create_backbone("test_vit", image_size=64, zero_init_last=False)


@pytest.mark.parametrize(
    ("name", "index", "expected"),
    [
        ("test_resnet", -2, {"layer4"}),
        ("test_resnet", -1, set()),
        ("test_resnet", 0, {"layer1", "layer2", "layer3", "layer4"}),
        ("test_vit", -2, {"blocks.5", "norm"}),
        ("test_vit", -1, {"norm"}),
        ("test_convnext", -2, {"stages.3", "head"}),
    ],
)
def test_what_lies_behind_a_feature_map_is_what_it_does_not_read(name, index, expected):
    backbone = create_backbone(name, image_size=160)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    behind = {id(parameter) for parameter in parameters_behind(backbone, index)}
    wanted = {
        id(parameter)
        for key, parameter in backbone.model.named_parameters()
        if any(key.startswith(f"{part}.") for part in expected)
    }
    assert behind == wanted
    assert backbone.training
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_map_and_features_of_one_pass_are_those_of_two(name):
    backbone = create_backbone(name, image_size=160).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        last, h = backbone.map_and_features(images)
        torch.testing.assert_close(h, backbone(images))
        (plain,) = backbone.feature_maps(images, [-1])
        if name == "test_vit":  # the paper's tokens are those behind the last norm
            plain = backbone.model.norm(plain.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(last, plain)


def test_a_network_without_a_norm_for_its_maps_gives_them_as_they_are():
    backbone = create_backbone("hiera_tiny_224", image_size=64, **SMALL_HIERA).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        last, h = backbone.map_and_features(images)
        torch.testing.assert_close(h, backbone(images))
        torch.testing.assert_close(last, backbone.feature_maps(images, [-1])[0])


def test_a_size_that_a_published_network_cannot_read_is_named(tmp_path):
    model = timm.create_model("crossvit_tiny_240", num_classes=0)
    save_for_hf(model, tmp_path, safe_serialization=True)
    words = f"local-dir:{tmp_path}"
    assert open_backbone(words).image_size == 240
    with pytest.raises(WrongSize, match="crossvit_tiny_240 cannot read images of 96 pixels"):
        open_backbone(words, image_size=96)


def test_an_assertion_about_the_size_is_no_missing_map():
    backbone = create_backbone("halonet26t", image_size=256)
    with pytest.raises(WrongSize, match="halonet26t at 256 pixels cannot read images of 72"):
        train_up_to_last_map(backbone, 72)
    with pytest.raises(ValueError, match=r"there is no \[9\]"):
        backbone.feature_maps(torch.zeros(1, 3, 256, 256), [9])


def test_a_network_of_one_size_is_refused_where_another_is_needed():
    backbone = create_backbone("hiera_tiny_224", image_size=64, **SMALL_HIERA)
    accept_size(backbone, 64)
    with pytest.raises(ValueError, match=r"at 64 pixels cannot read images of 32 \(.*another size"):
        accept_size(backbone, 32)
    assert backbone.training


@pytest.mark.parametrize(("norm", "frozen"), [(False, {"norm.weight", "norm.bias"}), (True, set())])
def test_a_map_behind_the_last_norm_trains_it(norm, frozen):
    backbone = create_backbone("test_vit", image_size=64)
    assert train_up_to_last_map(backbone, 64, norm=norm) == (64, 4)
    assert {n for n, p in backbone.model.named_parameters() if not p.requires_grad} == frozen


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 1}, r"backbone_options\.in_chans: images have 3 channels, got 1"),
        ({"num_classes": 5}, r"backbone_options\.num_classes: a backbone has no classifier"),
        ({"features_only": True}, r"\.features_only: a backbone returns pooled features"),
        ({"img_size": 64}, r"\.img_size: data\.image_size sets it"),
        ({"checkpoint_path": "x.pth"}, r"\.checkpoint_path: `init` names the start weights"),
        ({"global_pool": ""}, r"returns \(2, .* instead of 2 rows of features; global_pool=avg"),
        ({"global_pool": "most"}, r"cannot be built with global_pool='most' \(AssertionError"),
        ({"act_layer": "nope"}, r"cannot be built with act_layer='nope' \(KeyError"),
        ({"drop_path_rate": 5}, r"\.drop_path_rate: a number from 0 to below 1 is needed, got 5"),
        ({"depths": {"a": 1}}, r"depths: .* is neither a number, a short text nor a list"),
        ({"two words": 1}, r"'two words' is not an argument of a network"),
        ({"layers": 10**9}, r"layers: 1000000000 is larger than in any network"),
    ],
)
def test_an_option_that_no_backbone_may_have_is_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as error, torch.device("meta"):
        create_backbone(name, image_size=64, **options)
    assert "\n" not in str(error.value)


def test_three_channels_and_the_seed_are_as_without_options():
    torch.manual_seed(0)
    plain = create_backbone("test_resnet", image_size=32)
    torch.manual_seed(0)
    asked = create_backbone("test_resnet", image_size=32, in_chans=3)
    assert weights_fingerprint(plain) == weights_fingerprint(asked)
    assert asked.model.training
