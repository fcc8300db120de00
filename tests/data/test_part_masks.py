"""Part masks beside images: one for all parts, one for each; the folders of PASCUB and OID."""

import json

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.datasets import Subset, all_splits
from fg_ssl_zoo.data.fixed_views import WholeView
from fg_ssl_zoo.data.loader import ViewDataset, image_loader
from fg_ssl_zoo.data.pascub import PARTS
from fg_ssl_zoo.data.regions import RandomRegionViews, given_parts
from fg_ssl_zoo.data.sample import WrongMask
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from fg_ssl_zoo.evaluation.parts.scores import mask_contingency, part_agreement


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
    with pytest.raises(WrongMask, match=r"nose/train/a\.png: \(4, 8\); the image needs"):
        train[0]
    (tmp_path / "masks" / "nose" / "train" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images have no mask, as .*nose/train/a\.png"):
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
    with pytest.raises(ValueError, match="1 of 2 images have no mask"):
        splits(tmp_path)


def test_a_wrong_mask_costs_those_alone_who_need_masks_a_picture(tmp_path):
    (tmp_path / "parts.json").write_text(json.dumps({"1": "wing"}))
    mask = np.repeat(np.arange(2, dtype=np.uint8), 4)[None].repeat(8, 0)
    for name in ("a", "b", "c"):
        write(tmp_path / "train" / f"{name}.png", np.full((8, 8, 3), 90, np.uint8))
        write(tmp_path / "masks" / "train" / f"{name}.png", mask[: 6 if name == "b" else 8])
    birds = splits(tmp_path)["train"]
    for images in (birds, Subset(birds, np.array([0, 1, 2]))):
        (batch,) = image_loader(images, WholeView(8), range(3), batch_size=3, num_workers=0)
        assert batch["index"].tolist() == [0, 1, 2]
        views = augmentations_of("moco_v2")
        seen = ViewDataset(images, RandomViews(8, views, (None, None)), seed=0)[0, 1]
        assert (seen["index"], seen["corrupt"]) == (1, [])
        given = RandomRegionViews(8, 2, 3, views, given_parts)
        seen = ViewDataset(images, given, seed=0)[0, 1]
        assert seen["index"] == 2
        assert "b.png: (6, 8); the image needs uint8 (8, 8)" in seen["corrupt"][0]
        with pytest.raises(ValueError, match=r"1 part masks do not fit their images: .*b\.png"):
            mask_contingency(torch.zeros(3, 4, 4, dtype=torch.uint8), images, 2)
        assert part_agreement(torch.arange(48).reshape(3, 4, 4) % 3, images) == {}


def box(left, top, right, bottom):
    """Corners as MATLAB counts them, from 1."""
    return np.array([[left, right, right, left], [top, top, bottom, bottom]]) + 1.0


def cell(*values):
    found = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        found[i] = value
    return found


def aircraft():
    """Four images of 12 x 20; the first has two aeroplanes, the second none, numbers are odd."""
    parts = {
        "wing": ([1, 2, 3], [52, 50, 51], [box(1, 1, 3, 4), box(6, 2, 9, 5), box(15, 6, 90, 90)]),
        "nose": ([4], [50], [box(0, 0, 0, 0)]),
        "wheel": ([5, 6, 8], [50, 52, 50], [box(8, 4, 10, 6), box(4, 9, 5, 11), np.zeros((2, 0))]),
        "verticalStabilizer": ([7], [52], [box(2, 2, 2, 2)]),
    }
    return {
        "meta": {"image": {"set": cell("train", "val", "test")}},
        "image": {
            "id": [11, 12, 13, 14], "name": cell("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
            "size": np.array([[12] * 4, [20] * 4]), "set": [1, 2, 3, 1],
        },
        "aeroplane": {"id": [50, 51, 52], "parentId": [11, 11, 13]},
        **{
            name: {"id": ids, "parentId": parents, "polygon": cell(*outlines)}
            for name, (ids, parents, outlines) in parts.items()
        },
    }  # fmt: skip


def write_aircraft(folder, anno):
    (folder / "data" / "annotations").mkdir(parents=True, exist_ok=True)
    savemat(folder / "data" / "annotations" / "anno.mat", {"anno": anno})
    for name in anno["image"]["name"]:
        write(folder / "data" / "images" / "aeroplane" / name, np.zeros((12, 20, 3), np.uint8))


def test_the_outlines_of_oid_aircraft_are_drawn_where_they_are(tmp_path):
    write_aircraft(tmp_path / "oid-aircraft-beta-1", aircraft())
    found = splits(tmp_path)
    train, test = found["train"], found["test"]
    assert train.parts == ["nose", "vertical_stabilizer", "wheel", "wing"]
    assert (len(train), len(test), train.labels) == (2, 1, None)
    want = np.zeros((4, 12, 20), dtype=bool)
    want[0, 0, 0] = want[2, 4:7, 8:11] = want[3, 2:6, 6:10] = want[3, 6:, 15:] = True
    np.testing.assert_array_equal(train[0]["part_maps"], want)  # wings of both aeroplanes
    assert not train[1]["part_maps"].any()
    assert test[0]["part_maps"].sum(axis=(1, 2)).tolist() == [0, 1, 6, 12]
    both = all_splits(Data(path=str(tmp_path), train_split="trainval", test_split="val"))
    assert [len(both[split]) for split in ("train", "test")] == [3, 1]


def test_wrong_annotations_of_oid_aircraft_are_refused(tmp_path):
    write_aircraft(tmp_path, aircraft())
    with pytest.raises(ValueError, match=r"data.train_split: .*anno.mat has no set 'training'"):
        all_splits(Data(path=str(tmp_path), train_split="training"))
    write(tmp_path / "data" / "images" / "aeroplane" / "a.jpg", np.zeros((9, 20, 3), np.uint8))
    with pytest.raises(WrongMask, match=r"a.jpg: \(9, 20\); its outlines are for \(12, 20\)"):
        splits(tmp_path)["train"][0]
    (tmp_path / "data" / "images" / "aeroplane" / "d.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images of .*anno.mat are not in .*d.jpg"):
        splits(tmp_path)
    savemat(tmp_path / "data" / "annotations" / "anno.mat", {"anno": {"image": 3}})
    with pytest.raises(ValueError, match=r"anno.mat: the annotations of oid-aircraft-beta-1 are"):
        splits(tmp_path)
    (tmp_path / "data" / "annotations" / "anno.mat").write_bytes(b"no MATLAB")
    with pytest.raises(ValueError, match=r"anno.mat: the annotations of oid-aircraft-beta-1 are"):
        splits(tmp_path)


def test_keypoints_outside_of_the_picture_are_refused(tmp_path):
    write(tmp_path / "train" / "a.png", np.zeros((6, 8, 3), np.uint8))
    header = "file,beak_x,beak_y,beak_visible\n"
    (tmp_path / "parts.csv").write_text(f"{header}train/a.png,120,0.5,1\n")
    with pytest.raises(ValueError, match=r"parts.csv, line 2: beak at x 120, y 0.5 is outside"):
        splits(tmp_path)
    (tmp_path / "parts.csv").write_text(f"{header}train/a.png,nan,0.5,1\n")
    with pytest.raises(ValueError, match=r"line 2: beak at x nan, y 0.5 is outside"):
        splits(tmp_path)
    (tmp_path / "parts.csv").write_text(f"{header}train/a.png,120,0.5,0\n")
    assert splits(tmp_path)["train"][0]["keypoints"].tolist() == [[0, 0, 0]]
