"""Two models of equal identity are the same function, whatever words open them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.backbones.identity import differing, identity
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.hub.export import export


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of a ResNet and of a ViT that averages its tokens."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name, options in (("test_resnet", {}), ("test_vit", {"global_pool": "avg"})):
        model = create_backbone(name, image_size=64, **options).model
        save_file(model.state_dict(), folder / f"{name}.safetensors")
    return folder


def identity_of(files, words, **options):
    name = words.partition("{")[0]
    return identity(open_backbone(f"{words}@{files}/{name}.safetensors", image_size=64), **options)


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ("test_resnet", "test_resnet{global_pool: max}", "options.global_pool"),
        ("test_resnet{global_pool: max}", "test_resnet{global_pool: avgmax}", "global_pool"),
        ("test_resnet", "test_resnet{act_layer: silu}", "options.act_layer"),
        ("test_resnet", "test_resnet{output_stride: 8}", "options.output_stride"),
        ("test_vit{global_pool: avg}", "test_vit{global_pool: avg, num_heads: 8}", "num_heads"),
        (
            "test_vit{global_pool: avg}",
            "test_vit{global_pool: avg, pool_include_prefix: true}",
            "options.pool_include_prefix",
        ),
    ],
)
def test_options_that_change_no_weight_are_another_model(files, one, other, key):
    one, other = identity_of(files, one), identity_of(files, other)
    assert one["weights"] == other["weights"]
    assert one["options"] != other["options"]
    (changed,) = differing(one, other)
    assert key in changed
    assert " there, " in changed


@pytest.mark.parametrize(
    "same", ["global_pool: avg", "zero_init_last: false", "drop_rate: 0.1", "output_stride: 32"]
)
def test_options_that_change_nothing_are_left_out(files, same):
    plain, written = identity_of(files, "test_resnet"), identity_of(files, f"test_resnet{{{same}}}")
    assert plain == written
    assert differing(plain, json.loads(json.dumps(written))) == []


def test_size_scale_layer_and_weights_belong_to_a_model(files):
    words = f"test_resnet@{files}/test_resnet.safetensors"
    plain = open_backbone(words, image_size=64)
    assert identity(plain, -1) == identity(plain, 4) != identity(plain)
    for key, value in (("image_size", 96), ("mean", (0.5, 0.5, 0.5)), ("std", (1.0, 1.0, 1.0))):
        other = open_backbone(words, image_size=64)
        setattr(other, key, value)
        (changed,) = differing(identity(plain), identity(other))
        assert changed.startswith(f"{key} (")


def test_a_folder_brings_the_options_it_was_built_with(files, tmp_path):
    words = f"test_resnet{{global_pool: max}}@{files}/test_resnet.safetensors"
    backbone = open_backbone(words, image_size=64)
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=64"])
    folder = export(backbone, tmp_path / "export", recipe, {})
    for opened in (str(folder), f"local-dir:{folder}"):
        assert identity(open_backbone(opened)) == identity(backbone)
    start = create_backbone("test_resnet", init=f"local-dir:{folder}", image_size=64)
    assert identity(start) == identity(backbone)
    again = export(open_backbone(str(folder)), tmp_path / "again", recipe, {})
    assert identity(open_backbone(str(again))) == identity(backbone)
