"""The order of names, and paths kept in one block."""

import itertools
import os
import pickle
import re

import numpy as np
import pytest

from fg_ssl_zoo.data.listing import PathList, list_images, natural
from fg_ssl_zoo.data.splits import ClassColumn, number_classes


def natural_as_lists(name):
    words = re.split(r"([0-9]+)", name)
    return [int(word) if i % 2 else word.casefold() for i, word in enumerate(words)], name


def test_natural_sorts_as_lists_of_words_and_numbers_do():
    pieces = ["", "a", "B", "b", "1", "01", "9", "10", "0", "-", "ä", "\udce9", "\x01", "~"]
    names = {"".join(words) for words in itertools.product(pieces, repeat=3)}
    assert sorted(names, key=natural) == sorted(names, key=natural_as_lists)


def test_paths_are_kept_as_they_are_(tmp_path):
    names = ["jay/1.jpg", "", "ü.png", os.fsdecode(b"\xe9.jpg"), "line\nbreak.png"]
    paths = PathList(names)
    assert [*paths] == names == paths[:]
    assert (paths[-1], paths[1:3]) == (names[-1], names[1:3])
    with pytest.raises(IndexError):
        paths[5]
    assert [*pickle.loads(pickle.dumps(paths))] == names
    for name in ("10.jpg", "9.png", "b/2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.symlink(tmp_path, tmp_path / "b" / "circle")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "broken.jpg")
    found = list_images(tmp_path, "train/")
    assert [*found.paths] == ["train/9.png", "train/10.jpg", "train/b/2.jpg"]
    assert found.others == {"broken links": 1}


def test_classes_are_numbered_by_the_training_names(caplog):
    train = ClassColumn(["c10", "Mu\u0308ller", "c9", "M\u00fcller"])
    classes, labels, tested = number_classes(train, ClassColumn(["c9", "c9"]), "a", "b")
    assert classes == ["c9", "c10", "M\u00fcller"]
    np.testing.assert_array_equal(labels, [1, 2, 0, 2])
    np.testing.assert_array_equal(tested, [0, 0])
    assert "b has test images of 1 of 3 classes; none of c10, M\u00fcller" in caplog.text
    assert number_classes(train, ClassColumn(["c9", ""]), "a", "b")[2] is None
    assert number_classes(ClassColumn(["x", ""]), None, "a", "")[:2] == ([], None)
    with pytest.raises(ValueError, match=r"1 of the classes in b are not in a: c8; did you mean"):
        number_classes(train, ClassColumn(["c8"]), "a", "b")
