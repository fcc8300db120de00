"""A trunk with its attention does what timm's users expect of a model."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel

from fg_ssl_zoo.backbones import fgssl_models
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.networks.attentive import (
    AttentionBranch,
    check_pooling,
    map_of,
    weigh,
)
from fg_ssl_zoo.hub.export import export, usage_lines
from tests.hooks import output_of
from tests.tiny_zoo import recipe_of_network

MEAN = {"global_pool": "avg", "fc_norm": False}
TRUNKS = {
    "test_resnet": {},
    "test_vit": {**MEAN, "img_size": 64},
    "test_convnext": {},
    "test_efficientnet": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 1, 1)},
}
every_trunk = pytest.mark.parametrize("trunk", TRUNKS)


def build(trunk="test_resnet", **options):
    torch.manual_seed(0)
    given = {"trunk_options": TRUNKS.get(trunk), "num_classes": 0, **options}
    model = timm.create_model("fgssl_attentive", trunk=trunk, **given).eval()
    nn.init.normal_(model.attention.norm.running_mean)  # so that no map is constant by chance
    return model


def images(side=64, count=2):
    return torch.randn(count, 3, side, side, generator=torch.manual_seed(1))


# --------------------------------------------------------------------------- attention


def test_the_attention_is_the_papers_branch():
    torch.manual_seed(0)
    branch = AttentionBranch(6, 4).double().eval()
    nn.init.normal_(branch.norm.running_mean)
    maps = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    found = branch(maps)
    assert branch.conv.bias is None
    for b in range(2):
        raw = torch.zeros(3, 5, dtype=torch.float64)
        for y in range(3):
            for x in range(5):
                z = branch.conv.weight[:, :, 0, 0] @ maps[b, :, y, x] - branch.norm.running_mean
                z = z / (branch.norm.running_var + 1e-5).sqrt()
                raw[y, x] = z.clamp_min(0).max()
        torch.testing.assert_close(found[b], (raw - raw.min()) / (raw.max() - raw.min()))


@every_trunk
def test_features_are_the_weighted_mean_of_the_map(trunk):
    """Behind what the trunk itself does with a mean; defect 12: an image is pooled by itself."""
    model, x = build(trunk), images()
    with torch.no_grad():
        features = model.forward_features(x)
        maps = map_of(model.trunk, features)
        attention = model.attention(maps)
        assert attention.std((1, 2)).min() > 0
        weighed = map_of(model.trunk, weigh(model.trunk, features, attention))
        expected = (maps * attention[:, None]).sum((2, 3)) / attention.sum((1, 2))[:, None]
        torch.testing.assert_close(weighed.mean((2, 3)), expected, rtol=1e-4, atol=1e-5)
        found = model(x)
        if trunk in ("test_resnet", "test_vit"):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found, model.trunk(x), rtol=1e-3)
        torch.testing.assert_close(model(x[:1]), found[:1], rtol=1e-4, atol=1e-5)


@every_trunk
def test_an_even_attention_is_the_trunks_own_pooling(trunk):
    model, x = build(trunk), images()
    nn.init.zeros_(model.attention.norm.weight)  # min-max of a constant is 0 / 0
    nn.init.zeros_(model.attention.norm.bias)
    torch.testing.assert_close(model(x), model.trunk(x))
    avg = build(trunk, global_pool="avg")
    torch.testing.assert_close(avg(x), avg.trunk(x))


def test_the_map_of_a_vit_are_its_patches_in_rows():
    model = build("test_vit")
    tokens = torch.arange(17.0)[None, :, None].expand(1, 17, 64)
    expected = torch.arange(1.0, 17).view(4, 4)
    assert torch.equal(map_of(model.trunk, tokens)[0, 5], expected)
    attention = torch.rand(1, 4, 4)
    weighed = weigh(model.trunk, tokens, attention)
    torch.testing.assert_close(weighed[0, 0], tokens[0, 0])  # the class token stays
    torch.testing.assert_close(
        map_of(model.trunk, weighed)[0, 5], expected * attention[0] / attention.mean()
    )
    assert map_of(model.trunk, tokens[:, :-1]).shape == (1, 64, 15, 1)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_mean_over_positions_is_accepted(trunk):
    options = {**TRUNKS[trunk]}
    options.pop("img_size", None)
    model = create_backbone(trunk, image_size=64, **options).model
    check_pooling(model, trunk, 64)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_vit", {}, r"test_vit: its features are not the mean .*fc_norm: false"),
        ("test_vit3", {}, "not the mean over the positions"),
        ("test_resnet", {"global_pool": "max"}, r"\{global_pool: avg\}"),
        ("coat_tiny", {}, "coat_tiny has several last maps; attention needs one"),
    ],
)
def test_another_pooling_is_refused_with_the_option_that_helps(name, options, message):
    with pytest.raises(ValueError, match=message):
        check_pooling(create_backbone(name, image_size=64, **options).model, name, 64)


def test_a_map_of_one_position_is_refused_and_nothing_is_drawn():
    backbone = create_backbone("test_resnet", image_size=32)
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"data\.image_size: with 32 pixels .*use 64"):
        check_pooling(backbone.model, "test_resnet", 32)
    assert torch.equal(torch.get_rng_state(), state)


# --------------------------------------------------------------------------- as timm's users expect


@every_trunk
def test_forward_is_features_then_head(trunk):
    model = build(trunk, num_classes=7)
    x = images()
    with torch.no_grad():
        features = model.forward_features(x)
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), model(x))
    model.reset_classifier(5)
    assert (model(x).shape, model.num_classes) == ((2, 5), 5)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), hidden)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))


def channels_first(trunk, output):
    """(b, c, h, w) of a stage's output: of a ViT without its class token, of a Swin from NHWC."""
    if trunk == "test_vit":
        return output[:, 1:].mT.unflatten(2, (4, 4))
    return output.permute(0, 3, 1, 2) if trunk.startswith("swin") else output


@every_trunk
def test_maps_are_those_of_the_trunk(trunk):
    model, x = build(trunk), images()
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
        assert [m.shape[1] for m in maps] == [stage["num_chs"] for stage in model.feature_info]
        for found, stage in zip(maps, model.feature_info, strict=True):
            output = output_of(stage["module"], model, x)
            torch.testing.assert_close(channels_first(trunk, output), found)
        torch.manual_seed(0)
        net = timm.create_model(
            "fgssl_attentive", trunk=trunk, trunk_options=TRUNKS[trunk], features_only=True,
            out_indices=(0, -1),
        ).eval()  # fmt: skip
        torch.testing.assert_close(net(x), [maps[0], maps[-1]])
        assert net.feature_info.channels() == [maps[0].shape[1], maps[-1].shape[1]]
    assert not [key for key in net.state_dict() if "attention" in key or "fc." in key[:4]]
    backbone = create_backbone(
        "fgssl_attentive", image_size=64, trunk=trunk, trunk_options=TRUNKS[trunk]
    )
    assert backbone(x).shape == (2, backbone.num_features)
    assert backbone.feature_maps(x, [-1])[0].shape[1] == maps[-1].shape[1]


def test_inputs_follow_the_cfg_and_other_channels():
    model = build(in_chans=1, num_classes=3)
    assert model(images()[:, :1]).shape == (2, 3)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    assert model.get_submodule(cfg["classifier"]).out_features == 3
    assert timm.data.resolve_model_data_config(build())["input_size"] == (3, 224, 224)
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("fgssl_attentive", pretrained=True)
    assert build(attention_channels=5).attention.conv.out_channels == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trunk": "resnt50", "trunk_options": {}}, "trunk: unknown 'resnt50'; did you mean"),
        ({"global_pool": "max"}, "global_pool: 'max' with 0 classes"),
        ({"global_pool": "", "num_classes": 3}, "global_pool: '' with 3 classes; use attention"),
    ],
)
def test_what_is_typed_wrong_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# --------------------------------------------------------------------------- names and folders


def test_it_is_an_architecture_of_ours(tmp_path, caplog):
    assert not fgssl_models.is_stock("fgssl_attentive")
    path = tmp_path / "fgssl_attentive.lcr.yaml"
    path.write_text("backbone: fgssl_attentive\nstages: [{method: simclr}]\n")
    assert fgssl_models._read_all({path.stem: path}) == ({}, {})
    assert "fgssl_attentive is an architecture" in caplog.text


def test_weights_without_an_attention_are_refused(tmp_path):
    """Defect 13: a checkpoint that fits nowhere, and an evaluation of fresh weights."""
    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(weights, tmp_path / "stock.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key.*trunk"):
        timm.create_model(
            "fgssl_attentive", trunk="test_resnet", num_classes=0, pretrained=True,
            pretrained_cfg_overlay={
                "file": str(tmp_path / "stock.safetensors"), "num_classes": 0,
            },
        )  # fmt: skip


def test_a_folder_opens_with_timm_and_transformers_to_equal_features(tmp_path):
    options = {"trunk": "test_vit", "trunk_options": TRUNKS["test_vit"]}
    recipe = recipe_of_network("fgssl_attentive", "cub", "lcr", 64, **options)
    torch.manual_seed(0)
    backbone = create_backbone("fgssl_attentive", image_size=64, **options).eval()
    nn.init.normal_(backbone.model.attention.norm.running_mean)
    folder = export(backbone, tmp_path / "model", recipe, {"rows": []})
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["model_args"]) == ("fgssl_attentive", options)
    assert usage_lines(folder).startswith("import fg_ssl_zoo")
    x = images()
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    by_transformers = AutoModel.from_pretrained(folder).eval()
    assert torch.equal(by_timm(x), backbone(x))
    assert torch.equal(by_transformers(x).pooler_output, backbone(x))
    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
    assert torch.equal(classifier.forward_head(classifier.forward_features(x), True), backbone(x))
