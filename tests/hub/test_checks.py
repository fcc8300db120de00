"""What may not be published is refused, with the reason and what would be right."""

import json
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file

from fg_ssl_zoo.config import load_recipe, recipe_files
from fg_ssl_zoo.hub.checks import check, check_license, distance
from fg_ssl_zoo.hub.export import add_picture
from tests.tiny_zoo import exported, recipe_of


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "export"
    exported(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def edit(path, **keys):
    content = json.loads(path.read_text())
    content.update(keys)
    path.write_text(json.dumps(content))


def test_an_export_its_run_and_a_companions_export_are_fine(good, tmp_path):
    assert check(good).backbone.num_features == 96
    assert check(good.parent).folder == good
    companion = shutil.copytree(good, tmp_path / "export_discriminator")
    assert check(companion).folder == companion


def test_every_recipe_has_a_licence_that_its_pictures_allow():
    for name in recipe_files():
        check_license(load_recipe(name))


@pytest.mark.parametrize(
    ("hub", "message"),
    [
        ({}, r"hub.license is missing \(the images of cub: non-commercial.*choose one with --li"),
        ({"license": "apache-2.0"}, r"apache-2.0 allows commercial use .*; use cc-by-nc-4.0"),
        ({"license": "GPL 3"}, "is no SPDX name"),
        ({"license": "mit\ntags: [x]"}, "is no SPDX name"),
    ],
)
def test_the_licence_follows_the_pictures_and_is_never_a_default(hub, message):
    with pytest.raises(ValueError, match=message):
        check_license(recipe_of(hub=hub))
    check_license(recipe_of(hub={"license": "mit"}, data={"name": "mine"}))


def test_other_pictures_do_not_inherit_the_licence_of_a_recipe():
    drawn = "fgssl_resnet18_drawn.simclr"
    assert load_recipe(drawn, ["seed=3"]).hub.license == "apache-2.0"
    garden = load_recipe(drawn, ["data.path=photos", "data.name=garden"])
    with pytest.raises(ValueError, match=r"missing \(the images of garden: terms unknown to us"):
        check_license(garden)
    check_license(load_recipe(drawn, ["data.name=garden", "hub.license=mit"]))
    mine = ["data.path=CUB_200_2011", "data.name=cub"]
    with pytest.raises(ValueError, match=r"missing \(the images of cub: non-commercial"):
        check_license(load_recipe("fgssl_resnet50_cub.simclr", mine))


def test_a_licence_can_be_chosen_when_it_is_published(tmp_path):
    exported(tmp_path / "model", recipe_of(hub={}))
    with pytest.raises(ValueError, match=r"hub.license is missing"):
        check(tmp_path / "model")
    assert check(tmp_path / "model", "cc-by-nc-sa-4.0").recipe.hub.license == "cc-by-nc-sa-4.0"


def test_results_without_their_protocol_are_refused(folder):
    edit(folder / "results.json", protocol={})
    with pytest.raises(ValueError, match="lacks the protocol of knn"):
        check(folder)
    edit(folder / "results.json", rows=[], protocol={})
    with pytest.raises(ValueError, match="lacks the protocol of its scores"):
        check(folder)


def test_features_that_are_not_the_trained_ones_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    for value in weights.values():
        if value.ndim == 1:  # the norms
            value.mul_(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has other features than the trained network"):
        check(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_features": 95}, "the network has 96 features, config.json says 95"),
        ({"model_args": {"global_pool": "max"}}, "has other features than the trained network"),
        ({"architecture": "test_resnet2"}, "timm knows no 'test_resnet2'"),
        ({"model_args": {"channels": [16, 24, 24, 48]}}, "the backbone is not a stock test_resnet"),
        ({"trace": None}, "has other features"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(folder, config, message):
    edit(folder / "config.json", **config)
    with pytest.raises(ValueError, match=message):
        check(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "model.safetensors is broken"),
        ("model.safetensors", b"\x10" + 7 * b"\0" + b"{}", "model.safetensors is broken"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "`git lfs pull`"),
        ("results.json", b'{"rows": [', r"results.json is not JSON .*; export the run again"),
        ("results.json", b"[]", "results.json is not a JSON object"),
        ("recipe.yaml", b"backbone: [", "recipe.yaml"),
        ("config.json", b"{", "config.json is no timm config"),
        ("README.md", b"\xff\xfe", "README.md"),
    ],
)
def test_a_broken_file_is_named(folder, file, content, message):
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        check(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    next(value for value in weights.values() if value.ndim == 4)[0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        check(folder)


def test_nothing_but_an_export_leaves_the_machine(folder, tmp_path):
    (folder / ".env").write_text("secret")
    with pytest.raises(ValueError, match=r"holds \.env, which no export writes"):
        check(folder)
    (folder / ".env").unlink()
    (tmp_path / "private.png").write_text("secret")
    (folder / "picture.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(ValueError, match=r"picture.png is a link or a folder"):
        check(folder)
    (folder / "picture.png").unlink()
    edit(folder / "results.json", note="hf_" + "a" * 34)
    with pytest.raises(
        ValueError, match=r"results.json, line 1: this looks like an access token"
    ) as e:
        check(folder)
    assert "aaaa" not in str(e.value)


@pytest.mark.parametrize("name", ["../../escape", "a/b", "..", "a..b", "x\ny", "", "-x"])
def test_a_name_that_would_leave_its_folder_is_refused(folder, name):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "name": name}))
    with pytest.raises(
        ValueError,
        match=r"cannot name a repository|name: should be the name of one file|name: should be text",
    ):
        check(folder)


def test_a_card_with_another_licence_or_header_is_refused(folder):
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("license: cc-by-nc-4.0", "license: mit"))
    with pytest.raises(ValueError, match=r"says license mit, recipe.yaml says cc-by-nc-4.0"):
        check(folder)
    (folder / "README.md").write_text("---\n- a list\n---\n")
    with pytest.raises(ValueError, match="the Hub cannot read its header"):
        check(folder)
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"lacks README.md"):
        check(folder)


def test_a_picture_is_shown_on_the_card(folder, tmp_path):
    png = tmp_path / "parts.png"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 10)
    add_picture(folder, png, "Its parts | on\nten birds")
    assert "![Its parts / on ten birds](picture.png)" in (folder / "README.md").read_text()
    assert check(folder).results["picture"]
    png.write_bytes(b"<svg/>")
    with pytest.raises(ValueError, match="is not a PNG"):
        add_picture(folder, png, "")


def test_distance_is_relative_and_infinite_for_what_is_no_trace():
    assert distance([1.0, 1.0], [1.0, 1.0]) == 0
    assert distance([3.0, 4.0], [3.0, 5.0]) == pytest.approx(1 / 34**0.5)
    assert distance([1.0], [1.0, 1.0]) == distance([1.0], ["x"]) == distance([1e400], [1.0]) > 1e9
