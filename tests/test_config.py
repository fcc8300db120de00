import pytest
import yaml

from fg_ssl_zoo.config import (
    RecipeError,
    as_dict,
    find_recipe,
    flatten,
    load_recipe,
    nearest,
    parse_recipe,
    recipe_files,
    short_name,
    to_yaml,
)
from fg_ssl_zoo.methods import check_options


@pytest.mark.parametrize("name", recipe_files())
def test_every_recipe_loads_and_its_options_are_the_methods(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    for stage in recipe.stages:
        check_options(stage.method, stage.options)


@pytest.mark.parametrize("name", recipe_files())
def test_a_name_is_backbone_and_data_with_the_tag_behind(name):
    recipe = load_recipe(name)
    assert name.startswith(f"fgssl_{short_name(recipe.backbone)}_{recipe.data.name}.")


def test_a_recipe_survives_yaml_and_json():
    recipe = load_recipe(overrides=["stages[0].train.lr=1e-3", "hub.tags=[birds]"])
    assert parse_recipe(yaml.safe_load(to_yaml(recipe))) == recipe
    assert parse_recipe(as_dict(recipe)) == recipe


def test_both_spellings_of_a_list_item_reach_it():
    recipe = load_recipe(overrides=["stages[0].train.epochs=2", "stages.0.train.lr=1e-4"])
    assert (recipe.stages[0].train.epochs, recipe.stages[0].train.lr) == (2, 1e-4)


def test_overriding_backbone_or_data_renames_the_run():
    changed = load_recipe("fgssl_resnet50_cub.simclr", ["backbone=resnet18", "data.name=gulls"])
    assert changed.name == "fgssl_resnet18_gulls.simclr"
    named = load_recipe("fgssl_resnet50_cub.simclr", ["backbone=resnet18", "name=mine"])
    assert named.name == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bakbone=resnet18", "bakbone: unknown key; did you mean backbone"),
        ("data.imagesize=96", "data.imagesize: unknown key; did you mean image_size"),
        ("stages[0].trian.lr=1", "stages[0].trian: unknown key; did you mean train"),
        ("stages[0].train.epoch=2", "stages[0].train.epoch: unknown key; did you mean epochs?"),
        ("stages[0].train.epochs=many", "stages[0].train.epochs: should be a valid number"),
        ("stages[0].train.lr=-1", "stages[0].train.lr: should be greater than 0, got -1"),
        ("stages[0].train.steps=0", "stages[0].train.steps: should be greater than or equal to 1"),
        ("data.num_workers=few", "data.num_workers: should be a valid integer"),
        ("speed.precision=fp16", "speed.precision: should be 'auto', 'bf16' or 'fp32'"),
        ("stages[3].method=x", "stages[3].method: there is no item 3; the list has 1"),
        ("backbone.x=1", "backbone.x: backbone is a plain value and has no key x"),
        ("data.image_size=2", "data.image_size: should be greater than or equal to 16, got 2"),
        ("stages=[]", "stages: tuple should have at least 1 item"),
        ("epochs", "override 'epochs' is not of the form path.to.key=value"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_path(override, message):
    with pytest.raises(RecipeError) as raised:
        load_recipe(overrides=[override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("backbone: resnet18\n")
    with pytest.raises(RecipeError, match="stages: this key is missing"):
        load_recipe(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        load_recipe(path)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean fgssl_resnet50_cub\.simclr"):
        find_recipe("fgssl_resnet50_cub.simclar")


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("simclr", {"temprature": 0.1}, r"options\.temprature: unknown option of simclr; did you"),
        ("simclr", {"temperature": "warm"}, r"options\.temperature: should be a valid number"),
        ("simclr", {"pair": "gama"}, r"options\.pair: should be 'original', 'gamma', "),
        ("simcrl", {}, "unknown method 'simcrl'; did you mean simclr"),
    ],
)
def test_a_wrong_option_is_named(method, options, message):
    with pytest.raises(RecipeError, match=message):
        check_options(method, options)


def test_options_are_converted_by_annotation():
    assert check_options("simclr", {"temperature": "1e-1"}) == {"temperature": 0.1}


def test_flatten_names_every_leaf():
    content = {"a": 1, "b": [{"c": 2}, 3], "d": {}}
    assert flatten(content) == {"a": 1, "b[0].c": 2, "b[1]": 3, "d": {}}


def test_nearest_lists_what_there_is_when_nothing_is_near():
    assert nearest("zebra", ["simclr", "byol"]) == "; known are simclr, byol"
