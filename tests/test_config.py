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
        (CUB, ["data.path=CUB", "data.name=cub"], CUB, "cub"),  # says that these are the images
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
    assert load_recipe(overrides=["data.num_workers=0"]).hub.sha256
    for override in ("data.num_images=50", "data.num_classes=5", "data.image_size=32"):
        assert load_recipe(overrides=[override]).hub.sha256 is None, override


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
        ("data.path=", "data.path: the value is empty; data.path=null unsets an optional key"),
        ("stages.0.options.temperature=", "the value is empty"),
        ("stages.0.train.steps=1:30", "stages[0].train.steps: should be a valid integer, got '1:"),
        ("stages.0.train.steps=1_000", "stages[0].train.steps: should be a valid integer"),
        ("stages.0.train.steps=1e400", "stages[0].train.steps: should be a valid integer"),
        ("stages.0.train.lr=yes", "stages[0].train.lr: should be a valid number, got 'yes'"),
        ("stages.0.train.lr=true", "stages[0].train.lr: should be a valid number, got 'true'"),
        ("stages.0.train.lr=inf", "stages[0].train.lr: should be a valid number, got 'inf'"),
        ("stages.0.train.lr=nan", "stages[0].train.lr: should be a valid number, got 'nan'"),
        ("stages.0.train.lr=1e400", "stages[0].train.lr: should be a finite number"),
        ("data.num_images=none", "data.num_images: should be a valid integer, got 'none'; null un"),
        ("overwrite=yes", "overwrite: should be true or false, got 'yes'"),
        ("output=a\0b", "output: should be text without a zero byte"),
        ("hub.tags=birds", "hub.tags: should be a list, as [a, b], got 'birds'"),
        ("hub.tags=[a] # b", "hub.tags: unexpected '# b' after '[a]'"),
        ("data={name: a, name: b}", "data, line 1: duplicate key 'name'"),
        ("backbone_options={a: &a [*a]}", "the anchor contains itself"),
        ("backbone_options={a: !!python/name:os.system }", "the tag"),
        ("backbone_options=" + "[" * 600, "nested too deeply"),
        ("backbone_options.a=yes", "backbone_options.a: 'yes' is ambiguous; write a decimal"),
        ("backbone_options.a=2024-01-01", "backbone_options.a: '2024-01-01' is ambiguous"),
        ("backbone_options.a=1:30", "backbone_options.a: '1:30' is ambiguous"),
        ("stages[-1].train.lr=1", "is not of the form path.to.key=value; a key is a word, and a"),
        ("data(path)=x", "is not of the form path.to.key=value"),
        ("int=3", "int: unknown key"),
        ("stages.0.train.float=1", "stages[0].train.float: unknown key"),
        ("name=../../evil", "name: should be the name of one file"),
        ("data.name=../../evil", "data.name: should be the name of one file"),
        ("backbone=a/b", "backbone: should be the name of one file"),
        ("data.crop_pct=1e-9", "data.crop_pct: should be greater than or equal to 0.1"),
        ("speed.threads=100000", "speed.threads: should be less than or equal to 1024"),
        ("data.num_workers=100000", "data.num_workers: should be less than or equal to 256"),
        ("data.image_size=100000", "data.image_size: should be less than or equal to 4096"),
    ],
)
def test_a_wrong_override_is_one_line_with_the_path(override, message):
    with pytest.raises(RecipeError) as raised:
        load_recipe(overrides=[override])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("data.path=My set #2", "data.path", "My set #2"),
        ("data.path=~", "data.path", "~"),
        ("data.path=&x", "data.path", "&x"),
        ("data.path=2024", "data.path", "2024"),
        ("data.path=[a] b", "data.path", "[a] b"),
        ("data.path='a'", "data.path", "'a'"),
        ("data.path=a=b\nc", "data.path", "a=b\nc"),
        ("data.path=caf\udce9", "data.path", "caf\udce9"),
        ("data.path=null", "data.path", None),
        ("data={path: 2024-01-01, name: on}", "data.name", "on"),
        ("data.columns={image: 010}", "data.columns.image", "010"),
        ("hub.tags=[2024, 1:30]", "hub.tags[1]", "1:30"),
        ("data.test_split=none", "data.test_split", "none"),
        ("data.num_images=null", "data.num_images", None),
        ("stages.0.train.steps=010", "stages[0].train.steps", 10),
        ("stages.0.train.lr=.5", "stages[0].train.lr", 0.5),
        ("stages.0.train.lr=+1e-4", "stages[0].train.lr", 1e-4),
        ("overwrite=True", "overwrite", True),
        ("speed.channels_last=auto", "speed.channels_last", "auto"),
        ("backbone_options.a=010", "backbone_options.a", 10),
        ("backbone_options.a=1e-4", "backbone_options.a", 1e-4),
        ("backbone_options.a=b #c", "backbone_options.a", "b #c"),
        ('backbone_options.a="010"', "backbone_options.a", "010"),
        ("backbone_options={a: [true, null, 'no']}", "backbone_options.a[2]", "no"),
    ],
)
def test_the_type_of_a_key_decides_what_a_value_means(override, key, value):
    recipe = load_recipe(overrides=[override])
    found = flatten(as_dict(recipe))[key]
    assert (type(found), found) == (type(value), value)
    assert parse_recipe(as_dict(recipe)) == recipe


def test_a_file_is_read_by_the_same_rule_and_written_so_that_it_reads_back(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "backbone: test_resnet\ndata: {name: 2024, path: ~/a, train_split: on, test_split: 1:30}\n"
        "backbone_options: {a: '1e-4', b: 'yes', c: 08, d: '~', e: 1e-3}\n"
        "stages: [{method: simclr, train: &x {lr: 1e-4}}, {method: simclr, train: {<<: *x}}]\n"
    )
    recipe = load_recipe(path, ["stages.0.train.lr=1"])
    data = recipe.data
    assert (data.name, data.path, data.train_split, data.test_split) == (
        "2024",
        "~/a",
        "on",
        "1:30",
    )
    assert [stage.train.lr for stage in recipe.stages] == [1, 1e-4]  # an alias is a copy
    assert recipe.backbone_options == {"a": "1e-4", "b": "yes", "c": 8, "d": "~", "e": 1e-3}
    path.write_text(to_yaml(recipe))
    assert load_recipe(path) == recipe


BOMB = "backbone_options: {a0: &a0 [1], " + ", ".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)
) + "}"  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed: 1\nseed: 2", r"line 4: duplicate key 'seed'"),
        (
            "data: {path: }",
            r"data.path: should be a list, .* or text.*, got nothing; null unsets it",
        ),
        ("? [a]\n: b", "a key is a word"),
        ("data: !!map {}", ""),
        ("seed: !!int 3", "the tag"),
        ("stages[0].train.lr: 1", r"stages\[0\]\.train\.lr: unknown key"),
        ("data: &a {columns: *a}", "the anchor contains itself"),
        (BOMB, "more than 100000 values"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"backbone: test_resnet\nstages: [{{method: simclr}}]\n{line}\n")
    if not message:
        assert load_recipe(path)
        return
    with pytest.raises(RecipeError, match=message) as raised:
        load_recipe(path)
    assert "\n" not in str(raised.value)


def test_a_tilde_is_the_home_folder_or_no_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_recipe(overrides=["output=~/x"]).folder == tmp_path / "x"
    (tmp_path / "mine.yaml").write_text("backbone: test_vit\nstages: [{method: simclr}]\n")
    assert load_recipe("~/mine.yaml").backbone == "test_vit"
    with pytest.raises(RecipeError, match="there is no home folder ~nobody-here"):
        _ = load_recipe(overrides=["output=~nobody-here/x"]).folder


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
