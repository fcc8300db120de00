"""Which images are the same, for files, copies, part masks, Hub rows and drawn birds."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data import inventory
from fg_ssl_zoo.data.datasets import all_splits, load_splits
from fg_ssl_zoo.data.hub_images import HubImages
from fg_ssl_zoo.data.inventory import Entries, Entry, differences, take


def bmp(path, value):
    """Six pixels; every value gives a file of the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((2, 3, 3), value, np.uint8))
    return path


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        bmp(tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number}.bmp", number)
        bmp(tmp_path / "photos" / "test" / "ab"[number % 2] / f"{number}.bmp", 100 + number)
    return tmp_path / "photos"


def inventory_of(folder):
    return take(all_splits(Data(path=str(folder))))


def replace_keeping_size_and_time(path):
    times = os.stat(path)
    bmp(path, 77)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_added_removed_and_replaced_pictures_are_named(photos, tmp_path):
    before = inventory_of(photos)
    assert not differences(before, inventory_of(photos))
    bmp(photos / "train" / "b" / "9.bmp", 9)
    (photos / "test" / "a" / "0.bmp").unlink()
    replace_keeping_size_and_time(photos / "train" / "a" / "2.bmp")
    found = differences(before, inventory_of(photos))
    assert found.added == ["train/b/9.bmp"]
    assert found.gone == ["test/a/0.bmp"]
    assert found.changed == ["train/a/2.bmp"]
    assert str(found) == ("1 added, 1 gone, 1 changed: train/b/9.bmp, test/a/0.bmp, train/a/2.bmp")


def test_another_order_of_the_same_images_is_named():
    def inventory_in(names):
        return {"train": Entries(Entry(name, size=1) for name in names), "test": Entries()}

    found = differences(inventory_in("abcd"), inventory_in("acbd"))
    assert (bool(found), str(found)) == (True, "the same images in another order, from c on")
    assert not differences(inventory_in("abcd"), inventory_in("abcd"))
    assert str(differences(inventory_in("abcd"), inventory_in("dcb"))) == (
        "0 added, 1 gone, 0 changed: a"
    )


def test_a_copy_with_other_times_is_the_same(photos, tmp_path):
    before = inventory_of(photos)
    shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "copy").rglob("*.bmp"):
        os.utime(path, (1, 1))
    assert not differences(before, inventory_of(tmp_path / "copy"))


def test_beyond_the_sample_the_time_of_change_decides_unless_all_is_a_copy(photos, monkeypatch):
    monkeypatch.setattr(inventory, "SAMPLED", 1)  # the first of each split
    before = inventory_of(photos)
    bmp(photos / "train" / "a" / "2.bmp", 77)
    os.utime(photos / "train" / "a" / "2.bmp", (1, 1))
    assert differences(before, inventory_of(photos)).changed == ["train/a/2.bmp"]
    for path in photos.rglob("*.bmp"):
        os.utime(path, (1, 1))
    assert not differences(before, inventory_of(photos))
    replace_keeping_size_and_time(photos / "train" / "a" / "0.bmp")
    assert differences(before, inventory_of(photos)).changed == ["train/a/0.bmp"]


def test_a_picture_in_another_class_folder_is_another_one(photos):
    before = inventory_of(photos)
    (photos / "train" / "a" / "0.bmp").rename(photos / "train" / "b" / "0.bmp")
    assert str(differences(before, inventory_of(photos))).startswith("1 added, 1 gone, 0 changed")


def test_part_masks_belong_to_the_pictures(tmp_path):
    bmp(tmp_path / "a.bmp", 1)
    (tmp_path / "parts.json").write_text('{"1": "hood"}')
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.zeros((2, 3), np.uint8))
    before = inventory_of(tmp_path)
    cv2.imwrite(str(tmp_path / "masks" / "a.png"), np.ones((2, 3), np.uint8))
    assert differences(before, inventory_of(tmp_path)).changed == ["masks/a.png"]


def test_rows_of_the_hub_are_compared_by_class_and_content():
    def rows(*contents, labels=(0, 1, 1)):
        pictures = [{"bytes": content, "path": None} for content in contents]
        numbers = np.array(labels[: len(contents)])
        return {"train": HubImages(pictures, "x", name="x", classes=["a", "b"], labels=numbers)}

    before = take(rows(b"1", b"2"))
    assert not differences(before, take(rows(b"1", b"2")))
    assert differences(before, take(rows(b"1", b"3"))).changed == ["x[1]"]
    assert differences(before, take(rows(b"1", b"2", labels=(1, 1)))).changed == ["x[0]"]
    assert differences(before, take(rows(b"1", b"2", b"3"))).added == ["x[2]"]


def test_drawn_pictures_follow_from_the_recipe():
    def drawn(count):
        train, test = load_splits(Data(num_images=count, num_classes=4))
        return take({"train": train, "test": test})

    assert not differences(drawn(16), drawn(16))
    assert len(differences(drawn(16), drawn(20)).added) == 5  # four, and a test image


def test_a_file_survives_names_that_are_no_utf8(tmp_path):
    os.rename(bmp(tmp_path / "x.bmp", 1), os.path.join(os.fsencode(tmp_path), b"\xe9.bmp"))
    found = inventory_of(tmp_path)
    inventory.write(tmp_path / "data.json", found)
    assert inventory.read(tmp_path / "data.json") == found
    text = (tmp_path / "data.json").read_text()
    (tmp_path / "data.json").write_text(json.dumps(json.loads(text)))  # as older versions wrote it
    assert inventory.read(tmp_path / "data.json") == found
    (tmp_path / "data.json").write_text(text[:-3])
    with pytest.raises(ValueError, match="cut off"):
        inventory.read(tmp_path / "data.json")
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(ValueError, match=r"data\.json is not a list of images"):
        inventory.read(tmp_path / "data.json")
