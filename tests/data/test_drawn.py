"""Drawn birds: images that carry their class in small parts, and nowhere else."""

import hashlib
import itertools
import pickle
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import fg_ssl_zoo
from fg_ssl_zoo.data.drawn import DrawnBirds, part_overlay
from fg_ssl_zoo.data.drawn.anatomy import KEYPOINTS, PARTS
from fg_ssl_zoo.data.drawn.birds import Drawings, drawing
from fg_ssl_zoo.data.drawn.painter import Frame, rotation, smooth
from fg_ssl_zoo.data.drawn.species import (
    ATTRIBUTES,
    MAX_CLASSES,
    MIN_DIFFERENCES,
    attribute_table,
    species,
)

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 128, 96, 8
CHANCE = 1 / NUM_CLASSES

WHERE = {  # the parts under or beside which an attribute is painted
    "beak": ["beak"],
    "crown": ["crown"],
    "eye": ["eye", "head"],
    "breast": ["breast", "throat"],
    "wing bars": ["wing"],
    "wing patch": ["wing"],
    "tail": ["tail"],
    "legs": ["legs"],
}


@pytest.fixture(scope="module")
def train():
    return list(DrawnBirds(NUM_TRAIN, num_classes=NUM_CLASSES, image_size=64, seed=0))


@pytest.fixture(scope="module")
def test():
    return list(DrawnBirds(NUM_TEST, num_classes=NUM_CLASSES, image_size=64, seed=1))


def digest(sample):
    parts = (sample["image"], sample["part_mask"], sample["keypoints"])
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def nearest_centroid_accuracy(feature, train, test):
    x, y = (np.stack([feature(s) for s in samples]) for samples in (train, test))
    labels = np.array([s["label"] for s in train])
    x, y = (v / (x.std(axis=0) + 1e-6) for v in (x, y))
    centroids = np.stack([x[labels == c].mean(axis=0) for c in range(NUM_CLASSES)])
    nearest = ((y[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    return np.mean(nearest == [s["label"] for s in test])


def at_keypoints(sample, radius=5):
    """Small pieces of the image around all keypoints, one below the other."""
    image, size = sample["image"], len(sample["image"])
    padded = cv2.copyMakeBorder(image, *[radius] * 4, cv2.BORDER_REFLECT)
    corners = (sample["keypoints"][:, :2] * size).clip(0, size - 1).astype(int)
    pieces = [padded[y : y + 2 * radius, x : x + 2 * radius] for x, y in corners]
    return np.concatenate([cv2.resize(p, (5, 5), interpolation=cv2.INTER_AREA) for p in pieces])


@pytest.fixture
def nothing_kept(monkeypatch):
    monkeypatch.setattr("fg_ssl_zoo.data.drawn.birds.DRAWINGS", Drawings(0))


@pytest.mark.usefixtures("nothing_kept")
def test_a_picture_follows_from_seed_and_index_alone():
    birds = DrawnBirds(9, image_size=48, seed=5)
    forwards = [digest(birds[i]) for i in range(9)]
    longer = DrawnBirds(1000, image_size=48, seed=5)
    assert [digest(longer[i]) for i in reversed(range(9))] == forwards[::-1]
    assert [digest(sample) for sample in pickle.loads(pickle.dumps(birds))] == forwards
    assert len(set(forwards)) == 9
    assert set(forwards).isdisjoint(map(digest, DrawnBirds(9, image_size=48, seed=6)))


def test_the_first_drawings_are_kept_and_may_be_changed():
    kept = Drawings(2 * 48 * 48 * 4 + 1000)  # room for two, with their keypoints
    for _ in range(2):
        for index in range(4):
            found, drawn = kept.of(48, 5, index, species(0)), drawing(48, 5, index, species(0))
            for mine, right in zip(found, drawn, strict=True):
                np.testing.assert_array_equal(mine, right)
                mine[:] = 0
    assert [key[2] for key in kept._kept] == [0, 1]
    assert kept.bytes == sum(array.nbytes for one in kept._kept.values() for array in one)


def test_another_process_draws_the_same_picture():
    # The package is entered by its folder, as its __init__ imports timm, which takes seconds.
    program = (
        "import hashlib, sys, types\n"
        "sys.modules['fg_ssl_zoo'] = package = types.ModuleType('fg_ssl_zoo')\n"
        "package.__path__ = [sys.argv[1]]\n"
        "from fg_ssl_zoo.data.drawn import DrawnBirds\n"
        "s = DrawnBirds(40, image_size=48, seed=5)[31]\n"
        "arrays = s['image'], s['part_mask'], s['keypoints']\n"
        "print(hashlib.sha256(b''.join(array.tobytes() for array in arrays)).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(Path(fg_ssl_zoo.__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest(DrawnBirds(40, image_size=48, seed=5)[31])


def test_a_sample_has_the_promised_arrays():
    birds = DrawnBirds(3, num_classes=2, image_size=50)
    sample = birds[1]
    assert set(sample) == {"image", "index", "label", "part_mask", "keypoints"}
    assert (sample["index"], sample["label"]) == (1, 1)
    assert (sample["image"].shape, sample["image"].dtype) == ((50, 50, 3), np.uint8)
    assert (sample["part_mask"].shape, sample["part_mask"].dtype) == ((50, 50), np.uint8)
    assert sample["keypoints"].shape == (len(birds.keypoints), 3)
    assert sample["keypoints"].dtype == np.float32
    assert (birds.parts, birds.keypoints) == (PARTS, list(KEYPOINTS))


def test_iteration_ends_with_the_last_picture():
    birds = DrawnBirds(3, image_size=32)
    assert [sample["index"] for sample in birds] == [0, 1, 2]
    assert birds[-1]["index"] == 2
    with pytest.raises(IndexError, match="below 3, not 3"):
        birds[3]


def test_labels_are_balanced():
    birds = DrawnBirds(100, num_classes=20)
    np.testing.assert_array_equal(np.bincount(birds.labels), np.full(20, 5))
    assert birds.labels.dtype == np.int64
    assert [birds[i]["label"] for i in (0, 19, 20, 99)] == [0, 19, 0, 19]


def test_every_two_of_all_possible_classes_differ_in_three_attributes():
    table = attribute_table()
    assert table.shape == (MAX_CLASSES, len(ATTRIBUTES))
    differences = (table[:, None] != table).sum(axis=2)
    assert differences[~np.eye(MAX_CLASSES, dtype=bool)].min() == MIN_DIFFERENCES == 3
    np.testing.assert_array_equal(table.max(axis=0) + 1, [len(v) for v in ATTRIBUTES.values()])


def test_classes_have_unique_names_and_are_the_first_of_more():
    names = DrawnBirds(1, num_classes=MAX_CLASSES).classes
    assert len(set(names)) == MAX_CLASSES
    assert DrawnBirds(1, num_classes=7).classes == names[:7]
    assert names[4] == "long-tailed red-crested shrike 04"
    assert DrawnBirds(0).classes == names[:20]


def test_every_part_is_to_be_seen(train):
    for sample in train:
        numbers = set(np.unique(sample["part_mask"]).tolist())
        assert numbers <= set(range(len(PARTS) + 1))
        hidden = {PARTS[i - 1] for i in set(range(1, len(PARTS) + 1)) - numbers}
        assert hidden <= {"legs"}, sample["index"]  # behind grass


def test_visible_keypoints_lie_on_their_part(train):
    size = 64
    for sample in train:
        for (x, y, visible), part in zip(sample["keypoints"], KEYPOINTS.values(), strict=True):
            if visible:
                assert 0 <= x <= 1
                assert 0 <= y <= 1
                rows, columns = np.nonzero(sample["part_mask"] == PARTS.index(part) + 1)
                assert np.hypot(columns + 0.5 - x * size, rows + 0.5 - y * size).min() <= 2


def test_nearly_all_keypoints_are_visible(train):
    visible = np.mean([sample["keypoints"][:, 2] for sample in train], axis=0)
    assert set(np.unique([s["keypoints"][:, 2] for s in train])) == {0.0, 1.0}
    assert dict(zip(KEYPOINTS, visible > 0.9, strict=True)) == dict.fromkeys(KEYPOINTS, True)


def test_birds_look_both_ways(train):
    keypoints = np.stack([sample["keypoints"][:, 0] for sample in train])
    names = list(KEYPOINTS)
    right = keypoints[:, names.index("beak tip")] > keypoints[:, names.index("tail tip")]
    assert 0.4 < right.mean() < 0.6
    for label in range(NUM_CLASSES):
        assert 0.2 < right[label::NUM_CLASSES].mean() < 0.8


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(lambda s: s["image"].mean(axis=(0, 1)), id="mean colour"),
        pytest.param(lambda s: s["image"][s["part_mask"] == 0].mean(axis=0), id="background"),
        pytest.param(
            lambda s: np.r_[
                np.mean(np.nonzero(s["part_mask"] == PARTS.index("belly") + 1), axis=1),
                s["image"][s["part_mask"] == PARTS.index("belly") + 1].mean(axis=0),
            ],
            id="place and colour of the belly",
        ),
    ],
)
def test_what_is_large_says_nothing_about_the_class(feature, train, test):
    # Chance +- 3 standard deviations of a coin that is right once in eight, thrown 96 times.
    margin = 3 * np.sqrt(CHANCE * (1 - CHANCE) / NUM_TEST)
    assert nearest_centroid_accuracy(feature, train, test) < CHANCE + margin


def test_what_is_small_tells_the_class(train, test):
    def feature(sample):
        return at_keypoints(sample).ravel().astype(float)

    assert nearest_centroid_accuracy(feature, train, test) > 0.7


@pytest.mark.parametrize(("one", "other"), [(0, 1), (3, 4), (5, 17), (8, 300)])
def test_two_classes_differ_only_where_their_attributes_are(one, other):
    reach = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15))  # 7 px: shading and softness
    birds = DrawnBirds(1, num_classes=MAX_CLASSES)
    differing = [
        attribute
        for attribute, a, b in zip(ATTRIBUTES, species(one), species(other), strict=True)
        if a != b
    ]
    numbers = [PARTS.index(part) + 1 for attribute in differing for part in WHERE[attribute]]
    for index in range(4):
        a, b = birds.draw(index, one), birds.draw(index, other)
        near = np.isin(a["part_mask"], numbers) | np.isin(b["part_mask"], numbers)
        far = cv2.dilate(near.astype(np.uint8), reach) == 0
        assert far.mean() > 0.5
        np.testing.assert_array_equal(a["image"][far], b["image"][far])
        np.testing.assert_array_equal(a["part_mask"][far], b["part_mask"][far])
        assert (a["image"] != b["image"]).any(axis=2).sum() > 20


def test_every_value_of_every_attribute_shows(monkeypatch):
    plain = species(0)
    birds = DrawnBirds(1, image_size=64)
    for field, values in zip(plain._fields, ATTRIBUTES.values(), strict=True):
        kinds = [plain._replace(**{field: value}) for value in values]
        monkeypatch.setattr("fg_ssl_zoo.data.drawn.birds.species", kinds.__getitem__)
        pictures = [birds.draw(0, i)["image"].astype(int) for i in range(len(values))]
        for a, b in itertools.combinations(pictures, 2):
            assert (abs(a - b).max(axis=2) > 20).sum() >= 8, field  # pixels of 64 x 64


@pytest.mark.parametrize("image_size", [32, 57, 96, 224])
def test_picture_and_mask_keep_their_composition_at_every_size(image_size):
    mask = DrawnBirds(3, image_size=image_size)[2]["part_mask"]
    reference = DrawnBirds(3, image_size=448)[2]["part_mask"]
    shares = [np.bincount(m.ravel(), minlength=len(PARTS) + 1) / m.size for m in (mask, reference)]
    np.testing.assert_allclose(*shares, atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, f"num_classes must be in 2..{MAX_CLASSES}, not 1"),
        ({"num_classes": MAX_CLASSES + 1}, f"in 2..{MAX_CLASSES}, not {MAX_CLASSES + 1}"),
        ({"image_size": 31}, "image_size must be at least 32, not 31"),
        ({"num_images": -1}, "num_images must be at least 0, not -1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_errors_name_what_would_be_right(options, message):
    with pytest.raises(ValueError, match=message):
        DrawnBirds(**options)


def test_a_class_that_there_is_not_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"label must be in 0\.\.4, not 5"):
        DrawnBirds(9, num_classes=5).draw(0, 5)


def test_overlay_colours_parts_alone():
    sample = DrawnBirds(1, image_size=64)[0]
    overlay = part_overlay(sample["image"], sample["part_mask"])
    background = sample["part_mask"] == 0
    np.testing.assert_array_equal(overlay[background], sample["image"][background])
    assert (overlay[~background] != sample["image"][~background]).any(axis=1).mean() > 0.95


def test_smooth_is_the_catmull_rom_spline():
    points = np.random.default_rng(0).normal(size=(6, 2))
    expected = []
    for i in range(6):
        p = [points[(i + k) % 6] for k in (-1, 0, 1, 2)]
        for t in (0, 0.25, 0.5, 0.75):
            slopes = (p[2] - p[0]) / 2, (p[3] - p[1]) / 2  # Hermite form
            expected.append(
                (2 * t**3 - 3 * t**2 + 1) * p[1]
                + (t**3 - 2 * t**2 + t) * slopes[0]
                + (3 * t**2 - 2 * t**3) * p[2]
                + (t**3 - t**2) * slopes[1]
            )
    np.testing.assert_allclose(smooth(points, steps=4), expected, atol=1e-12)
    np.testing.assert_allclose(smooth(points, closed=False)[[0, 5, -1]], points[[0, 1, 5]])


def test_frames_turn_around_their_pivot():
    frame = Frame(2 * np.eye(2), np.array([1.0, 0.0])).turned((3.0, 0.0), 90.0, size=0.5)
    np.testing.assert_allclose(frame(np.array([[0.0, 0.0], [1.0, 0.0]])), [[7, 0], [7, 1]])
    np.testing.assert_allclose(rotation(30.0) @ rotation(-30.0), np.eye(2), atol=1e-15)


@pytest.mark.usefixtures("nothing_kept")
def test_drawing_is_quick():
    birds = DrawnBirds(60)
    list(DrawnBirds(2))
    start = time.process_time()
    list(birds)
    assert time.process_time() - start < 6  # one core does it in 0.2 s without runtime type checks
