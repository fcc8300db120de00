"""A transformer over a CNN's map: its tokens, its start, and what timm's users expect of it."""

import json
from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import AutoModel

from fg_ssl_zoo.backbones import fgssl_models
from fg_ssl_zoo.backbones.backbone import patch_size_of
from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.backbones.hypercolumns import maps_of
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.hub.export import export, usage_lines
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.parts import Discovery, discover_parts
from tests.tiny_zoo import recipe_of_network

SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 3}
STEMS = {"test_resnet": 2, "test_efficientnet": 2, "test_convnext": 1}
every_stem = pytest.mark.parametrize("stem", STEMS)


def hybrid(stem="test_resnet", size=64, init="scratch", **options):
    torch.manual_seed(0)
    given = {"stem": stem, "stem_stage": STEMS[stem], **SMALL, **options}
    return create_backbone("fgssl_hybrid", init=init, image_size=size, **given).eval()


def images(count=2, side=64):
    return torch.randn(count, 3, side, side, generator=torch.manual_seed(1))


@every_stem
def test_a_token_is_a_projected_position_of_the_stems_map(stem):
    backbone = hybrid(stem)
    embed, x = backbone.model.patch_embed, images()
    with torch.no_grad():
        (seen,) = embed.backbone(x)
        assert seen.shape[-1] * backbone.patch_size == 64
        expected = torch.einsum("dc,bchw->bhwd", embed.proj.weight[:, :, 0, 0], seen)
        expected = (expected + embed.proj.bias).flatten(1, 2)
        torch.testing.assert_close(embed(x), expected, rtol=1e-4, atol=1e-5)
        assert backbone(x).shape == (2, 24)
        for found in maps_of(backbone, x, [0, "keys"]):
            assert found.shape == (2, 24, *seen.shape[-2:])


def test_patches_of_timms_own_hybrids_are_counted_in_pixels():
    with torch.device("meta"):
        model: Any = timm.create_model("vit_tiny_r_s16_p8_224")
    assert patch_size_of(model) == 224 // model.patch_embed.grid_size[0] == 32
    assert patch_size_of(timm.create_model("test_vit")) == 16


def test_the_size_of_pictures_is_of_whole_patches_of_this_network():
    assert hybrid(size=24).patch_size == 8
    with pytest.raises(ValueError, match="28 is not divisible by the patch size 8"):
        hybrid(size=28)
    vit = create_backbone("test_vit", image_size=40, patch_size=8)
    assert vit(images(side=40)).shape == (2, vit.num_features)


def test_a_file_of_the_cnn_alone_fills_the_stem(tmp_path):
    torch.manual_seed(5)
    cnn = timm.create_model("test_resnet", num_classes=0).state_dict()
    save_file(cnn, tmp_path / "cnn.safetensors")
    init = f"{tmp_path / 'cnn.safetensors'}#partial"
    backbone, fresh = hybrid(init=init), hybrid()
    stem = backbone.model.patch_embed.backbone.state_dict()
    assert len(stem) > 20
    for key, value in stem.items():
        torch.testing.assert_close(value, cnn[key], msg=key)
    for key, value in backbone.model.blocks.state_dict().items():
        assert torch.equal(value, fresh.model.blocks.state_dict()[key])
    with pytest.raises(ValueError, match="a part on purpose, write FILE#partial"):
        hybrid(init=init.removesuffix("#partial"))


def test_its_parts_can_be_discovered():
    backbone = hybrid()
    birds = DrawnBirds(num_images=6)
    for how in (Discovery(num_parts=3, size=16), Discovery(num_parts=2, size=16, foreground=True)):
        with evaluating(backbone):
            maps = discover_parts(backbone, birds, Accelerator(cpu=True), how)
        assert maps.shape == (6, 16, 16)
        assert maps.unique().numel() > 1


def test_patches_of_a_map_do_not_overlap():
    with pytest.raises(ValueError, match="stride: the patches of fgssl_hybrid lie on the map"):
        maps_of(hybrid(), images(), ["keys"], stride=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "resnt18"}, "stem: unknown 'resnt18'; did you mean"),
        ({"stem": "test_resnet", "stem_stage": 9}, "stem_stage: test_resnet gives no feature map"),
        ({"stem": "swin_tiny_patch4_window7_224", "stem_stage": 1}, "resnet18 works"),
    ],
)
def test_what_is_typed_wrong_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        create_backbone("fgssl_hybrid", image_size=64, **{**SMALL, **options})


def test_inputs_follow_the_cfg_and_other_channels():
    model: Any = timm.create_model(
        "fgssl_hybrid", stem="test_resnet", stem_stage=2, in_chans=1, num_classes=3, img_size=64,
        **SMALL,
    ).eval()  # fmt: skip
    assert model(images()[:, :1]).shape == (2, 3)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).in_channels == 1
    assert model.get_submodule(cfg["classifier"]).out_features == 3


def test_a_folder_opens_with_timm_and_transformers_to_equal_features(tmp_path):
    assert not fgssl_models.is_stock("fgssl_hybrid")
    options = {"stem": "test_resnet", "stem_stage": 2, **SMALL}
    recipe = recipe_of_network("fgssl_hybrid", "cub", "particle", 64, **options)
    backbone = hybrid()
    folder = export(backbone, tmp_path / "model", recipe, {"rows": []})
    config = json.loads((folder / "config.json").read_text())
    assert config["model_args"] == {**options, "img_size": 64}
    assert usage_lines(folder).startswith("import fg_ssl_zoo")
    x = images()
    assert open_backbone(str(folder), image_size=24).image_size == 24  # whole patches of 8
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(by_timm(x), backbone(x))
    by_transformers = AutoModel.from_pretrained(folder).eval()
    assert torch.equal(by_transformers(x).pooler_output, backbone(x))
