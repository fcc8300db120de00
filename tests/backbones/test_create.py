import copy
import shutil

import pytest
import torch

from fg_ssl_zoo.backbones.before_training import open_start
from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.config import parse_recipe
from fg_ssl_zoo.evaluation.candidates import candidates
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.pretrain.run import prepare_backbone


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with the export of a ViT of an unusual size, and its backbone."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    torch.manual_seed(3)
    backbone = create_backbone("test_vit", image_size=64)
    backbone.mean = (0.4, 0.5, 0.6)
    export_simclr(backbone, folder / "export")
    return folder, backbone


def export_simclr(backbone, folder):
    """Export a network of 64 px as the SimCLR model of the drawn birds."""
    recipe = parse_recipe({
        "name": f"fgssl_{backbone.name}_drawn.simclr",
        "backbone": backbone.name,
        "data": {"name": "drawn", "image_size": 64},
        "stages": [{"method": "simclr"}],
    })  # fmt: skip
    rows = [{"name": "untrained", "knn_top1": 0.1}, {"name": "trained", "knn_top1": 0.2}]
    export(backbone, folder, recipe, {"name": recipe.name, "seed": 0, "rows": rows})


def same_weights(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("form", ["{run}", "{run}/export", "local-dir:{run}/export"])
def test_a_run_and_its_export_open_as_they_were_trained(run, form):
    folder, backbone = run
    found = open_backbone(form.format(run=folder))
    assert same_weights(found, backbone)
    assert (found.name, found.image_size, found.mean) == ("test_vit", 64, (0.4, 0.5, 0.6))
    assert found.init == form.format(run=folder)


def test_another_size_and_the_untrained_network(run):
    folder, backbone = run
    assert open_backbone(str(folder), image_size=96).image_size == 96
    start = open_backbone(str(folder), pretrained=False)
    assert start.name == "test_vit"
    assert start.image_size == 64
    assert not same_weights(start, backbone)


def exported_run(folder, **keys):
    """An export whose weights are all zero, of a run that began as its recipe says."""
    recipe = parse_recipe({
        "name": "fgssl_test_vit_drawn.simclr", "backbone": "test_vit", "seed": 7,
        "data": {"name": "drawn", "image_size": 64}, "stages": [{"method": "simclr"}], **keys,
    })  # fmt: skip
    begun = prepare_backbone(recipe)[1]
    trained = copy.deepcopy(begun)
    for parameter in trained.parameters():
        torch.nn.init.zeros_(parameter)
    export(trained, folder, recipe, {})
    return begun, trained


def test_the_network_before_training_is_that_of_step_0(run, tmp_path):
    begun, _ = exported_run(tmp_path / "one")
    trained = open_backbone(str(tmp_path / "one"))
    start = open_start(str(tmp_path / "one"), trained, seed=0)
    assert (start.init, same_weights(start, begun)) == ("scratch", True)
    larger = open_start(str(tmp_path / "one"), open_backbone(str(tmp_path / "one"), image_size=96),
                        seed=0)  # fmt: skip
    assert torch.equal(
        larger.model.blocks[0].attn.qkv.weight, begun.model.blocks[0].attn.qkv.weight
    )
    assert larger.model.pos_embed.shape != begun.model.pos_embed.shape


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"backbone": "resnet18", "backbone_options": {"global_pool": ""}}, "rows of features"),
        ({"backbone": "halonet26t", "data": {"name": "drawn", "image_size": 72}}, "cannot read"),
    ],
)
def test_what_does_not_fit_is_named_before_weights_are_asked_for(network, message):
    recipe = {"name": "x", "init": "a1h_in1k", "stages": [{"method": "simclr"}], **network}
    with pytest.raises(ValueError, match=message):
        prepare_backbone(parse_recipe(recipe))


def test_another_crop_is_another_row_and_the_start_is_shown_the_same_pixels(run, tmp_path):
    exported_run(tmp_path / "one", data={"name": "drawn", "image_size": 64, "crop_pct": 0.8})
    config = shutil.copytree(tmp_path / "one", tmp_path / "two") / "config.json"
    config.write_text(config.read_text().replace('"crop_pct": 0.8', '"crop_pct": 1.0'))
    models = [str(tmp_path / "one"), str(tmp_path / "two")]
    rows = candidates(models, None, with_untrained=True, seed=0)
    assert [row.backbone.crop_pct for row in rows] == [0.8, 0.8, 1.0, 1.0]
    assert rows[0].identity["weights"] == rows[2].identity["weights"]
    assert rows[1].identity["weights"] == rows[3].identity["weights"]
    assert [row.start for row in rows] == [rows[1].name, None, rows[3].name, None]


def test_a_run_that_was_continued_has_its_start(run, tmp_path, caplog):
    init = shutil.copytree(run[0], tmp_path / "init")
    begun, _ = exported_run(tmp_path / "two", init=str(init))
    trained = open_backbone(str(tmp_path / "two"))
    start = open_start(str(tmp_path / "two"), trained, seed=0)
    assert (start.init, start.mean) == (str(init), (0.4, 0.5, 0.6))
    assert same_weights(start, begun)
    assert same_weights(start, run[1])
    shutil.rmtree(init)
    random = open_start(str(tmp_path / "two"), trained, seed=0)
    assert random.init == "scratch"
    assert same_weights(random, exported_run(tmp_path / "three")[0])
    assert "start weights are not available" in caplog.text


def test_a_name_of_ours_with_random_weights_has_no_recipe():
    words = "fgssl_resnet18_drawn@scratch"  # not a revision of the published model
    start = open_start(words, open_backbone(words, image_size=32), seed=0)
    assert (start.init, start.image_size) == ("scratch", 32)


def test_a_model_without_a_recipe_of_its_own_is_compared_with_random_weights(run, tmp_path):
    exported_run(tmp_path / "one")
    recipe = tmp_path / "one" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("test_vit\n", "test_resnet\n"))
    starts = [
        open_start(str(tmp_path / "one"), open_backbone(str(tmp_path / "one")), seed=seed)
        for seed in (0, 1)
    ]
    torch.manual_seed(7)  # the recipe's
    expected = create_backbone("test_vit", image_size=64)
    assert all(same_weights(start, expected) for start in starts)
    recipe.unlink()
    torch.manual_seed(1)
    expected = create_backbone("test_vit", image_size=64)
    start = open_start(str(tmp_path / "one"), open_backbone(str(tmp_path / "one")), seed=1)
    assert same_weights(start, expected)


def test_an_architecture_with_its_start(run, tmp_path):
    torch.manual_seed(0)
    scratch = open_backbone("test_resnet@scratch", image_size=64)
    torch.manual_seed(0)
    assert same_weights(scratch, create_backbone("test_resnet", image_size=64))
    weights = run[0] / "export" / "model.safetensors"
    found = open_backbone(f"test_vit@{weights}", image_size=64)
    assert same_weights(found, run[1])
    assert not same_weights(
        open_backbone(f"test_vit@{weights}", image_size=64, pretrained=False), run[1]
    )


def test_an_architecture_with_options_of_its_constructor():
    torch.manual_seed(0)
    found = open_backbone("test_vit{depth: 2, global_pool: avg}@scratch", image_size=64)
    torch.manual_seed(0)
    wanted = create_backbone("test_vit", image_size=64, depth=2, global_pool="avg")
    assert same_weights(found, wanted)
    assert found.options == {"depth": 2, "global_pool": "avg"}


def test_our_names_open_from_our_folder(run, monkeypatch, tmp_path):
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    torch.manual_seed(1)
    trained = create_backbone("resnet18", image_size=64)
    export_simclr(trained, tmp_path / "fgssl_resnet18_drawn.simclr")
    found = open_backbone("fgssl_resnet18_drawn")
    assert same_weights(found, trained)
    assert found.image_size == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("resnet81", r"no model 'resnet81'; did you mean resnet.*; a model is a run folder"),
        ("runs/nowhere", r"no model 'runs/nowhere', and no such folder; a model is a run folder"),
        ("resnet18.a1_in1", r"resnet18 has no weights 'a1_in1'; did you mean a1_in1k"),
        ("resnet18@a1_in1", r"init: 'a1_in1' is neither scratch"),
        ("test_resnet@nowhere.safetensors", r"there is no file nowhere.safetensors"),
        ("test_vit{depth: 2@scratch", r"unknown backbone 'test_vit\{depth: 2'"),
        (
            "test_vit{depth 2}@scratch",
            r"\{depth 2\} is not a mapping of options; write",
        ),
        ("test_vit{depht: 2}@scratch", r"backbone_options: test_vit does not accept .*'depht'"),
        ("test_vit{depth: 2}", r"no model 'test_vit\{depth: 2\}'"),
        ("resnet12t@scratch", r"unknown backbone 'resnet12t'"),
    ],
)
def test_words_that_mean_nothing_are_answered_with_what_would(words, message):
    with pytest.raises(ValueError, match=message):
        open_backbone(words)


def test_weights_that_cannot_be_had_name_the_words(run, tmp_path):
    with pytest.raises(ValueError, match=r"no weights for resnet18: "):
        open_backbone("resnet18")  # the tests are offline
    with pytest.raises(ValueError, match=r"no weights for hf-hub:nobody/nothing: "):
        open_backbone("hf-hub:nobody/nothing")
    broken = tmp_path / "broken"
    shutil.copytree(run[0] / "export", broken)
    (broken / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"broken.model\.safetensors is broken \(.*copy or downl"):
        open_backbone(str(broken))


def test_a_folder_without_an_export_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds a config.json; a run and fgssl classifier write"):
        open_backbone(str(tmp_path))
