"""Which images are held out, taken or told from others, and that a set travels."""

import os
import pickle

import numpy as np

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data import datasets
from fg_ssl_zoo.data.datasets import (
    balanced,
    fingerprint,
    held_out,
    load_images,
    load_splits,
)
from fg_ssl_zoo.data.listing import PathList
from tests.data.flat_pictures import data, draw, draw_classes


def held_out_by_loops(names, labels, share):
    """The definition: in each class, the names with the smallest hashes."""
    import hashlib

    chosen = set()
    for label in set(labels):
        mine = [name for name, other in zip(names, labels, strict=True) if other == label]
        mine.sort(key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())
        chosen.update(mine[: max(1, round(share * len(mine)))])
    return [name in chosen for name in names]


def test_held_out_equals_the_definition_in_any_order():
    names = [f"{label}/{i}.jpg" for label in range(4) for i in range(7 + 5 * label)]
    labels = np.array([int(name[0]) for name in names])
    chosen = held_out(names, labels)
    np.testing.assert_array_equal(chosen, held_out_by_loops(names, labels, datasets.HELD_OUT))
    order = np.random.default_rng(0).permutation(len(names))
    shuffled = held_out([names[i] for i in order], labels[order])
    np.testing.assert_array_equal(shuffled, chosen[order])


def test_an_added_picture_moves_at_most_one_other():
    names = [f"{i}.jpg" for i in range(43)]
    before = held_out(names, np.zeros(43, int))
    for i in range(30):
        after = held_out([*names, f"new{i}.jpg"], np.zeros(44, int))
        assert (after[:43] != before).sum() <= 1


def test_tiny_classes_keep_a_training_picture():
    np.testing.assert_array_equal(held_out(["a"], np.array([0])), [False])
    assert held_out(["a", "b"], np.array([0, 0])).sum() == 1


def test_images_of_one_name_stay_together():
    names = [f"{number // 2}" for number in range(40)]
    labels = np.arange(40) // 20
    chosen = held_out(names, labels)
    np.testing.assert_array_equal(chosen[::2], chosen[1::2])
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [4, 4])
    assert not held_out(["a", "a"], np.array([0, 0])).any()


def test_balanced_takes_from_all_classes_alike():
    labels = np.repeat([0, 1, 2], [2, 10, 30])
    chosen = balanced(labels, 42, 14, seed=3)
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [2, 6, 6])
    np.testing.assert_array_equal(chosen, balanced(labels, 42, 14, seed=3))
    assert (chosen != balanced(labels, 42, 14, seed=4)).any()
    assert len(set(balanced(None, 42, 14, seed=0))) == 14


def test_num_images_limits_training_only(tmp_path):
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test")
    train, test = load_splits(data(tmp_path, num_images=4))
    assert (len(train), len(test)) == (4, 10)
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1])
    assert train[3]["index"] == 3


def test_fingerprint_follows_the_pictures(tmp_path):
    draw_classes(tmp_path / "train")
    draw_classes(tmp_path / "test")

    def prints(**options):
        return [fingerprint(images) for images in load_splits(data(tmp_path, **options))]

    first = prints()
    assert prints() == first
    assert first[0] != first[1]
    assert len(first[0]) == 12
    assert prints(num_images=4)[0] != first[0]
    draw(tmp_path / "train" / "jay" / "new.png")
    assert prints()[0] != first[0]
    assert prints()[1] == first[1]


def test_splits_travel_to_loader_processes(tmp_path):
    draw_classes(tmp_path)
    for images in load_splits(data(tmp_path)):
        copy = pickle.loads(pickle.dumps(images))
        np.testing.assert_array_equal(copy[1]["image"], images[1]["image"])


def test_many_paths_are_small_and_any_bytes(tmp_path):
    names = [f"train/class {i % 7}/ü{i}.jpg" for i in range(5000)] + [os.fsdecode(b"\xff.jpg")]
    listed = PathList(names)
    assert list(listed) == names
    assert len(pickle.dumps(listed)) < 3 * len("".join(names))


def test_drawn_pictures_differ_between_splits_and_seeds():
    train, test = load_splits(Data(num_images=40, num_classes=4), seed=3)
    assert (len(train), len(test), train.classes) == (40, 10, test.classes)
    others, _ = load_splits(Data(num_images=40, num_classes=4), seed=4)
    prints = {fingerprint(images) for images in (train, test, others)}
    assert len(prints) == 3
    assert fingerprint(load_images(Data(num_images=40, num_classes=4), "train", seed=3)) in prints
    assert [len(images) for images in load_splits(Data())] == [2000, 500]
