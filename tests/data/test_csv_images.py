"""Pictures listed in a CSV file: which are read, under which label, in which split."""

import json

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import data_of
from fg_ssl_zoo.data.datasets import all_splits, image_name, image_root, load_splits
from tests.data.flat_pictures import data, draw, paths


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        draw(tmp_path / "photos" / f"{number}.png", (number, 0, 0))
    draw(tmp_path / "other disk" / "9.png", (9, 0, 0))
    return tmp_path


def csv(folder, *lines, name="birds.csv"):
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def test_paths_labels_and_splits(photos):
    file = csv(
        photos,
        "label,path,split,rating",
        "jay,photos/1.png,train,5",
        f'"crow, black",{photos}/other disk/9.png,train,',
        "jay,photos/0.png,val,2",
    )
    train, test = load_splits(data(file))
    assert train.classes == test.classes == ["crow, black", "jay"]
    assert paths(train) == ["photos/1.png", f"{photos}/other disk/9.png"]
    assert [(s["image"][0, 0, 0], s["label"]) for s in (train[0], train[1], test[0])] == [
        (1, 1), (9, 0), (0, 1),
    ]  # fmt: skip
    assert (train.name, image_root(train), image_name(test, 0)) == (
        "birds", str(photos), "photos/0.png",
    )  # fmt: skip
    assert data_of([str(file)]).path == str(file)


def test_only_paths_are_unlabelled_training_pictures(photos):
    train, test = load_splits(data(csv(photos, "file_name", "photos/3.png", "photos/2.png")))
    assert (paths(train), train.labels, test) == (["photos/3.png", "photos/2.png"], None, None)


def test_labels_without_a_split_hold_out_a_fifth(photos):
    rows = [f"photos/{number}.png;{'ab'[number % 2]}" for number in range(6)]
    train, test = load_splits(data(csv(photos, "path;label", *rows)))
    assert (len(train), len(test), test.classes) == (4, 2, ["a", "b"])


def test_named_columns_and_is_valid(photos):
    file = csv(photos, "photo,species,is_valid", "photos/0.png,jay,False", "photos/1.png,jay,True")
    train, test = load_splits(data(file, columns={"image": "photo", "label": "species"}))
    assert (paths(train), paths(test), test.classes) == (
        ["photos/0.png"],
        ["photos/1.png"],
        ["jay"],
    )


def test_an_empty_label_makes_its_split_unlabelled(photos, caplog):
    rows = ["photos/0.png,jay,train", "photos/1.png,,test", "photos/2.png,jay,test"]
    file = csv(photos, "path,label,split", *rows)
    found = all_splits(data(file), hold_out=False)
    assert (found["train"].classes, found["test"].labels) == (["jay"], None)
    assert "birds.csv[test] is read as unlabelled: some labels are missing" in caplog.text


def test_part_masks_beside_the_file(photos):
    (photos / "parts.json").write_text(json.dumps({"1": "beak"}))
    (photos / "masks" / "photos").mkdir(parents=True)
    cv2.imwrite(str(photos / "masks" / "photos" / "0.png"), np.ones((6, 8), np.uint8))
    train, _ = load_splits(data(csv(photos, "path", "photos/0.png")))
    assert train.parts == ["beak"]
    assert train[0]["part_mask"].all()


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["picture,label", "photos/0.png,a"], {}, "has no column path, but picture,"),
        (["path", "photos/0.png"], {"columns": {"label": "species"}},
         r"data\.columns\.label: .*birds\.csv has no column 'species'"),
        (["path", "photos/0.png"], {"columns": {"labels": "x"}}, "unknown key 'labels'; known are"),
        (["path", "photos/0.png", "photos/8.png"], {},
         r"1 of 2 images of .*birds\.csv are not there, as photos/8\.png of line 3; paths start"),
        (["path", "photos/0.png", "photos/0.png"], {}, r"lists photos/0\.png twice"),
        (["path,label", "photos/0.png"], {}, r"line 2: 1 values, 2 are needed, and a path in"),
        (["path,split", "photos/0.png,"], {}, "line 2: split is ''; the name of a split is needed"),
        (["path,is_valid", "photos/0.png,maybe"], {}, "is_valid is 'maybe'; True or False"),
        (["path,split", "photos/0.png,fold1"], {"train_split": "fold2"},
         r"data\.train_split: .*birds\.csv has no split 'fold2'; did you mean fold1"),
        (["path,split", "photos/0.png,fold1"], {}, "has no split 'train'; known are fold1"),
        (["path"], {}, "lists no images"),
        ([""], {}, "has no column path"),
        (["path,label,split", "photos/0.png,a,train", "photos/1.png,b,test"], {},
         r"1 of the classes in .*birds\.csv\[test\] are not in .*birds\.csv\[train\]: b"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(photos, lines, options, message):
    with pytest.raises(ValueError, match=message) as error:
        load_splits(data(csv(photos, *lines), **options))
    assert "\n" not in str(error.value)
