"""`pretraining/` of an exported folder: checked, published, left behind, and gone on from."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoModelForPreTraining, TimmBackboneConfig

import fg_ssl_zoo.hf_pretraining  # noqa: F401
from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.weights import locate as zoo
from fg_ssl_zoo.config import load_recipe, of_package, parse_recipe
from fg_ssl_zoo.hub.checks import check
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.hub.pretraining import Pretraining, saved_state
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.pretrain import pretrain
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import NAME, RESULTS, recipe_of

OPTIONS = {"hidden_size": 16, "projection_size": 8}
TEMPLATE = of_package("MODEL_CARD.md").read_text(encoding="utf-8")
FILES = {"pretraining/config.json", "pretraining/model.safetensors"}


@pytest.fixture
def folder(tmp_path):
    """An export with the method that trained it."""
    torch.manual_seed(0)
    method = create_method("simclr", create_backbone("test_resnet", image_size=64), **OPTIONS)
    method.eval()
    found = Pretraining("simclr", OPTIONS, method.state_dict())
    return export(method.backbone, tmp_path / "export", recipe_of(), RESULTS, found)


def test_card_and_results_name_the_method(folder):
    assert json.loads((folder / "results.json").read_text())["pretraining"] == "simclr"
    card = (folder / "README.md").read_text()
    assert "`pretraining/` holds the heads and teachers of simclr" in card
    assert check(folder).results["pretraining"] == "simclr"
    assert len({path.stat().st_mode for path in folder.rglob("*.*")}) == 1


def test_an_older_export_with_it_is_replaced(folder):
    backbone = create_backbone("test_resnet", image_size=64)
    export(backbone, folder, recipe_of(), RESULTS)
    assert not (folder / "pretraining").exists()
    assert "pretraining/" not in (folder / "README.md").read_text()


def test_the_training_of_another_backbone_is_refused(folder):
    path = folder / "pretraining" / "model.safetensors"
    weights = load_file(path)
    key = "method.backbone.model.conv1.0.weight"
    save_file({**weights, key: weights[key] + 1}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds another backbone"):
        check(folder)
    broken = torch.full_like(weights["method.projector.0.weight"], torch.nan)
    save_file({**weights, "method.projector.0.weight": broken}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"projector\.0\.weight has values that are not finite"):
        check(folder)


def test_what_else_lies_there_or_is_lacking_is_refused(folder):
    (folder / "pretraining" / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pretraining holds model\.bin"):
        check(folder)
    (folder / "pretraining" / "model.bin").unlink()
    config = folder / "pretraining" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"fg_ssl"', '"bert"'))
    with pytest.raises(ValueError, match="model_type is not fg_ssl"):
        check(folder)
    for path in (config, config.with_name("model.safetensors")):
        path.unlink()
    config.parent.rmdir()
    with pytest.raises(ValueError, match=r"lacks pretraining/.*or use --backbone-only"):
        check(folder)
    assert "pretraining" not in check(folder, backbone_only=True).results


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own upload
def test_it_is_published_opened_and_left_out(folder, tmp_path, monkeypatch, capsys):
    with Hub() as hub:
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        cli.main(["publish", str(folder), "--org", "me"])
        repo = hub.repos[f"me/{NAME}"]
        assert set(repo.commits[-1].files) > FILES
        card = repo.commits[-1].files["README.md"].decode()
        snippets = re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
        assert len(snippets) == len(re.findall(r"^```python$", TEMPLATE, re.MULTILINE))
        names = {}
        for code in snippets:  # the last is that of `pretraining/`
            exec(compile(code, "MODEL_CARD.md", "exec"), names)
        local = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining")
        found = names["model"].state_dict()
        torch.testing.assert_close(found, local.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(
            saved_state(f"hf-hub:me/{NAME}"), dict(local.method.state_dict()), rtol=0, atol=0
        )

        cli.main(["publish", str(folder), "--org", "me", "--backbone-only"])
        files = repo.commits[-1].files
        assert not set(files) & FILES
        assert "pretraining/" not in files["README.md"].decode()
        with pytest.raises(ValueError, match=r"no pretraining/ of me/.* to inherit from"):
            saved_state(f"hf-hub:me/{NAME}@{repo.commits[-1].sha}")
    assert "published" in capsys.readouterr().out


def test_a_released_folder_leaves_it_behind(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    cli.main(["publish", str(folder), "--to", str(tmp_path / "published")])
    released = tmp_path / "published" / NAME
    assert not (released / "pretraining").exists()
    assert "pretraining/" not in (released / "README.md").read_text()
    check(released)


# --------------------------------------------------------------------------- our own loop


def recipe_for(tmp_path, name="first", **keys):
    method = {"method": "byol", "options": OPTIONS, **keys.pop("stage", {})}
    train = {"steps": 1, "batch_size": 8, "optimizer": "sgd", "lr": 1e-6}
    return parse_recipe({
        "name": name, "backbone": "test_resnet", "output": str(tmp_path / name),
        "data": {"name": "drawn", "num_images": 8, "num_classes": 4, "image_size": 64},
        "stages": [{**method, "train": train}], "monitor": {"k": 3}, **keys,
    })  # fmt: skip


def exported_byol(folder):
    torch.manual_seed(9)
    method = create_method("byol", create_backbone("test_resnet", image_size=64), **OPTIONS)
    found = Pretraining("byol", OPTIONS, method.state_dict())
    export(method.backbone, folder, load_recipe(), {"rows": []}, found)


@pytest.mark.slow
def test_a_recipe_inherits_heads_and_teachers_of_its_init(tmp_path):
    exported_byol(tmp_path / "first" / "export")
    first = saved_state(str(tmp_path / "first"))
    goes_on = {"init": str(tmp_path / "first"), "seed": 5}
    pretrain(recipe_for(tmp_path, "all", stage={"inherit": ["all"]}, **goes_on))
    pretrain(recipe_for(tmp_path, "one", stage={"inherit": ["predictor"]}, **goes_on))
    everything, one = saved_state(str(tmp_path / "all")), saved_state(str(tmp_path / "one"))
    for key in first:
        if key.endswith("weight") and first[key].ndim > 1:  # a step of 1e-6 later
            torch.testing.assert_close(everything[key], first[key], rtol=0, atol=1e-4)
    assert torch.allclose(one["predictor.0.weight"], first["predictor.0.weight"], atol=1e-4)
    assert not torch.allclose(one["projector.0.weight"], first["projector.0.weight"], atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "init", "said"),
    [
        ({"inherit": ["predicter"]}, "first", "did you mean predictor"),
        ({"inherit": ["predictor"], "options": {"hidden_size": 8}}, "first", r"is \(16, 8\) in"),
        ({"inherit": ["projector"]}, "scratch", "scratch has no pretraining/"),
        ({"inherit": ["queue"], "method": "moco", "options": {}}, "first", "same module in both"),
    ],
)
def test_what_init_does_not_have_cannot_be_inherited(stage, init, said, tmp_path):
    exported_byol(tmp_path / "first" / "export")
    init = str(tmp_path / init) if init == "first" else init
    with pytest.raises(ValueError, match=said):
        pretrain(recipe_for(tmp_path, "next", init=init, stage=stage))


# --------------------------------------------------------------------------- feature maps


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_feature_maps_of_transformers_are_timms(name, tmp_path):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=64)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after a training
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    recipe = load_recipe(overrides=["data.image_size=64"])
    folder = export(backbone.eval(), tmp_path / "export", recipe, {"rows": []})
    config = TimmBackboneConfig(
        backbone=f"local-dir:{folder}", freeze_batch_norm_2d=True, out_indices=[1, 2]
    )
    model = AutoBackbone.from_config(config, pretrained=True).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found = model(pixels).feature_maps
        wanted = backbone.feature_maps(pixels, [1, 2])
    torch.testing.assert_close(list(found), wanted)
    assert model.channels == [m.shape[1] for m in wanted]
