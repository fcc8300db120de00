"""Names: every recipe is a timm model, and its weights come from a folder, else from the Hub."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs

from fg_ssl_zoo.backbones import fgssl_models, networks
from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError
from fg_ssl_zoo.config import parse_recipe, recipe_files
from fg_ssl_zoo.hub.export import export
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import register, registered, write_recipes

STAGES = [{"method": "simclr"}]
RECIPES = {
    "fgssl_tiny_cub.byol": {
        "backbone": "test_resnet",
        "backbone_options": {"channels": [16, 24, 24, 48]},
        "stages": [{"method": "byol"}],
    },
    "fgssl_tiny_cub.simclr": {
        "backbone": "test_resnet",
        "data": {"name": "cub", "image_size": 64},
        "hub": {"license": "mit"},
        "stages": STAGES,
    },
    "fgssl_tinyvit_cub.simclr": {
        "backbone": "test_vit",
        "data": {"name": "cub", "image_size": 64},
        "hub": {"repo": "elsewhere/vit"},
        "stages": STAGES,
    },
}
NAME, VIT = "fgssl_tiny_cub.simclr", "fgssl_tinyvit_cub.simclr"


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory):
    yield from registered(RECIPES, tmp_path_factory.mktemp("recipes"))


def publish(name: str, root: Path) -> Backbone:
    """Export a seeded random model of a recipe to ROOT/NAME; its mean tells it from the default."""
    recipe = parse_recipe({"name": name, **RECIPES[name]})
    torch.manual_seed(0)
    backbone = create_backbone(recipe.backbone, image_size=recipe.data.image_size)
    backbone.mean = (0.1, 0.2, 0.3)
    export(backbone, root / name, recipe, {"name": name, "rows": []})
    return backbone.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict[str, Backbone]]:
    root = tmp_path_factory.mktemp("published")
    return root, {name: publish(name, root) for name in (NAME, VIT)}


@pytest.fixture
def zoo(published, monkeypatch) -> dict[str, Backbone]:
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(published[0]))
    return published[1]


# --------------------------------------------------------------------------- recipes -> names


def test_every_recipe_of_the_package_is_a_name_and_its_architecture_too():
    names = list(recipe_files())
    assert set(names) <= set(timm.list_pretrained("fgssl*"))
    assert {name.partition(".")[0] for name in names} <= set(timm.list_models("fgssl*"))
    models = set(timm.list_models(module="fgssl_models"))
    ours = {name for module in networks.modules() for name in module.default_cfgs}
    assert {"fgssl_srresnet", "fgssl_attentive", "fgssl_hybrid"} <= ours
    assert models | ours == set(timm.list_models("fgssl*"))
    assert not models & ours
    assert not set(timm.list_models("fgssl*")) & set(timm.list_models(module="resnet"))


def test_what_depends_on_the_architecture_is_timms_own():
    cfg = timm.get_pretrained_cfg("fgssl_vit_small_cub.simclr")
    stock = timm.get_pretrained_cfg("vit_small_patch16_224")
    for key in ("first_conv", "classifier", "fixed_input_size", "pool_size"):
        assert getattr(cfg, key) == getattr(stock, key), key
    assert (cfg.num_classes, cfg.input_size, cfg.crop_pct) == (0, (3, 224, 224), 0.875)
    assert cfg.license == "cc-by-nc-4.0"
    assert cfg.hf_hub_id == "fg-ssl-zoo/fgssl_vit_small_cub.simclr"
    assert timm.get_pretrained_cfg(NAME).pool_size is None  # 64 px is not the stock size


def test_the_default_tag_is_simclr_wherever_its_file_stands():
    assert timm.get_pretrained_cfg("fgssl_tiny_cub").tag == "simclr"
    assert timm.list_pretrained("fgssl_tiny_cub*") == ["fgssl_tiny_cub.byol", NAME]


def test_a_released_tag_is_the_default_before_simclr(tmp_path):
    recipes = {
        "fgssl_r_cub.simclr": {"backbone": "test_resnet"},
        "fgssl_r_cub.particle": {"backbone": "test_resnet", "hub": {"sha256": "0" * 64}},
    }
    _, cfgs = fgssl_models._read_all(write_recipes(tmp_path, recipes))
    assert list(cfgs) == ["fgssl_r_cub.particle", "fgssl_r_cub.simclr"]


def test_of_several_released_tags_the_default_is_the_one_that_started_from_the_others(tmp_path):
    released = {"backbone": "test_resnet", "hub": {"sha256": "0" * 64}}
    recipes = {
        "fgssl_r_cub.distillation": released,
        "fgssl_r_cub.particle": {**released, "init": "fgssl_r_cub.distillation"},
        "fgssl_r_cub.simclr": {"backbone": "test_resnet"},
    }
    _, cfgs = fgssl_models._read_all(write_recipes(tmp_path, recipes))
    assert [name.rpartition(".")[2] for name in cfgs] == ["particle", "distillation", "simclr"]


def test_a_folder_of_ones_own_is_a_name_of_timm(published, monkeypatch, tmp_path):
    own = "fgssl_tiny_garden.simclr"
    shutil.copytree(published[0] / NAME, tmp_path / own)
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    assert fgssl_models.own_recipes() == {own: tmp_path / own / "recipe.yaml"}
    with pytest.MonkeyPatch.context() as patch:
        register(fgssl_models.own_recipes(), patch)
        model = timm.create_model("fgssl_tiny_garden", pretrained=True)
    state = published[1][NAME].model.state_dict()
    torch.testing.assert_close(model.state_dict(), state)


def test_every_tag_is_built_with_the_options_of_its_recipe():
    assert timm.create_model("fgssl_tiny_cub").num_features == 96
    assert timm.create_model("fgssl_tiny_cub.byol").num_features == 48
    wider = timm.create_model("fgssl_tiny_cub.byol", channels=(16, 24, 24, 64))
    assert wider.num_features == 64


def test_a_wrong_tag_is_an_error_that_names_it():
    with pytest.raises(RuntimeError, match=r"tag \(nope\) for fgssl_tiny_cub"):
        timm.create_model("fgssl_tiny_cub.nope")


@pytest.mark.parametrize("init", ["augreg_in1k", "local-dir:starts/vit", "hf-hub:timm/vit"])
def test_pixels_are_scaled_as_for_the_weights_that_training_starts_from(tmp_path, init):
    start = get_arch_pretrained_cfgs("vit_small_patch16_224")["vit_small_patch16_224.augreg_in1k"]
    assert start.mean != PretrainedCfg.mean
    recipe = {"backbone": "vit_small_patch16_224", "init": init, "stages": STAGES}
    files = write_recipes(tmp_path, {"fgssl_tiny_cub.x": recipe})
    _, cfgs = fgssl_models._read_all(files)
    assert (cfgs["fgssl_tiny_cub.x"].mean, cfgs["fgssl_tiny_cub.x"].std) == (start.mean, start.std)


@pytest.mark.parametrize(
    ("name", "recipe", "reason"),
    [
        ("fgssl_a_b.c", "backbone: [", "is not YAML"),
        ("fgssl_a_b.c", "- a list", "a mapping of keys is needed"),
        (
            "fgssl_a_b.c",
            {"backbone": "resnet1"},
            "unknown backbone 'resnet1'; did you mean resnet1",
        ),
        ("fgssl_a_b.c", {"stages": STAGES}, "unknown backbone 'None'"),
        ("fgssl_a_b.c", {"backbone": "test_vit", "data": 3}, "data: a mapping is needed, got 3"),
        (
            "fgssl_a_b.c",
            {"backbone": "test_vit", "data": {"image_size": "big"}},
            "data.image_size: an integer is needed, got 'big'",
        ),
        ("resnet50.x", {"backbone": "resnet50"}, "not of the form fgssl_BACKBONE_DATA.METHOD"),
        ("fgssl_tiny_cub.z", {"backbone": "test_vit"}, "its backbone is test_vit; another recipe"),
    ],
)
def test_a_broken_recipe_costs_its_name_and_one_line(tmp_path, caplog, name, recipe, reason):
    files = write_recipes(
        tmp_path, {"fgssl_tiny_cub.ok": {"backbone": "test_resnet"}, name: recipe}
    )
    _, cfgs = fgssl_models._read_all(files)
    assert list(cfgs) == ["fgssl_tiny_cub.ok"]
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert str(files[name]) in record.getMessage()


# --------------------------------------------------------------------------- a name -> a model


@pytest.mark.parametrize("name", [NAME, VIT])
@pytest.mark.parametrize("num_classes", [None, 0, 200])
def test_pretrained_weights_enter_with_and_without_a_classifier(zoo, name, num_classes):
    model = timm.create_model(name, pretrained=True, num_classes=num_classes).eval()
    pixels = torch.randn(2, 3, 64, 64)
    features = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(features, zoo[name](pixels), rtol=0, atol=0)
    assert model(pixels).shape == (2, num_classes or zoo[name].num_features)


def test_features_only_gives_the_maps_of_the_published_backbone(zoo):
    pixels = torch.randn(1, 3, 64, 64)
    for name, count in ((NAME, 5), (VIT, 3)):
        model = timm.create_model(name, pretrained=True, features_only=True).eval()
        maps = model(pixels)
        assert len(maps) == count
        torch.testing.assert_close(maps[-1], zoo[name].feature_maps(pixels)[-1], rtol=0, atol=0)


def test_grey_input_sums_the_first_weights_over_colours(zoo):
    model = timm.create_model(NAME, pretrained=True, in_chans=1)
    first = timm.get_pretrained_cfg(NAME).first_conv + ".weight"
    published = zoo[NAME].model.state_dict()[first]
    torch.testing.assert_close(model.state_dict()[first], published.sum(1, keepdim=True))


def test_other_pooling_and_other_sizes(zoo):
    pixels = torch.randn(2, 3, 64, 64)
    assert timm.create_model(NAME, pretrained=True, global_pool="")(pixels).ndim == 4
    assert timm.create_model(NAME, pretrained=True, global_pool="max")(pixels).ndim == 2
    averaged = timm.create_model(VIT, pretrained=True, global_pool="avg").eval()(pixels)
    tokens = zoo[VIT].model.forward_features(pixels)[:, zoo[VIT].model.num_prefix_tokens :]
    torch.testing.assert_close(averaged, tokens.mean(1))
    larger = timm.create_model(VIT, pretrained=True, img_size=96)
    assert larger(torch.randn(1, 3, 96, 96)).shape == (1, zoo[VIT].num_features)
    assert larger.pos_embed.shape[1] > zoo[VIT].model.pos_embed.shape[1]


def test_the_folder_decides_pixels_and_the_caller_overrules_it(zoo):
    resolve = timm.data.resolve_model_data_config
    config = resolve(timm.create_model(NAME, pretrained=True))
    assert config["mean"] == (0.1, 0.2, 0.3)
    assert config["input_size"] == (3, 64, 64)
    assert (config["crop_pct"], config["interpolation"]) == (0.875, "bicubic")
    mine = {"mean": (0.5, 0.5, 0.5)}
    for given in (
        {"pretrained_cfg_overlay": mine},
        {"pretrained_cfg": dataclasses.replace(timm.get_pretrained_cfg(NAME), **mine)},
    ):
        config = resolve(timm.create_model("fgssl_tiny_cub", pretrained=True, **given))
        assert config["mean"] == (0.5, 0.5, 0.5)
    assert resolve(timm.create_model(NAME))["mean"] == PretrainedCfg.mean  # nothing was loaded


# --------------------------------------------------------------------------- where weights are


def test_a_source_of_the_callers_is_left_alone(published, monkeypatch, tmp_path):
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path / "nothing"))
    folder, backbone = published[0] / NAME, published[1][NAME]
    sources = (
        {"file": str(folder / "model.safetensors")},
        {"file": str(folder), "source": "local-dir"},
        {"state_dict": dict(backbone.model.state_dict())},
    )
    for source in sources:
        model = timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=source)
        torch.testing.assert_close(model.state_dict(), backbone.model.state_dict())


def test_a_folder_with_another_architecture_is_refused(published, monkeypatch, tmp_path):
    (tmp_path / NAME).symlink_to(published[0] / VIT)
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=f"describes a test_vit; {NAME} is a test_resnet"):
        timm.create_model(NAME, pretrained=True)


def test_a_folder_with_an_unreadable_config_is_refused(published, monkeypatch, tmp_path):
    (tmp_path / NAME).mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / NAME / "model.safetensors")
    (tmp_path / NAME / "config.json").write_text("{")
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=r"config.json is no timm config"):
        timm.create_model(NAME, pretrained=True)


def test_one_error_names_all_that_was_tried(monkeypatch, tmp_path):
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    with Hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        with pytest.raises(PretrainedWeightsError) as caught:
            timm.create_model(NAME, pretrained=True)
        assert hub.log == [("HEAD", f"/fg-ssl-zoo/{NAME}/resolve/main/config.json")]
    message = str(caught.value)
    for said in (
        f"{tmp_path / NAME} (no config.json and no model.safetensors)",
        f"{hub.url}/fg-ssl-zoo/{NAME} (RepositoryNotFoundError",
        f"fgssl pull {NAME}",
        "FG_SSL_ZOO_ORG",
        "pretrained=False",
    ):
        assert said in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_recipe_of_the_package_without_weights_says_how_to_train_it(monkeypatch):
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    with pytest.raises(PretrainedWeightsError) as caught:
        timm.create_model("fgssl_resnet50_cub.jigsaw", pretrained=True)
    assert "accelerate launch train.py fgssl_resnet50_cub.jigsaw" in str(caught.value)


def test_the_hub_serves_what_no_folder_has_then_the_cache_does(published, monkeypatch, tmp_path):
    root, backbones = published
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    monkeypatch.setenv("FG_SSL_ZOO_ORG", "someone")
    with Hub() as hub:
        hub.publish(f"someone/{NAME}", root / NAME)
        hub.publish("elsewhere/vit", root / VIT)  # its recipe names the repository
        point_client_at(hub.url, tmp_path, monkeypatch)
        for name in (NAME, VIT):
            model = timm.create_model(name, pretrained=True)
            torch.testing.assert_close(model.state_dict(), backbones[name].model.state_dict())
            assert model.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    model = timm.create_model(NAME, pretrained=True)  # the server is gone
    torch.testing.assert_close(model.state_dict(), backbones[NAME].model.state_dict())


def test_an_unreachable_hub_is_named_at_once_and_a_mute_one_after_its_time(monkeypatch, tmp_path):
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts, never answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        point_client_at(url, tmp_path, monkeypatch)
        start = time.perf_counter()
        with pytest.raises(PretrainedWeightsError, match="Timeout"):
            timm.create_model(NAME, pretrained=True)
        mute = time.perf_counter() - start
    start = time.perf_counter()
    with pytest.raises(PretrainedWeightsError, match="Connect"):
        timm.create_model(NAME, pretrained=True)
    refused = time.perf_counter() - start
    print(f"mute Hub {mute:.2f} s (of 1 s patience), closed port {refused:.2f} s")  # noqa: T201
    assert mute < 5
    assert refused < 3


# --------------------------------------------------------------------------- import


@pytest.mark.slow
def test_the_package_costs_little_more_than_timm(tmp_path):
    code = """
import sys, time, timm
start = time.process_time()
import fg_ssl_zoo
print(time.process_time() - start)
heavy = {"transformers", "datasets", "accelerate", "pydantic", "cv2", "sklearn"} & set(sys.modules)
assert not heavy, heavy
assert timm.is_model("fgssl_resnet50_cub")
assert {"create_backbone", "export", "load_recipe", "pretrain"} <= set(dir(fg_ssl_zoo))
assert callable(fg_ssl_zoo.create_backbone) and fg_ssl_zoo.load_recipe().name.startswith("fgssl_")
try:
    fg_ssl_zoo.nothing
except AttributeError as error:
    assert "nothing" in str(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    seconds = float(result.stdout)
    print(f"import fg_ssl_zoo: {seconds:.2f} s of CPU over import timm")  # noqa: T201
    assert seconds < 2
