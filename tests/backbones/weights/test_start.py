"""Start weights: whose keys they are, what is refused, and what a user is told."""

import json
import logging
import shutil

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.weights import locate as zoo
from fg_ssl_zoo.backbones.weights.start import backbone_part, start_from
from fg_ssl_zoo.config import parse_recipe
from fg_ssl_zoo.hub.export import export

PREFIXES = [
    "",
    "module.",
    "backbone.",
    "encoder.",
    "model.",
    "module.encoder_q.",
    "module.base_encoder.",
    "teacher.backbone.",
    "student.module.backbone.",
    "online_encoder.net.",
    "a.prefix.of.tomorrow.",
]


@pytest.fixture(scope="module", params=["test_resnet", "test_vit"])
def name(request):
    return request.param


def state_of(name, seed=0, **options):
    torch.manual_seed(seed)
    return create_backbone(name, image_size=64, **options).model.state_dict()


def file_in(folder, state, name="weights.safetensors"):
    save_file({key: value.clone() for key, value in state.items()}, folder / name)
    return str(folder / name)


def assert_loaded(backbone, state):
    found = backbone.model.state_dict()
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value), key


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


# --------------------------------------------------------------------------- whose keys


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefix_is_where_the_backbone_is(name, prefix, tmp_path):
    state = state_of(name, seed=1)
    heads = {
        f"{prefix}fc.0.weight": torch.zeros(2, 2),
        f"{prefix}head.mlp.0.weight": torch.zeros(2, 2),
        "queue": torch.zeros(3),
        "predictor.0.weight": torch.zeros(2),
    }
    found = {**{f"{prefix}{key}": value for key, value in state.items()}, **heads}
    at, part = backbone_part(found, state)
    assert at == prefix
    assert part.keys() >= state.keys()
    assert_loaded(create_backbone(name, init=file_in(tmp_path, found), image_size=64), state)


@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("teacher.backbone.", "student.module.backbone."),
        ("module.encoder_q.", "module.encoder_k."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("online_encoder.", "target_encoder."),
        ("", "momentum."),
    ],
)
def test_of_two_networks_the_one_that_its_paper_evaluates(taken, other):
    wanted, distractor = state_of("test_resnet", 1), state_of("test_resnet", 2)
    found = {
        **{f"{other}{key}": value for key, value in distractor.items()},
        **{f"{taken}{key}": value for key, value in wanted.items()},
    }
    at, part = backbone_part(found, wanted)
    assert at == taken
    assert equal({key: part[key] for key in wanted}, wanted)


def test_two_networks_that_nobody_told_apart_are_refused_by_name():
    state = state_of("test_resnet")
    found = {f"{prefix}.{key}": value for prefix in ("one", "two") for key, value in state.items()}
    with pytest.raises(ValueError, match=r"2 times, under one\., two\.; keep the keys of one"):
        backbone_part(found, state)


def test_an_old_file_without_counters_is_whole(caplog):
    state = {k: v for k, v in state_of("test_resnet", 1).items() if "num_batches" not in k}
    model = create_backbone("test_resnet").model
    start_from(model, state, "old")
    assert not caplog.records
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


def test_torchvisions_keys_are_timms():
    with torch.device("meta"):
        theirs = torchvision.models.resnet18().state_dict()
        wanted = create_backbone("resnet18").model.state_dict()
    prefix, part = backbone_part(theirs, wanted)
    assert prefix == ""
    assert part.keys() - wanted.keys() == {"fc.weight", "fc.bias"}
    assert all(part[key].shape == value.shape for key, value in wanted.items())


def test_halved_weights_are_read_as_they_are(tmp_path):
    state = state_of("test_resnet", 1)
    half = {k: v.half() if v.ndim == 4 else v for k, v in state.items()}
    backbone = create_backbone("test_resnet", init=file_in(tmp_path, half))
    assert_loaded(backbone, {k: v.float() if v.ndim == 4 else v for k, v in half.items()})


# --------------------------------------------------------------------------- what is refused


def test_nine_tenths_are_enough_and_the_rest_is_named(caplog):
    state = state_of("test_resnet", 1)
    lacking = {key: value for key, value in state.items() if not key.startswith("layer4.0.bn2.")}
    start_from(create_backbone("test_resnet").model, lacking, "most")
    assert "most lacks layer4.0.bn2; they start at random" in caplog.text


def test_a_part_is_refused_unless_it_is_meant(tmp_path, caplog):
    state = state_of("test_resnet", 1)
    part = {f"net.{k}": v for k, v in state.items() if not k.startswith("layer4.")}
    file = file_in(tmp_path, {**part, "net.extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"holds 60 of the backbone's 75 weights") as refused:
        create_backbone("test_resnet", init=file)
    assert "it lacks layer4.0.conv1.weight, layer4.0.bn1.weight, layer4.0.bn1.bias, " in str(
        refused.value
    )
    assert "layer4.0.bn1.running_var and 10 more; not the backbone's: net.extra.weight" in str(
        refused.value
    )
    assert "write FILE#partial" in str(refused.value)
    backbone = create_backbone("test_resnet", init=f"{file}#partial")
    assert backbone.init == f"{file}#partial"
    found = backbone.model.state_dict()
    assert all(torch.equal(found[key.removeprefix("net.")], value) for key, value in part.items())
    assert "lacks layer4.0.bn1, layer4.0.bn2, layer4.0.conv1, " in caplog.text
    assert "they start at random" in caplog.text


@pytest.mark.parametrize("mark", ["", "#partial"])
def test_a_file_of_something_else_is_refused_either_way(tmp_path, mark):
    file = file_in(tmp_path, {"words.0.weight": torch.zeros(3), "words.0.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"holds 0 of .* not the backbone's: words\.0\.") as error:
        create_backbone("test_resnet", init=file + mark)
    assert "#partial" not in str(error.value)


def test_another_width_is_refused_by_the_shapes_of_a_weight(tmp_path):
    wide = state_of("test_resnet", channels=(32, 48, 48, 64))
    with pytest.raises(
        ValueError, match=r"layer4.* has shape \(64,\); .* backbone's is \(96,\) .* diff"
    ):
        create_backbone("test_resnet", init=file_in(tmp_path, wide))


def test_a_deeper_network_is_refused_although_it_holds_all(tmp_path):
    deep = state_of("test_resnet", layers=(2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"is of a larger network; .* no place for layer1\.1\."):
        create_backbone("test_resnet", init=file_in(tmp_path, deep))


@pytest.mark.parametrize("ending", [".pth", ".pth.tar", ".bin", ".pt", ".ckpt"])
def test_nothing_is_unpickled_and_one_line_says_how_to_convert(tmp_path, ending):
    file = tmp_path / f"weights{ending}"
    torch.save({"state_dict": {"x": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match=r"is a pickle.*weights_only=True.*save_file") as refused:
        create_backbone("test_resnet", init=str(file))
    assert "\n" not in str(refused.value)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"init: .*cut\.safetensors cannot be read"):
        create_backbone("test_resnet", init=str(tmp_path / "cut.safetensors"))


# --------------------------------------------------------------------------- other sizes


def test_position_embeddings_of_a_file_are_resized_as_timm_does_it(tmp_path, caplog):
    state = state_of("test_vit", 1)
    file = file_in(tmp_path, {f"teacher.backbone.{key}": value for key, value in state.items()})
    caplog.set_level(logging.INFO)
    assert_loaded(create_backbone("test_vit", init=file, image_size=64), state)
    assert "resized" not in caplog.text
    found = create_backbone("test_vit", init=file, image_size=96)
    plain = file_in(tmp_path, state, "plain.safetensors")
    theirs = timm.create_model(
        "test_vit", pretrained=True, num_classes=0, img_size=96,
        pretrained_cfg_overlay={"file": plain},
    )  # fmt: skip
    assert_loaded(found, theirs.state_dict())
    assert "init: pos_embed resized from (1, 17, 64) to (1, 37, 64)" in caplog.text


# --------------------------------------------------------------------------- our own models


def exported(folder, name="fgssl_test_vit_drawn.simclr", architecture="test_vit", **options):
    """An export of a random model with its own mean, as a run folder has it."""
    recipe = parse_recipe({
        "name": name,
        "backbone": architecture,
        "backbone_options": options,
        "data": {"name": "drawn", "image_size": 64},
        "stages": [{"method": "simclr"}],
    })  # fmt: skip
    torch.manual_seed(3)
    backbone = create_backbone(architecture, image_size=64, **options)
    backbone.mean, backbone.std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    export(backbone, folder, recipe, {"name": name, "rows": []})
    return backbone


@pytest.mark.parametrize("form", ["{run}", "{run}/export", "local-dir:{run}/export"])
def test_training_continues_from_a_run_or_its_export(tmp_path, form, caplog):
    trained = exported(tmp_path / "mine" / "export")
    init = form.format(run=tmp_path / "mine")
    backbone = create_backbone("test_vit", init=init, image_size=64)
    assert_loaded(backbone, trained.model.state_dict())
    assert (backbone.mean, backbone.std) == (trained.mean, trained.std)
    assert backbone.init == init
    caplog.set_level(logging.INFO)
    larger = create_backbone("test_vit", init=init, image_size=96)
    assert larger.model.pos_embed.shape[1] == 37
    assert "resized from" in caplog.text
    with pytest.raises(ValueError, match=r"holds a test_vit; the recipe's backbone is test_resnet"):
        create_backbone("test_resnet", init=init, image_size=64)


def test_training_continues_from_a_published_name(tmp_path, monkeypatch):
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    name = "fgssl_resnet18_drawn.simclr"
    trained = exported(tmp_path / name, name, "resnet18")
    for init in (name, "fgssl_resnet18_drawn"):
        for architecture in ("resnet18", "fgssl_resnet18_drawn"):
            backbone = create_backbone(architecture, init=init, image_size=64)
            assert_loaded(backbone, trained.model.state_dict())
            assert backbone.mean == trained.mean
    with pytest.raises(ValueError, match=r"holds a resnet18; the recipe's backbone is resnet34"):
        create_backbone("resnet34", init=name)
    shutil.rmtree(tmp_path / name)
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    with pytest.raises(ValueError, match=r"init: no weights for fgssl_resnet18_drawn\.simclr"):
        create_backbone("resnet18", init=name)


def test_other_options_of_the_backbone_are_told(tmp_path):
    options = {"channels": [32, 48, 48, 64]}
    trained = exported(
        tmp_path / "mine" / "export", "fgssl_test_resnet_drawn.simclr", "test_resnet", **options
    )
    run = str(tmp_path / "mine")
    assert_loaded(create_backbone("test_resnet", init=run, **options), trained.model.state_dict())
    with pytest.raises(ValueError, match=r"has shape .*; its backbone_options are {'channels'"):
        create_backbone("test_resnet", init=run)
    with pytest.raises(ValueError, match=r"built with other backbone_options than the recipe's"):
        create_backbone("test_resnet", init=f"local-dir:{run}/export")


def test_a_tag_comes_before_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r160_in1k").mkdir()
    with pytest.raises(ValueError, match=r"no weights for test_resnet\.r160_in1k: "):
        create_backbone("test_resnet", init="r160_in1k")  # the tests are offline


def test_a_folder_without_an_export_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds a config\.json; a run and fgssl classifier write"):
        create_backbone("test_resnet", init=str(tmp_path))


def test_an_export_whose_config_is_broken_is_refused(tmp_path):
    exported(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text(json.dumps(["no", "mapping"]))
    with pytest.raises(ValueError, match=r"config\.json is no timm config"):
        create_backbone("test_vit", init=str(tmp_path / "x"), image_size=64)


def test_a_bare_file_of_a_network_that_wants_other_pixels_is_warned_about(tmp_path, caplog):
    file = tmp_path / "weights.safetensors"
    save_file(create_backbone("test_vit", image_size=64).model.state_dict(), file)
    backbone = create_backbone("test_vit", image_size=64, init=str(file))
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert "states no mean and std" in caplog.text
    assert "(0.5, 0.5, 0.5)" in caplog.text
