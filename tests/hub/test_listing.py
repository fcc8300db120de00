"""`fgssl list`, `info` and `pull`: what there is, where it comes from, offline afterwards."""

import functools
import json
import shutil

import pytest
import timm
import torch
from huggingface_hub import constants
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

import fg_ssl_zoo.hf_pretraining  # noqa: F401
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.weights import locate as zoo
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import recipe_files
from fg_ssl_zoo.hub import listing
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.hub.pretraining import Pretraining, saved_state
from fg_ssl_zoo.methods import create_method
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import (
    NAME,
    RECIPE,
    RESULTS,
    exported,
    recipe_of,
    registered,
    write_recipes,
)

OTHER = "fgssl_tinier_cub.byol"
REPO = f"fg-ssl-zoo/{NAME}"
RECIPES = {NAME: RECIPE, OTHER: RECIPE}


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory):
    yield from registered(RECIPES, tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / NAME
    exported(folder)
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    files = write_recipes(tmp_path / "recipes", RECIPES)
    monkeypatch.setattr(listing, "recipe_files", lambda: files)
    monkeypatch.setattr("fg_ssl_zoo.config.files.recipe_files", lambda: files)
    with Hub() as server:
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        yield server


def table(capsys, *words):
    main(["list", "--json", *words])
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_a_row_says_what_a_model_is_and_where_it_would_come_from(model, hub, monkeypatch, capsys):
    row = table(capsys)[NAME]
    assert row["source"] == "nothing yet"
    assert [row[key] for key in ("knn", "linear", "bytes", "place")] == [None, None, None, ""]
    about = ("backbone", "method", "data", "init", "image_size")
    assert [row[key] for key in about] == ["test_resnet", "simclr", "cub", "scratch", 64]
    network = timm.create_model("test_resnet", num_classes=0)
    assert row["parameters"] == sum(p.numel() for p in network.parameters())
    hub.publish(REPO, model)
    row = table(capsys)[NAME]
    assert (row["source"], row["place"], row["knn"]) == ("Hub", REPO, 0.2549)
    assert table(capsys, "--offline")[NAME]["source"] == "nothing yet"
    main(["pull", NAME])
    row = table(capsys.readouterr() and capsys)[NAME]
    assert (row["source"], row["knn"]) == ("cache", 0.2549)
    assert row["bytes"] == (model / "model.safetensors").stat().st_size
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(model.parent))
    rows = table(capsys)
    assert (rows[NAME]["source"], rows[NAME]["place"]) == ("folder", str(model))
    assert rows[OTHER]["source"] == "nothing yet"


def test_the_table_is_for_people(model, hub, monkeypatch, capsys):
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(model.parent))
    main(["list"])
    shown = capsys.readouterr().out
    head, mine, _, title, other = shown.splitlines()
    assert title == "recipes without weights: 1 (--all shows them in the table)"
    assert other == f"accelerate launch train.py {OTHER}"
    main(["list", "--all"])
    assert len(capsys.readouterr().out.splitlines()) == 3
    columns = "name backbone method data init px params kNN linear MB from"
    assert head.split() == columns.split()
    assert mine.split()[:4] == [NAME, "test_resnet", "simclr", "cub"]
    assert mine.split()[-3:] == ["25.5%", "2", "folder"]


def test_one_question_is_asked_for_each_owner_and_none_offline(hub, monkeypatch, capsys):
    table(capsys)
    assert len([path for _, path in hub.log if path == "/api/models"]) == 2  # alive? and whose
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.log)
    assert table(capsys)[NAME]["source"] == "Hub did not answer"
    assert len(hub.log) == asked


def test_every_recipe_of_the_package_is_a_row(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    rows = table(capsys, "--offline")
    assert list(rows) == list(recipe_files())


def test_info_prints_the_card_from_wherever_it_is(model, hub, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["info", NAME])
    told = capsys.readouterr().err
    assert f"no card of {NAME}: {hub.url}/{REPO} (RepositoryNotFound" in told
    assert "There is no such repository, or HF_TOKEN may not read it" in told
    hub.publish(REPO, model)
    main(["info", NAME])
    assert capsys.readouterr().out.strip() == (model / "README.md").read_text().strip()
    main(["info", NAME, "--json"])
    about = json.loads(capsys.readouterr().out)
    assert about["card"]["license"] == "cc-by-nc-4.0"
    assert about["results"]["rows"][-1]["knn_top1"] == 0.2549
    assert not any(path.endswith("model.safetensors") for _, path in hub.log)
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(model.parent))
    main(["info", NAME, "--json"])
    assert json.loads(capsys.readouterr().out)["folder"] == str(model)


def test_what_was_pulled_loads_offline(model, hub, monkeypatch, capsys):
    hub.publish(REPO, model)
    main(["pull", NAME, "--json"])
    told = capsys.readouterr()
    ((name, folder),) = [(row["name"], row["folder"]) for row in json.loads(told.out)]
    assert name == NAME
    assert REPO.replace("/", "--") in folder
    assert "100%" in told.err  # the bar
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert timm.create_model(NAME, pretrained=True).num_features == 96
    main(["info", NAME])
    assert f"# {NAME}" in capsys.readouterr().out


def test_transformers_opens_what_was_pulled_and_goes_on_only_with_what_was_asked_for(
    hub, tmp_path, monkeypatch, capsys
):
    torch.manual_seed(0)
    method = create_method("simclr", create_backbone("test_resnet", image_size=64), hidden_size=8)
    state = Pretraining("simclr", {"hidden_size": 8}, method.state_dict())
    hub.publish(REPO, export(method.backbone, tmp_path / "whole", recipe_of(), RESULTS, state))
    main(["pull", NAME])
    offline = functools.partial(monkeypatch.setattr, constants, "HF_HUB_OFFLINE")
    offline(True)
    assert AutoModel.from_pretrained(REPO).timm_model.num_features == 96
    assert tuple(AutoImageProcessor.from_pretrained(REPO).data_config["input_size"]) == (3, 64, 64)
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        AutoModelForPreTraining.from_pretrained(REPO, subfolder="pretraining")
    offline(False)
    main(["pull", NAME, "--pretraining"])
    offline(True)
    again = AutoModelForPreTraining.from_pretrained(REPO, subfolder="pretraining")
    torch.testing.assert_close(again.method.state_dict(), method.state_dict(), rtol=0, atol=0)
    assert saved_state(NAME).keys() == method.state_dict().keys()


def test_what_was_published_without_its_training_is_said_to_be(model, hub, monkeypatch, capsys):
    hub.publish(REPO, model)
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(model.parent))
    main(["pull", NAME])  # the folder
    with pytest.raises(SystemExit):
        main(["pull", NAME, "--pretraining"])
    assert f"{REPO} was published without pretraining/" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["pull", "info"])
@pytest.mark.parametrize("name", ["fgssl_tinier_cub.simcrl", "../../etc", "a/b", "resnet50"])
def test_an_unknown_name_is_answered_with_the_nearest(hub, verb, name, capsys):
    with pytest.raises(SystemExit):
        main([verb, name])
    error = capsys.readouterr().err
    assert error.startswith(f"error: no model '{name}'")
    assert ("hf download" if "/" in name else "fgssl_") in error
    assert len(error.splitlines()) == 1
    assert hub.log == []


def test_a_changed_or_incomplete_repository_is_not_kept_as_good(model, hub, tmp_path, capsys):
    hub.publish(REPO, model)
    hub.corrupt.add("model.safetensors")
    with pytest.raises(SystemExit):
        main(["pull", NAME])
    assert "differs from the published file" in capsys.readouterr().err
    folder = shutil.copytree(model, tmp_path / "incomplete")
    (folder / "model.safetensors").unlink()
    hub.publish(f"fg-ssl-zoo/{OTHER}", folder)
    with pytest.raises(SystemExit):
        main(["pull", OTHER])
    assert "has no model.safetensors" in capsys.readouterr().err


def test_a_card_cannot_be_broken_by_the_words_in_it(tmp_path):
    from huggingface_hub import ModelCard

    wild = "x'\": [1]\n---\nlicense: mit\n# y | <script> `"
    recipe = recipe_of(hub={"license": "cc-by-nc-4.0", "tags": [wild]}, data={"name": "x | y"})
    exported(tmp_path / "model", recipe, papers=[wild], hardware=wild, reported=[wild])
    card = (tmp_path / "model" / "README.md").read_text()
    data = ModelCard(card).data
    assert data.license == "cc-by-nc-4.0"
    assert wild in data.tags
    body = card.split("\n---\n", 1)[1]
    assert "\n---\n" not in body
    assert "<script>" not in body
    assert "\nlicense: mit" not in body
