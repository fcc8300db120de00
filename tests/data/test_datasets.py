"""Folders of every shape, drawn here; which images, which labels, which split, which error."""

import json
import logging
import os
import random

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.data.datasets import (
    all_splits,
    image_root,
    load_images,
    load_splits,
)
from fg_ssl_zoo.data.listing import list_images, natural
from fg_ssl_zoo.data.part_annotations import read_points
from fg_ssl_zoo.data.sample import CorruptImage
from tests.data.flat_pictures import data, draw, draw_classes, paths

# --------------------------------------------------------------------------- shapes of folders


def test_split_folders_with_classes(tmp_path):
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test", num_images=2)
    train, test = load_splits(data(tmp_path, name="corvids"))
    assert (train.name, train.classes, len(train), len(test)) == ("corvids", ["crow", "jay"], 10, 4)
    np.testing.assert_array_equal(train.labels, [0] * 5 + [1] * 5)
    np.testing.assert_array_equal(test.labels, [0, 0, 1, 1])
    sample = train[7]
    assert (sample["index"], sample["label"]) == (7, 1)
    np.testing.assert_array_equal(sample["image"], np.full((6, 8, 3), (2, 0, 3)))
    assert set(sample) == {"image", "index", "label"}


def test_all_splits_hold_nothing_out_unless_asked(tmp_path):
    draw_classes(tmp_path)
    held = all_splits(data(tmp_path))
    assert {split: len(images) for split, images in held.items()} == {"train": 8, "test": 2}
    (whole,) = all_splits(data(tmp_path), hold_out=False).values()
    assert paths(whole)[:2] == ["crow/0.png", "crow/1.png"]
    assert (len(whole), image_root(whole)) == (10, str(tmp_path))
    assert image_root(held["test"]) == str(tmp_path)


@pytest.mark.parametrize("name", ["val", "Valid", "validation", "Test"])
def test_other_names_of_the_test_folder(tmp_path, name):
    draw_classes(tmp_path / "Train")
    draw_classes(tmp_path / name, num_images=1)
    _, test = load_splits(data(tmp_path))
    assert paths(test) == [f"{name}/crow/0.png", f"{name}/jay/0.png"]


def test_test_labels_are_numbers_of_the_training_classes(tmp_path):
    draw_classes(tmp_path / "train", classes=("c10", "c9", "c1"))
    draw_classes(tmp_path / "test", num_images=1, classes=("c10", "c9"))
    train, test = load_splits(data(tmp_path))
    assert train.classes == test.classes == ["c1", "c9", "c10"]
    np.testing.assert_array_equal(test.labels, [1, 2])


def test_class_folders_without_splits_hold_out_a_fifth(tmp_path, caplog):
    draw_classes(tmp_path, num_images=10)
    train, test = load_splits(data(tmp_path))
    assert (len(train), len(test)) == (16, 4)
    np.testing.assert_array_equal(np.bincount(test.labels), [2, 2])
    assert set(paths(train)).isdisjoint(paths(test))
    assert "held out" in caplog.text
    assert [test[i]["index"] for i in range(4)] == [0, 1, 2, 3]
    everything, none = load_splits(data(tmp_path, test_split="none"))
    assert (len(everything), none) == (20, None)


def test_classes_of_one_picture_give_none_up_for_a_test(tmp_path, caplog):
    draw_classes(tmp_path, num_images=1)
    train, test = load_splits(data(tmp_path))
    assert (paths(train), test) == (["crow/0.png", "jay/0.png"], None)
    assert "no class has two images of different names, so that none is held out" in caplog.text


@pytest.mark.parametrize(
    "names", [["9.png", "10.png"], ["2021/05/a.png", "2022/b/9.png", "2022/b/10.png"]]
)
def test_flat_and_nested_folders_are_unlabelled(tmp_path, names):
    for name in reversed(names):
        draw(tmp_path / "photos" / name)
    train, test = load_splits(data(tmp_path / "photos"))
    assert paths(train) == names
    assert (train.labels, train.classes, train.name, test) == (None, [], "photos", None)
    assert set(train[0]) == {"image", "index"}
    with pytest.raises(ValueError, match="no test images"):
        load_images(data(tmp_path / "photos"), "test")


def test_pictures_beside_class_folders_make_all_unlabelled(tmp_path, caplog):
    draw_classes(tmp_path, num_images=2)
    draw(tmp_path / "preview.png")
    train, test = load_splits(data(tmp_path))
    assert (len(train), train.labels, test) == (5, None, None)
    assert "1 images are beside its folders (preview.png, ...)" in caplog.text


def test_subfolders_belong_to_their_class_folder(tmp_path):
    draw_classes(tmp_path)
    draw(tmp_path / "jay" / "winter" / "0.png")
    train = load_images(data(tmp_path, test_split="none"), "train")
    assert paths(train)[-1] == "jay/winter/0.png"
    assert train.labels[-1] == 1


def test_an_unlabelled_test_folder_is_kept_for_other_judges(tmp_path):
    draw(tmp_path / "train" / "a.png")
    draw(tmp_path / "test" / "b.png")
    assert load_splits(data(tmp_path))[1] is None
    assert paths(load_images(data(tmp_path), "test")) == ["test/b.png"]


def test_what_is_no_picture_of_the_set_is_passed_over(tmp_path):
    draw_classes(tmp_path / "set" / "train", num_images=1)
    for name in ("README.md", "train/crow/.hidden.png", "train/crow/notes.txt", ".git/x.png"):
        (tmp_path / "set" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"x")
    draw(tmp_path / "set" / "__MACOSX" / "train" / "x.png")
    draw(tmp_path / "set" / "train" / "jay" / "B.PNG.png").rename(
        tmp_path / "set" / "train" / "jay" / "B.PNG"
    )
    train = load_images(data(tmp_path, test_split="none"), "train")  # the only folder is opened too
    assert paths(train) == ["train/crow/0.png", "train/jay/0.png", "train/jay/B.PNG"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    draw(tmp_path / "far" / "1.png")
    draw(tmp_path / "root" / "a" / "0.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a" / "gone.png").symlink_to(tmp_path / "nothing.png")
    listing = list_images(tmp_path / "root")
    assert [*listing.paths] == ["a/0.png", "b/1.png"]
    assert listing.others == {"broken links": 1}


def test_a_link_to_itself_is_a_broken_link(tmp_path, caplog):
    draw_classes(tmp_path / "train")
    for link in (tmp_path / "x", tmp_path / "train" / "jay" / "x", tmp_path / "train" / "y.jpg"):
        link.symlink_to(link)
    train = load_images(data(tmp_path, test_split="none"), "train")
    assert "2 broken links" in caplog.text
    assert not any("x" in path or "y.jpg" in path for path in map(os.path.basename, train.paths))
    assert train.labels is not None


def test_natural_order_equals_comparing_numbers_as_numbers():
    expected = ["1.png", "2.png", "02b.png", "9.png", "010.png", "A1.png", "a2.png", "b.png"]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled, key=natural) == expected


@pytest.mark.parametrize("name", ["train", "Test", "validation"])
def test_a_class_that_is_called_like_a_split_is_a_class(tmp_path, caplog, name):
    draw_classes(tmp_path, num_images=3, classes=("bus", "car", name))
    train = load_images(data(tmp_path, test_split="none"), "train")
    assert (sorted(train.classes), len(train)) == (sorted(["bus", "car", name]), 9)
    assert f"{name}/ is read as a class beside bus/" in caplog.text


def test_splits_stay_splits_and_what_is_in_none_is_named(tmp_path, caplog):
    for folder in ("train", "test"):
        draw(tmp_path / folder / "0.png")
    draw_classes(tmp_path / "extra", num_images=1)
    (tmp_path / "docs").mkdir()
    images = all_splits(data(tmp_path))
    assert [paths(split) for split in images.values()] == [["train/0.png"], ["test/0.png"]]
    assert "the images in extra/ are not used" in caplog.text


def test_a_test_folder_with_one_of_the_classes_is_used(tmp_path, caplog):
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test", num_images=3, classes=("jay",))
    train, test = load_splits(data(tmp_path))
    assert (len(train), paths(test)) == (10, [f"test/jay/{i}.png" for i in range(3)])
    np.testing.assert_array_equal(test.labels, [1, 1, 1])
    assert "test has test images of 1 of 2 classes; none of crow" in caplog.text
    assert "held out" not in caplog.text


def test_a_test_folder_whose_only_folder_is_no_class_is_named(tmp_path, caplog):
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test", num_images=1, classes=("Jay",))
    load_splits(data(tmp_path))
    assert "test is read as unlabelled: its only folder, Jay, is no class" in caplog.text
    assert "did you mean jay?" in caplog.text


def test_files_that_are_left_out_are_counted_by_suffix(tmp_path, caplog):
    draw_classes(tmp_path / "train", num_images=1)
    for i, name in enumerate(("a.HEIC", "b.heic", "c", "d.txt")):
        (tmp_path / "train" / ("crow", "jay")[i % 2] / name).write_text("x")
    load_splits(data(tmp_path, test_split="none"))
    assert "train: 2 images; not read: 2 .heic, 1 without a suffix, 1 .txt" in caplog.text
    assert len(caplog.records) == 1


def test_both_unicode_forms_of_a_name_are_one_class(tmp_path):
    composed, decomposed = "M\u00fcller", "Mu\u0308ller"
    draw_classes(tmp_path / "train", num_images=1, classes=("a", composed, decomposed))
    draw_classes(tmp_path / "test", num_images=1, classes=("a", decomposed))
    (tmp_path / "parts.csv").write_text(
        f"file,eye_x,eye_y,eye_visible\ntest/{composed}/0.png,0.5,0.5,1\n"
    )
    train, test = load_splits(data(tmp_path))
    assert train.classes == test.classes == ["a", composed]
    np.testing.assert_array_equal(np.bincount(train.labels), [1, 2])
    np.testing.assert_array_equal(test.labels, [0, 1])
    np.testing.assert_array_equal(test[1]["keypoints"], [[0.5, 0.5, 1]])


@pytest.mark.parametrize("junk", ["@eaDir", "__MACOSX", "#recycle", "lost+found"])
def test_folders_of_systems_are_no_classes(tmp_path, junk):
    draw_classes(tmp_path, num_images=1, classes=("crow", "jay", junk, f"crow/{junk}"))
    train = load_images(data(tmp_path, test_split="none"), "train")
    assert (train.classes, len(train)) == (["crow", "jay"], 2)


def test_num_images_below_the_classes_names_those_that_are_gone(tmp_path, caplog):
    draw_classes(tmp_path / "train", num_images=2, classes=("a", "b", "c"))
    draw_classes(tmp_path / "test", num_images=1, classes=("a", "b", "c"))
    train, _ = load_splits(data(tmp_path, num_images=2))
    (gone,) = {0, 1, 2} - set(train.labels.tolist())
    assert f"num_images=2 leaves 1 of 3 classes without an image: {'abc'[gone]}" in caplog.text


# --------------------------------------------------------------------------- notes beside images


def test_keypoints_of_parts_csv(tmp_path):
    draw_classes(tmp_path / "train", num_images=1)
    (tmp_path / "parts.csv").write_text(
        "file,box_x,beak_x,beak_y,beak_visible,tail_x,tail_y,tail_visible\n"
        "train/jay/0.png,7,0.25,0.5,1,,,0\n"
    )
    train = load_images(data(tmp_path, test_split="none"), "train")
    assert train.keypoints == ["beak", "tail"]
    np.testing.assert_array_equal(train[0]["keypoints"], np.zeros((2, 3)))
    np.testing.assert_array_equal(train[1]["keypoints"], [[0.25, 0.5, 1], [0, 0, 0]])
    (tmp_path / "parts.csv").write_text("file,beak_x,beak_y,beak_visible\ntrain/jay/0.png,?,1,1\n")
    with pytest.raises(ValueError, match=r"parts.csv, line 2: beak needs"):
        load_splits(data(tmp_path))


@pytest.mark.parametrize("separator", [";", "\t"])
def test_parts_csv_with_another_separator_is_read(tmp_path, separator):
    draw_classes(tmp_path / "train", num_images=1)
    text = "file,beak_x,beak_y,beak_visible\ntrain/jay/0.png,0.25,0.5,1\n"
    (tmp_path / "parts.csv").write_text(text.replace(",", separator))
    train = load_images(data(tmp_path, test_split="none"), "train")
    np.testing.assert_array_equal(train[1]["keypoints"], [[0.25, 0.5, 1]])


ROWS = "file,a_x,a_y,a_visible\ntrain/jay/0.png,0.5,0.5,1\n"


@pytest.mark.parametrize(
    "text",
    [
        "file,a_x,a_y,a_visible\ntrain/jay/0.png,0.5,0.25,1,\n",
        "file,a_x,a_y,a_visible,,\ntrain/jay/0.png,0.5,0.25,1\n",
        "file,a_x,a_y,a_visible,note\ntrain/jay/0.png,0.5,0.25,1\n",
        "file,a_x,a_y,a_visible, , \ntrain/jay/0.png,0.5,0.25,1\n\n",
    ],
)
def test_a_row_of_parts_may_lack_or_add_what_is_empty(tmp_path, text):
    (tmp_path / "parts.csv").write_text(text)
    points = read_points(tmp_path, ["train/jay/0.png"])
    assert (points.names, points.rows[0].tolist()) == (["a"], [[0.5, 0.25, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,beak_x,beak_y,beak_visible\n", "has no column file; its first line is file,NAME_x"),
        ("file,beak_x,beak_visible\n", "has no column beak_y"),
        ("file,box_x\n", "names no keypoint"),
        ("", "names no keypoint|has no column file"),
        ("f\0ile,a_x,a_y,a_visible\n", "has no column file"),
        ("file,a_x,a_y,a_visible,a_x\n", "has two columns a_x; remove one"),
        (ROWS + "train/jay/0.png,0,0\n", "line 3: no value of a_visible; the row is shorter"),
        (ROWS + "train/jay/0.png,0,0,1,1\n", "line 3: '1' stands behind the last column"),
        (ROWS + "train/jay/0.png,0,1,1\n", "line 3: train/jay/0.png is listed before with other"),
    ],
)
def test_a_parts_csv_that_cannot_be_read_is_refused(tmp_path, text, message):
    draw_classes(tmp_path / "train", num_images=1)
    (tmp_path / "parts.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_splits(data(tmp_path, test_split="none"))
    assert "\n" not in str(error.value)


def test_a_line_of_parts_csv_that_is_repeated_changes_nothing(tmp_path):
    draw_classes(tmp_path / "train", num_images=1)
    (tmp_path / "parts.csv").write_text(ROWS + ROWS.splitlines()[1] + "\n\n")
    train = load_images(data(tmp_path, test_split="none"), "train")
    np.testing.assert_array_equal(train[1]["keypoints"], [[0.5, 0.5, 1]])


def test_part_masks(tmp_path):
    draw(tmp_path / "train" / "a.jpg")
    (tmp_path / "parts.json").write_text(json.dumps({"0": "background", "1": "hood", "3": "door"}))
    mask = np.arange(48, dtype=np.uint8).reshape(6, 8) % 4
    (tmp_path / "masks" / "train").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "train" / "a.png"), mask)
    train, _ = load_splits(data(tmp_path))
    assert train.parts == ["hood", "part2", "door"]
    np.testing.assert_array_equal(train[0]["part_mask"], mask)
    cv2.imwrite(str(tmp_path / "masks" / "train" / "a.png"), mask[:5])
    with pytest.raises(CorruptImage, match=r"\(5, 8\); the image needs uint8 \(6, 8\)"):
        train[0]
    draw(tmp_path / "train" / "b.jpg")
    with pytest.raises(ValueError, match=r"1 of 2 images have no mask, as .*b\.png"):
        load_splits(data(tmp_path))


OFFICIAL = {
    "images.txt": "{0} a.Crow/x.png\n{1} b.Jay/y.png\n{2} b.Jay/z.png\n",
    "train_test_split.txt": "{0} 1\n{1} 1\n{2} 0\n",
    "image_class_labels.txt": "{0} 3\n{1} 17\n{2} 17\n",
    "classes.txt": "3 a.Crow\n5 Birds without images\n17 Blue Jay (male)\n",
    "bounding_boxes.txt": "{0} 1.0 2.0 3.0 4.0\n{1} 0 0 8 6\n{2} 1 1 2 2\n",
    "parts/parts.txt": "1 beak\n2 left eye\n",
    "parts/part_locs.txt": "{0} 1 2.0 3.0 1\n{0} 2 0.0 0.0 0\n{1} 1 -1 -1 0\n{1} 2 4 1.5 1\n",
}


@pytest.mark.parametrize(
    "ids", [("1", "2", "3"), ("0000139e-21dc", "0000d9fc-4e02", "00019306-9d83")]
)
def test_official_layout_of_cub_and_nabirds(tmp_path, ids):
    root = tmp_path / "CUB_200_2011"
    for name, text in OFFICIAL.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.format(*ids))
    for name in ("a.Crow/x.png", "b.Jay/y.png", "b.Jay/z.png"):
        draw(root / "images" / name)
    train, test = load_splits(data(tmp_path, name="cub"))
    assert train.classes == test.classes == ["a.Crow", "Blue Jay (male)"]
    assert (paths(train), paths(test)) == (
        ["images/a.Crow/x.png", "images/b.Jay/y.png"],
        ["images/b.Jay/z.png"],
    )
    np.testing.assert_array_equal(train.labels, [0, 1])
    np.testing.assert_array_equal(train.boxes, [[1, 2, 3, 4], [0, 0, 8, 6]])
    assert train.keypoints == ["beak", "left_eye"]
    np.testing.assert_array_equal(train[0]["keypoints"], [[2 / 8, 3 / 6, 1], [0, 0, 0]])
    np.testing.assert_array_equal(train[1]["keypoints"], [[0, 0, 0], [4 / 8, 1.5 / 6, 1]])
    (root / "images" / "b.Jay" / "z.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images .* are not in .*, as b.Jay/z.png"):
        load_splits(data(tmp_path))
    (root / "train_test_split.txt").write_text(f"{ids[0]} 1\n")
    with pytest.raises(ValueError, match=r"train_test_split.txt: 2 images"):
        load_splits(data(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "bounding_boxes.txt",
            "1 1 2 3 4\n",
            r"boxes.txt: 2 images of images.txt are missing, as 2",
        ),
        ("bounding_boxes.txt", "1 1 2 ? 4\n2 0 0 8 6\n3 0 0 8 6\n", r"image 1 has '1 2 \? 4' inst"),
        ("parts/part_locs.txt", "1 1 x 3 1\n", r"part_locs.txt: image 1 has 'x 3' instead of numb"),
        ("train_test_split.txt", "1 1\n2 yes\n3 0\n", r"image 2 has 'yes' instead of a whole numb"),
    ],
)
def test_an_official_list_that_is_wrong_is_named(tmp_path, file, text, message):
    for name, content in {**OFFICIAL, file: text}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content.format("1", "2", "3"))
    for name in ("a.Crow/x.png", "b.Jay/y.png", "b.Jay/z.png"):
        draw(tmp_path / "images" / name)
    with pytest.raises(ValueError, match=message) as error:
        load_splits(data(tmp_path, name="cub"))
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------- errors


def make(root, what):
    """One folder that is wrong, by name."""
    root.mkdir()
    if what == "files":
        for name in ("a.txt", "b.txt", "c.npy"):
            (root / name).write_text("x")
    if what == "only test":
        draw_classes(root / "test")
    if what == "classes":
        draw_classes(root / "train")
        draw_classes(root / "test", classes=("crow", "magpie"))
    if what == "no split":
        draw_classes(root / "train")
        draw_classes(root / "holdout")
    if what == "empty train":
        draw_classes(root / "test")
        (root / "train").mkdir()
    return root


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("nothing", {}, r"data.path: .*wrong is empty"),
        ("files", {}, r"data.path: no images in .*wrong \(.*\.jpg.*\); found 2 \.txt, 1 \.npy"),
        ("empty train", {}, r"data.path: .*train is empty"),
        ("only test", {}, r"data.train_split: .* has no folder 'train'; known are test"),
        ("no split", {"test_split": "hold"}, r"data.test_split: .*; did you mean holdout\?"),
        ("no split", {"train_split": "trian"}, r"data.train_split: .*; did you mean train\?"),
        ("classes", {}, r"1 of the classes in .*test are not in .*train: magpie"),
    ],
)
def test_a_wrong_folder_is_one_line(tmp_path, what, options, message):
    root = make(tmp_path / "wrong", what)
    with pytest.raises(ValueError, match=message) as error:
        load_splits(data(root, **options))
    assert "\n" not in str(error.value)


def test_a_missing_folder_names_the_nearest(tmp_path, monkeypatch):
    draw(tmp_path / "cub100" / "train" / "a.png")
    with pytest.raises(ValueError, match=r"cub10 is not in .*; did you mean cub100\?"):
        load_splits(data(tmp_path / "cub10" / "train"))
    with pytest.raises(ValueError, match="is a file; a folder of images is needed"):
        load_splits(data(tmp_path / "cub100" / "train" / "a.png"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"no folder cub1 \(seen from "):
        load_splits(data("cub1"))


def test_a_file_that_vanished_is_a_corrupt_image(tmp_path):
    draw_classes(tmp_path)
    train, _ = load_splits(data(tmp_path))
    (tmp_path / paths(train)[0]).unlink()
    with pytest.raises(CorruptImage, match=r"0.png: cannot be read \(No such file"):
        train[0]


def test_nothing_is_logged_about_a_plain_set(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test")
    load_splits(data(tmp_path))
    assert caplog.text == ""
