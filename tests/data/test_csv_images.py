"""Pictures listed in a CSV file: which are read, under which label, in which split."""

import json

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import data_of
from fg_ssl_zoo.data.datasets import (
    all_splits,
    fingerprint,
    image_name,
    image_root,
    load_splits,
)
from fg_ssl_zoo.data.inventory import differences, take
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
    assert paths(train) == [f"{photos}/other disk/9.png", "photos/1.png"]
    assert [(s["image"][0, 0, 0], s["label"]) for s in (train[0], train[1], test[0])] == [
        (9, 0), (1, 1), (0, 1),
    ]  # fmt: skip
    assert (train.name, image_root(train), image_name(test, 0)) == (
        "birds", str(photos), "photos/0.png",
    )  # fmt: skip
    assert data_of([str(file)]).path == str(file)


def test_only_paths_are_unlabelled_training_pictures(photos, caplog):
    train, test = load_splits(data(csv(photos, "file_name", "photos/3.png", "photos/2.png")))
    assert (paths(train), train.labels, test) == (["photos/2.png", "photos/3.png"], None, None)
    assert not caplog.records


def test_the_order_of_the_rows_does_not_matter(photos):
    rows = [f"photos/{number}.png,{'ab'[number % 2]}" for number in range(6)]
    found = [all_splits(data(csv(photos, "path,label", *order))) for order in (rows, rows[::-1])]
    assert not differences(*map(take, found))
    for split in ("train", "test"):
        before, after = (splits[split] for splits in found)
        assert fingerprint(before) == fingerprint(after)
        assert [before[i]["label"] for i in range(len(before))] == list(after.labels)


@pytest.mark.parametrize("header", ["path , label", "Path,LABEL", '"path", "label"'])
def test_spaces_and_capitals_make_no_other_columns_and_classes(photos, header):
    rows = ["photos/0.png,a ", "photos/1.png, a", " photos/2.png,b", 'photos/3.png, "b"']
    train, _ = load_splits(data(csv(photos, header, *rows), test_split="none"))
    assert (train.classes, train.labels.tolist()) == (["a", "b"], [0, 0, 1, 1])


def test_marks_in_other_columns_and_splits_that_are_not_used_change_nothing(photos):
    rows = [
        'photos/0.png,train,"Red" cardinal,jay', 'photos/1.png,train, 5" long,jay',
        '"photos/2.png" ,test,,jay', "photos/0.png,few_shot,again,jay",
    ]  # fmt: skip
    train, test = load_splits(data(csv(photos, "path,split,caption,label", *rows)))
    assert (paths(train), paths(test)) == (["photos/0.png", "photos/1.png"], ["photos/2.png"])


def test_an_exact_name_of_a_column_comes_first(photos):
    rows = ["photos/0.png,x,a", "photos/1.png,y,a"]
    train, _ = load_splits(data(csv(photos, "path,Label,label", *rows), test_split="none"))
    assert train.classes == ["a"]


def test_a_list_without_labels_names_its_columns(photos, caplog):
    train, _ = load_splits(data(csv(photos, "path,species,split", "photos/0.png,jay,train")))
    assert train.labels is None
    assert caplog.records[0].message.endswith(
        "birds.csv is read as unlabelled; its columns: path, species, split; name the one with "
        "labels by data.columns={label: NAME}"
    )


def test_other_columns_may_hold_several_lines(photos):
    train, _ = load_splits(data(csv(photos, "path,note", 'photos/0.png,"two', 'lines"')))
    assert paths(train) == ["photos/0.png"]


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
        (["path", "photos/0.png", "photos/0.png"], {},
         r"lists photos/0\.png twice, in lines 2 and 3; list it once"),
        (["path", "photos/1.png", "photos/0.png", "./photos//0.png"], {},
         r"lists \./photos//0\.png twice, in lines 3 and 4"),
        (["path,split", "photos/0.png,train", "photos/1.png,test", "photos/0.png,test"], {},
         r"lists photos/0\.png twice, in lines 2 and 4"),
        (["path,label,label", "photos/0.png,a,b"], {}, "has 2 columns 'label'; one is needed"),
        (["path,label", "photos/0.png,a", 'photos/1.png,"b', "photos/2.png,a"], {},
         r"birds\.csv, line 3: a quotation mark is not closed"),
        (["path,label", 'photos/0.png,"a', 'photos/1.png,"b', "photos/2.png,a"], {},
         r"birds\.csv, line 2: label holds a line break; is a quotation mark not closed\?"),
        (["path,label", '"photos/0.png,a', '"photos/1.png,b"'], {},
         "line 2: a quotation mark is not closed"),
        (["path,label", '"photos/0.png,a', 'photos/1.png"', "photos/2.png,a"], {},
         r"line 2: 1 values, 2 are needed, .*; is a quotation mark not closed\?"),
        (["path,label", 'photos/0.png,"a', 'photos/1.png,"', "photos/2.png,a"], {},
         r"birds\.csv, line 2: label holds a line break; is a quotation mark not closed\?"),
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


def test_a_path_is_listed_once_also_as_an_absolute_path(photos):
    file = csv(photos, "path", "photos/0.png", f"{photos}/photos/0.png")
    with pytest.raises(ValueError, match="twice, in lines 2 and 3"):
        load_splits(data(file))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_named(photos, encoding):
    text = "path\nphotos/0.png\n" if encoding == "utf-16" else "\ufeffpath\nphotos/0.png\n"
    (photos / "birds.csv").write_text(text, encoding=encoding)
    with pytest.raises(ValueError, match=r"data\.path: .*birds\.csv is UTF-16; save it as UTF-8$"):
        load_splits(data(photos / "birds.csv"))


def test_a_missing_file_names_the_nearest(photos):
    csv(photos / "photos", "path", "0.png")
    with pytest.raises(ValueError, match=r"there is no file .*bird\.csv: .*mean birds\.csv\?$"):
        load_splits(data(photos / "photos" / "bird.csv"))
    with pytest.raises(ValueError, match=r"there is no file .*photo/x\.csv: photo is not in .*"):
        load_splits(data(photos / "photo" / "x.csv"))
