import re

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


DRAWN, CUB = "fgssl_resnet18_drawn.simclr", "fgssl_resnet50_cub.simclr"


@pytest.mark.parametrize(
    ("recipe", "overrides", "name", "data"),
    [
        (DRAWN, ["data.path=photos"], "fgssl_resnet18_photos.simclr", "photos"),
        (DRAWN, ["data.path=x/photos/"], "fgssl_resnet18_photos.simclr", "photos"),
        (DRAWN, ["data={path: photos}"], "fgssl_resnet18_photos.simclr", "photos"),
        (DRAWN, ["data.path=a/My bird's (2)"], "fgssl_resnet18_My_bird_s_2.simclr", "My_bird_s_2"),
        (DRAWN, ["data.path=Möwen"], "fgssl_resnet18_Mowen.simclr", "Mowen"),
        (DRAWN, ["data.hub_id=me/gulls:small"], "fgssl_resnet18_gulls_small.simclr", "gulls_small"),
        (DRAWN, ["data.name=garden"], "fgssl_resnet18_garden.simclr", "garden"),
        (DRAWN, ["data.path=x", "data.name=my jay"], "fgssl_resnet18_my_jay.simclr", "my jay"),
        (CUB, ["data.path=photos"], "fgssl_resnet50_photos.simclr", "photos"),
        (CUB, ["data.path=CUB", "data.name=cub"], CUB, "cub"),  # says that these are the pictures
        (CUB, ["data.path=photos", "name=mine"], "mine", "photos"),
    ],
)  # fmt: skip
def test_other_pictures_have_their_own_name_and_no_licence_or_hash(recipe, overrides, name, data):
    changed = load_recipe(recipe, overrides)
    assert (changed.name, changed.data.name) == (name, data)
    assert (changed.hub.license, changed.hub.sha256, changed.hub.repo) == (None, None, None)
    again = parse_recipe(as_dict(changed))
    assert again == changed


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        (DRAWN, ["backbone_options={}"]),
        (CUB, ["data.train_split=test"]),
        (CUB, ["data.test_split=none"]),
        ("fgssl_vit_small_cub.dino", ["backbone=vit_small_patch32_224"]),
        (DRAWN, ["data.path=x/drawn"]),
        (DRAWN, ["data.path=x/cub", "backbone=resnet50"]),  # one of ours has that name
        (DRAWN, ["data.path=鳥"]),
    ],
)
def test_a_changed_recipe_never_has_a_published_name(recipe, overrides):
    changed = load_recipe(recipe, overrides)
    assert changed.name not in recipe_files()
    assert re.fullmatch(r"fgssl_[A-Za-z0-9_]+_[0-9a-f]{6}\.\w+", changed.name)
    assert changed.name == load_recipe(recipe, overrides).name
    assert (changed.hub.license, changed.hub.sha256) == (None, None)


def test_names_without_latin_letters_stay_apart():
    one, other = (load_recipe(overrides=[f"data.path={name}"]).name for name in ("鳥", "花"))
    assert one != other


def test_the_recipe_of_an_earlier_run_gives_its_name_to_no_other_pictures(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(load_recipe(overrides=["data.hub_id=me/gulls", "hub.license=mit"])))
    assert load_recipe(path).name == "fgssl_resnet18_gulls.simclr"
    changed = load_recipe(path, ["data.path=photos"])
    assert (changed.name, changed.hub.license) == ("fgssl_resnet18_photos.simclr", None)
    assert (changed.data.hub_id, changed.data.name) == (None, "photos")


def test_what_is_said_of_the_new_model_stays_and_other_training_keeps_the_licence():
    mine = load_recipe(overrides=["data.path=photos", "hub.license=mit", "hub.tags=[birds]"])
    assert (mine.hub.license, mine.hub.tags, mine.hub.sha256) == ("mit", ("birds",), None)
    longer = load_recipe(overrides=["stages[0].train.epochs=9"])
    assert (longer.name, longer.hub.license, longer.hub.sha256) == (DRAWN, "apache-2.0", None)
    assert load_recipe(overrides=["output=x"]).hub.sha256


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
