"""Several sources as one: labels, names, weights, and what a run says of them."""

import json

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import Data, RecipeError, load_recipe, parse, to_yaml
from fg_ssl_zoo.data.combine import Mixture
from fg_ssl_zoo.data.datasets import (
    file_state,
    fingerprint,
    image_name,
    image_root,
    load_splits,
    without_masks,
)
from fg_ssl_zoo.data.inventory import differences, take
from fg_ssl_zoo.data.order import groups_of, order_of
from tests.data.flat_pictures import draw, draw_classes
from tests.data.test_shards import tar


@pytest.fixture
def three(tmp_path):
    """A folder with both splits, a folder with one class of its own, and tar files."""
    draw_classes(tmp_path / "birds" / "train", num_images=4)
    draw_classes(tmp_path / "birds" / "test", num_images=2)
    draw_classes(tmp_path / "more" / "train", num_images=3, classes=("jay", "wren"))
    draw_classes(tmp_path / "more" / "test", num_images=1, classes=("wren",))
    tar(tmp_path / "web" / "0.tar", {"0.png": 100, "1.png": 101})
    return tmp_path


def mixed(*paths, **options):
    plain = [path if isinstance(path, dict) else str(path) for path in paths]
    return parse(Data, {"path": plain, **options})


def test_classes_of_one_name_are_one_class(three):
    chosen = mixed(three / "birds", {"path": str(three / "more"), "weight": 0.5})
    train, test = load_splits(chosen)
    assert (chosen.name, train.name) == ("birds_more", "birds_more")
    assert train.classes == test.classes == ["crow", "jay", "wren"]
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [1] * 3 + [2] * 3
    assert test.labels.tolist() == [0, 0, 1, 1, 2]
    assert [train[i]["label"] for i in (0, 13, -1)] == [0, 2, 2]
    assert [train[i]["index"] for i in (0, 13, -1)] == [0, 13, 13]
    np.testing.assert_array_equal(train[12]["image"], train.sources[1][4]["image"])
    assert image_name(train, 8) == "more/train/jay/0.png"
    assert image_root(train) is None
    assert [(g.count, g.weight) for g in groups_of(train)] == [(8, 1), (6, 0.5)]
    assert order_of(train, 11, 0).steps_per_epoch == 1


def test_an_unlabelled_source_makes_the_mixture_unlabelled(three):
    train, test = load_splits(mixed(three / "birds", three / "web"))
    assert (len(train), train.labels, train.classes, test) == (10, None, [], None)
    assert "label" not in train[0]
    assert image_name(train, 9) == "web/0.tar/1.png"
    limited, _ = load_splits(mixed(three / "birds", three / "web", num_images=9))
    assert (len(limited), len(groups_of(limited))) == (9, 2)


def test_an_unlabelled_source_means_that_nothing_is_held_out(tmp_path, caplog):
    draw_classes(tmp_path / "birds", num_images=10)
    draw(tmp_path / "web" / "0.png")
    train, test = load_splits(mixed(tmp_path / "birds", tmp_path / "web"))
    assert (len(train), test) == (21, None)
    assert [record.message for record in caplog.records] == [
        "birds_web is read without labels and without labelled test images, since these sources "
        "have no labels: web"
    ]
    both = mixed(tmp_path / "birds", tmp_path / "birds")
    assert list(map(len, load_splits(both))) == [32, 8]


def test_the_list_of_a_mixture_follows_its_files(three):
    train, _ = load_splits(mixed(three / "birds", three / "web"))
    prints = fingerprint(train), file_state(train)
    before = take({"train": train})
    assert [entry.name for entry in before["train"]][-1] == "web/0.tar/1.png"
    draw(three / "birds" / "train" / "jay" / "0.png", (9, 9, 9), size=(20, 20))
    train, _ = load_splits(mixed(three / "birds", three / "web"))
    assert all(a != b for a, b in zip(prints, (fingerprint(train), file_state(train)), strict=True))
    assert differences(before, take({"train": train})).changed == ["birds/train/jay/0.png"]


def test_part_masks_are_those_of_sources_with_the_same_parts(tmp_path):
    for name in ("a", "b"):
        draw(tmp_path / name / "0.png")
        (tmp_path / name / "parts.json").write_text(json.dumps({"1": "beak"}))
        (tmp_path / name / "masks").mkdir()
        cv2.imwrite(str(tmp_path / name / "masks" / "0.png"), np.ones((6, 8), np.uint8))
    draw(tmp_path / "c" / "0.png")
    train, _ = load_splits(mixed(tmp_path / "a", tmp_path / "b"))
    assert train.parts == ["beak"]
    assert train[1]["part_mask"].all()
    assert set(take({"train": train})) == {"train", "train masks"}
    assert "part_mask" not in without_masks(train)[1]
    other, _ = load_splits(mixed(tmp_path / "a", tmp_path / "c"))
    assert (other.parts, set(other[0])) == ([], {"image", "index"})


def test_sources_of_one_name_are_told_apart(three):
    draw(three / "other" / "birds" / "1.png")
    train, _ = load_splits(mixed(three / "birds", three / "other" / "birds"))
    assert isinstance(train, Mixture)
    assert [source.name for source in train.sources] == ["birds", "birds_2"]


def test_a_name_made_unique_is_not_that_of_another_source(three):
    places = [three / "x" / "birds_3", three / "x" / "birds", three / "y" / "birds"]
    for place in places:
        draw(place / "1.png")
    train, _ = load_splits(mixed(*places))
    assert isinstance(train, Mixture)
    assert [source.name for source in train.sources] == ["birds_3", "birds", "birds_4"]


def test_a_recipe_with_a_list(three, monkeypatch):
    monkeypatch.chdir(three)
    recipe = load_recipe(overrides=["data.path=[birds, {path: more, weight: 2}]"])
    assert recipe.name == "fgssl_resnet18_birds_more.simclr"
    assert [(s.path, s.weight) for s in recipe.data.sources] == [("birds", 1.0), ("more", 2.0)]
    (three / "r.yaml").write_text(to_yaml(recipe))
    assert load_recipe(three / "r.yaml") == recipe
    assert load_recipe(three / "r.yaml", ["data.path[1].weight=3"]).data.sources[1].weight == 3


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("[birds, {path: more, weight: 0}]", r"data\.path\[1\]\.weight: should be greater than 0"),
        ("[birds, {path: more, weight: -1}]", r"data\.path\[1\]\.weight: should be greater than"),
        ("[birds, {weight: 1}]", r"data\.path\[1\]\.path: this key is missing"),
        ("[]", r"data\.path: .*at least 1 item"),
        (
            "[birds, {path: more, share: 1}]",
            r"data\.path\[1\]\.share: unknown key",
        ),
    ],
)
def test_a_wrong_list_is_one_line(path, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(overrides=[f"data.path={path}"])


def test_a_source_has_columns_and_splits_of_its_own(tmp_path):
    for name, value in (("0", 1), ("1", 2), ("2", 3)):
        draw(tmp_path / f"{name}.png", (value, 0, 0))
    rows = ["file,species,part", "0.png,crow,old", "1.png,jay,new", "2.png,jay,test"]
    (tmp_path / "birds.csv").write_text("\n".join(rows))
    tar(tmp_path / "web" / "0.tar", {"jay/3.png": 4, "jay/4.png": 5})
    columns = {"image": "file", "label": "species", "split": "part"}
    birds = {"path": str(tmp_path / "birds.csv"), "columns": columns, "train_split": "new"}
    web = {"path": str(tmp_path / "web"), "test_split": "none"}
    train, test = load_splits(mixed(birds, web, columns={"label": "folder"}))
    assert (len(train), train.classes) == (3, ["jay"])
    assert [image_name(train, 0), len(test)] == ["birds/1.png", 1]


def test_a_missing_source_is_named(three):
    with pytest.raises(ValueError, match=r"there is no folder .*gone"):
        load_splits(mixed(three / "birds", three / "gone"))
