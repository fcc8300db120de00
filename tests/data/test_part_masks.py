"""Part masks beside pictures: one for all parts, one for each, and the folders of PASCUB."""

import json

import cv2
import numpy as np
import pytest

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import all_splits
from fg_ssl_zoo.data.pascub import PARTS
from fg_ssl_zoo.data.sample import WrongMask


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)


def splits(path):
    return all_splits(Data(name=path.name, path=str(path)))


def test_overlapping_parts_have_a_mask_each(tmp_path):
    (tmp_path / "parts.json").write_text(json.dumps({"0": "background", "1": "wing", "2": "nose"}))
    wing, nose = np.zeros((2, 6, 8), np.uint8)
    wing[:, :5], nose[:3] = 255, 1
    for split in ("train", "test"):
        write(tmp_path / split / "a.png", np.full((6, 8, 3), 90, np.uint8))
        write(tmp_path / "masks" / "wing" / split / "a.png", wing)
        write(tmp_path / "masks" / "nose" / split / "a.png", nose)
    train = splits(tmp_path)["train"]
    assert train.parts == ["wing", "nose"]
    assert "part_mask" not in train[0]
    np.testing.assert_array_equal(train[0]["part_maps"], np.stack([wing, nose]) > 0)
    write(tmp_path / "masks" / "nose" / "train" / "a.png", nose[:4])
    with pytest.raises(WrongMask, match=r"nose/train/a\.png: uint8 \(4, 8\); the picture needs"):
        train[0]
    (tmp_path / "masks" / "nose" / "train" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 pictures have no mask, as .*nose/train/a\.png"):
        splits(tmp_path)


def test_the_folders_of_pascub(tmp_path):
    mask = np.arange(48, dtype=np.uint8).reshape(6, 8) % 11
    for half in ("CUB_Parts", "PASCAL_Parts"):
        for split in ("train", "test"):
            write(tmp_path / half / f"images_{split}" / "a.png", np.zeros((6, 8, 3), np.uint8))
            write(tmp_path / half / f"parts_{split}" / "a.png", mask)
    write(tmp_path / "CUB_Parts" / "images_test" / "b.jpg", np.zeros((6, 8, 3), np.uint8))
    write(tmp_path / "CUB_Parts" / "parts_test" / "b.png", mask)
    found = splits(tmp_path)
    assert [len(found[split]) for split in ("train", "test")] == [2, 3]
    assert found["test"].parts == PARTS
    assert found["test"].labels is None
    for index in range(3):
        np.testing.assert_array_equal(found["test"][index]["part_mask"], mask)
    (tmp_path / "PASCAL_Parts" / "parts_train" / "a.png").unlink()
    with pytest.raises(ValueError, match="1 of 2 pictures have no mask"):
        splits(tmp_path)


def test_keypoints_outside_of_the_picture_are_refused(tmp_path):
    write(tmp_path / "train" / "a.png", np.zeros((6, 8, 3), np.uint8))
    header = "file,beak_x,beak_y,beak_visible\n"
    (tmp_path / "parts.csv").write_text(f"{header}train/a.png,120,0.5,1\n")
    with pytest.raises(ValueError, match=r"parts.csv, line 2: beak at x 120, y 0.5 is outside"):
        splits(tmp_path)
    (tmp_path / "parts.csv").write_text(f"{header}train/a.png,120,0.5,0\n")
    assert splits(tmp_path)["train"][0]["keypoints"].tolist() == [[0, 0, 0]]
