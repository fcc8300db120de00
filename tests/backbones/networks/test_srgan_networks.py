"""SRGAN's two networks do what timm's users expect of a model."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from fg_ssl_zoo.backbones import fgssl_models
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.hub.export import export, usage_lines
from tests.hooks import output_of
from tests.tiny_zoo import recipe_of_network

NETWORKS = {
    "fgssl_srresnet": {"num_blocks": 3},
    "fgssl_srgan_discriminator": {"width": 4, "hidden_size": 32},
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{**NETWORKS[name], **options}).eval()


def images(side=96, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.manual_seed(1))


# --------------------------------------------------------------------------- the paper's layers


def test_the_trunk_has_the_papers_layers():
    model = timm.create_model("fgssl_srresnet", num_classes=0)
    assert len(model.blocks) == 16
    assert [type(m) for m in model.blocks[0].layers] == [
        nn.Conv2d, nn.BatchNorm2d, nn.PReLU, nn.Conv2d, nn.BatchNorm2d,
    ]  # fmt: skip
    assert model.stem[0].kernel_size == (9, 9)
    x = images(24)
    model.eval()
    with torch.no_grad():
        first = model.stem(x)
        convolution, norm = model.fuse
        expected = first + norm(convolution(model.blocks(first)))
        torch.testing.assert_close(model.forward_features(x), expected)
        assert expected.shape == (2, 64, 24, 24)


def test_the_last_blocks_can_be_left_out_and_the_grid_be_finer():
    model = timm.create_model("fgssl_srresnet", num_classes=0, drop_last_blocks=6, pool_size=4)
    assert len(model.blocks) == 10
    assert model(images(24)).shape == (2, model.head_hidden_size) == (2, 1024)
    assert model.num_features == 64
    with pytest.raises(ValueError, match="use 0 to 15"):
        timm.create_model("fgssl_srresnet", drop_last_blocks=16)


def test_the_whole_generator_ends_with_two_enlargements():
    model = timm.create_model("fgssl_srresnet", num_classes=0, upsample=True, num_blocks=3).eval()
    x = images(24)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert [m.shape[-1] for m in maps] == [24] * 5 + [48, 96]
        assert [24 / info["reduction"] for info in model.feature_info] == [24] * 5 + [48, 96]
        torch.testing.assert_close(model.up(maps[4]), model.forward_features(x))
    model.drop_last_blocks(2)
    assert [info["module"] for info in model.feature_info] == [
        "stem", "blocks.0", "fuse", "up.0", "up.1",
    ]  # fmt: skip


@pytest.mark.parametrize("side", [96, 88])
def test_the_judge_reads_96_and_88_pixels_and_flattens_six_by_six(side):
    model = timm.create_model("fgssl_srgan_discriminator", num_classes=1).eval()
    x = images(side)
    with torch.no_grad():
        last = model.forward_features(x)
        assert last.shape == (2, 512, 6, 6)
        expected = model.fc(model.hidden(last.flatten(1)))  # no pooling in the paper
        torch.testing.assert_close(model(x), expected)
    assert expected.shape == (2, 1)
    assert model.hidden[0].in_features == 512 * 6 * 6
    strides = [block[0].stride[0] for block in model.blocks]
    widths = [block[0].out_channels for block in model.blocks]
    assert strides == [1, 2] * 4
    assert widths == [64, 64, 128, 128, 256, 256, 512, 512]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.blocks[0])


# --------------------------------------------------------------------------- as timm's users expect


@every_network
@pytest.mark.parametrize("side", [32, 88, 96, 100])
def test_forward_is_features_then_head(name, side):
    model = build(name, num_classes=7)
    x = images(side)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        torch.testing.assert_close(model.forward_head(features), model(x))
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), model(x))
        torch.testing.assert_close(build(name, num_classes=0)(x).shape, hidden.shape)


@every_network
def test_the_classifier_can_be_changed_and_removed(name):
    model = build(name, num_classes=7)
    x = images()
    model.reset_classifier(5)
    assert (model(x).shape, model.num_classes) == ((2, 5), 5)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "max")
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), model.forward_features(x))
    with pytest.raises(ValueError, match="use avg"):
        model.reset_classifier(5)
    with pytest.raises(ValueError, match="use avg"):
        build(name, num_classes=5, global_pool="")
    assert build(name, num_classes=5, global_pool="catavgmax")(x).shape == (2, 5)


@every_network
def test_maps_are_what_feature_info_says(name):
    model = build(name, num_classes=0)
    x = images()
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        torch.testing.assert_close(last, model.forward_features(x))
        torch.testing.assert_close(maps[-1], last)
        assert len(maps) == len(model.feature_info)
        for found, info in zip(maps, model.feature_info, strict=True):
            assert found.shape[1:] == (info["num_chs"], *[96 // info["reduction"]] * 2)
            torch.testing.assert_close(output_of(info["module"], model, x), found)
        some = model.forward_intermediates(
            x, indices=[1, 2], stop_early=True, intermediates_only=True
        )
        torch.testing.assert_close(some, maps[1:3])
        net = build(name, features_only=True, out_indices=(0, 2, -1))
        assert net.feature_info.channels() == [m.shape[1] for m in (maps[0], maps[2], maps[-1])]
        torch.testing.assert_close(net(x), [maps[0], maps[2], maps[-1]])
        assert len(build(name, features_only=True)(x)) == 3
    assert not [key for key in net.state_dict() if "fc." in key or "hidden." in key]


@every_network
def test_inputs_follow_the_cfg_and_other_channels(name):
    assert build(name, in_chans=1)(images(channels=1)).shape == (2, 1000)
    model = build(name)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 96, 96)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(cfg["classifier"]).out_features == 1000
    pixels = name == "fgssl_srgan_discriminator"  # reads 0..1 as it is
    assert config["mean"] == ((0.0, 0.0, 0.0) if pixels else (0.485, 0.456, 0.406))
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model(name, pretrained=True)


@every_network
def test_a_backbone_of_it_has_the_width_of_what_it_gives(name):
    options = {"fgssl_srresnet": {"pool_size": 4}}.get(name, {})
    backbone = create_backbone(name, image_size=96, **NETWORKS[name], **options)
    assert backbone(images()).shape == (2, backbone.num_features)
    (last,) = backbone.feature_maps(images(), [-1])
    assert last.shape[1] == backbone.model.num_features


# --------------------------------------------------------------------------- names and folders


def test_a_recipe_may_not_take_the_name_of_an_architecture(tmp_path, caplog):
    path = tmp_path / "fgssl_srresnet.srgan.yaml"
    path.write_text("backbone: fgssl_srresnet\nstages: [{method: srgan}]\n")
    stock, cfgs = fgssl_models._read_all({path.stem: path})
    assert (stock, cfgs) == ({}, {})
    assert "fgssl_srresnet is an architecture; add _DATA to the file's name" in caplog.text


def test_our_recipe_of_the_trunk_is_a_timm_model():
    model = timm.create_model("fgssl_srresnet_cub.srgan")
    assert (len(model.blocks), model.head_hidden_size) == (16, 1024)
    assert not fgssl_models.is_stock("fgssl_srresnet")
    assert fgssl_models.is_stock("resnet50")


@pytest.mark.slow
def test_a_folder_opens_with_the_printed_lines_and_only_with_us(tmp_path):
    options = {"num_blocks": 2, "pool_size": 2}
    recipe = recipe_of_network("fgssl_srresnet", "cub", "srgan", 32, **options)
    torch.manual_seed(0)
    backbone = create_backbone("fgssl_srresnet", image_size=32, **options).eval()
    folder = export(backbone, tmp_path / "model", recipe, {"rows": []})
    config = json.loads((folder / "config.json").read_text())
    assert (config["architecture"], config["model_args"]) == ("fgssl_srresnet", options)
    assert config["num_features"] == 256
    card = (folder / "README.md").read_text()
    assert "Stock timm and transformers lack this architecture" in card
    lines = usage_lines(folder)
    assert lines.splitlines()[0].startswith("import fg_ssl_zoo")
    assert card.partition("```python\n")[2].splitlines()[0] == lines.splitlines()[0]

    x = torch.randn(2, 3, 32, 32)
    torch.save({"x": x, "features": backbone(x).detach()}, tmp_path / "expected.pt")
    first, second = lines.split("# transformers")
    check = (
        "import torch\nexpected = torch.load('expected.pt')\n"
        "def same(a): assert torch.equal(a, expected['features'])\n"
    )
    without = "import timm\ntry: timm.create_model('local-dir:model')\n"
    without += "except RuntimeError as error: print(error)\n"
    code = f"{without}{check}{first}\nsame(model(expected['x']))\n#{second}"
    code += "\nsame(model(expected['x']).pooler_output)\nprint('both doors open')"
    opened = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    said = ["Unknown model (fgssl_srresnet)", "both doors open"]
    assert opened.stdout.splitlines() == said, opened.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", ["attentive", "hybrid", "srgan"])
def test_a_network_may_be_what_a_process_imports_first(module):
    code = f"import fg_ssl_zoo.backbones.networks.{module}, timm\n"
    code += "print(timm.is_model('fgssl_srresnet'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
