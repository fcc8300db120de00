import logging
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.regions import (
    NOTE_SIDE,
    Grid,
    RandomRegionViews,
    Segments,
    check_given,
    given_parts,
    needs_segments,
    segment_notes,
    several,
)
from fg_ssl_zoo.data.views import Augmentation, augmentations_of
from tests.pictures import SomeCorrupt
from tests.runs import launch

STILL = Augmentation(crop_scale=(0.08, 1.0), jitter=0, grayscale=0, blur=0)
"""Crops and flips alone."""


def quadrants(height, width):
    """An image whose grey values are its region numbers, four of them."""
    mask = Grid(2)({"image": np.zeros((height, width, 3), np.uint8), "index": 0})
    return np.repeat(mask[..., None] * 60, 3, axis=2), mask


class OneColour:
    """Images of a single region."""

    name, classes, labels = "flat", [], None

    def __init__(self, part_mask=None):
        self.part_mask = part_mask

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = np.full((40, 40, 3), 99, np.uint8)
        mask = {} if self.part_mask is None else {"part_mask": self.part_mask}
        return {"image": image, "index": index, **mask}


# --------------------------------------------------------------------------- one geometry


@pytest.mark.parametrize("shape", [(120, 90), (64, 64), (200, 331)])
@pytest.mark.parametrize("source", ["given", "note"])
def test_a_picture_that_is_its_mask_stays_so_in_every_view(shape, source):
    """Defect 9. Pixels near another region are blended in the image: the nearest value counts."""
    image, mask = quadrants(*shape)
    sample = {"image": image, "index": 0, "part_mask": mask}
    regions = given_parts
    if source == "note":  # of another size than the image
        sample["regions"] = torch.from_numpy(quadrants(NOTE_SIDE, NOTE_SIDE)[1])
        regions = Segments()
    size, crossed = 32, 0
    views = RandomRegionViews(size, size, 4, (STILL, STILL), regions)
    for seed in range(30):
        seen = views(sample, np.random.default_rng(seed))
        for picture, cells in zip(seen["images"], seen["masks"], strict=True):
            close = np.ones((3, 3), np.uint8)
            cells = cells.astype(np.uint8)
            inner = cv2.dilate(cells, close) == cv2.erode(cells, close)
            seen_regions = np.rint(picture[..., 0] / 60)
            np.testing.assert_array_equal(seen_regions[inner], cells[inner])
            assert inner.mean() > 0.7
            crossed += cells.min() != cells.max()
    assert crossed > 20


def test_a_mirrored_crop_of_the_mask_is_the_mask_of_the_mirrored_crop():
    image, mask = quadrants(64, 64)
    whole = [replace(STILL, crop_scale=(1, 1), flip=flip) for flip in (0, 1)]
    views = RandomRegionViews(16, 8, 4, whole, given_parts)
    seen = views({"image": image, "index": 0, "part_mask": mask}, np.random.default_rng(0))
    np.testing.assert_array_equal(seen["masks"][0], mask[4::8, 4::8])
    np.testing.assert_array_equal(seen["masks"][1], mask[4::8, 4::8][:, ::-1])


def test_the_views_are_those_of_their_seed_and_say_what_both_show(birds):
    views = RandomRegionViews(48, 6, 10, augmentations_of("fine_grained"), given_parts)
    one, two = (views(birds[3], np.random.default_rng(5)) for _ in range(2))
    for key in ("images", "masks", "ids"):
        np.testing.assert_array_equal(one[key], two[key])
    assert [one[key].shape for key in ("images", "masks", "ids")] == [
        (2, 48, 48, 3), (2, 6, 6), (2, 10),
    ]  # fmt: skip
    assert one["weight"] == 1.0
    for cells, ids in zip(one["masks"], one["ids"], strict=True):
        assert set(ids) <= set(cells.ravel())


def test_a_picture_of_one_region_has_no_weight():
    sample = OneColour(np.zeros((40, 40), np.uint8))[0]
    views = RandomRegionViews(32, 4, 4, (STILL, STILL), given_parts)
    seen = views(sample, np.random.default_rng(0))
    assert seen["weight"] == 0.0
    assert (seen["ids"] == 0).all()


# --------------------------------------------------------------------------- sources


@pytest.mark.parametrize("shape", [(64, 64), (120, 90), (400, 700)])
def test_segments_of_flat_colours_are_the_colours_at_any_resolution(shape):
    """Beside thin ones along the borders, where the smoothed image has other colours."""
    image, mask = quadrants(*shape)
    found = Segments()({"image": image, "index": 0})
    assert found.shape == shape
    both = np.zeros((256, 4), int)
    np.add.at(both, (found.ravel(), mask.ravel()), 1)
    large = both[np.argsort(-both.sum(axis=1))[:4]]
    assert sorted(large.argmax(axis=1)) == [0, 1, 2, 3]
    assert large.sum() > 0.8 * found.size
    assert large.max(axis=1).sum() > 0.99 * large.sum()


def test_a_larger_scale_gives_fewer_segments_and_many_fit_into_bytes():
    image = DrawnBirds(1, image_size=160)[0]["image"]
    counts = [int(Segments(scale).note(image).max()) for scale in (300, 1000, 3000)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[2]
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert Segments(0.01).note(noise).max() == 255


def test_a_sample_without_its_note_is_segmented_on_the_spot(birds):
    segments, sample = Segments(200), birds[2]
    noted = {**sample, "regions": torch.from_numpy(segments.note(sample["image"]))}
    np.testing.assert_array_equal(segments(noted), segments(sample))


def test_a_grid_covers_any_picture_with_squares_of_equal_size():
    regions = Grid(3)({"image": np.zeros((9, 12, 3), np.uint8), "index": 0})
    np.testing.assert_array_equal(np.bincount(regions.ravel()), np.full(9, 12))
    np.testing.assert_array_equal(regions[::3, ::4], np.arange(9).reshape(3, 3))


def test_without_scikit_image_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ValueError, match=r"pip install 'fg-ssl-zoo\[masks\]'"):
        needs_segments()


# --------------------------------------------------------------------------- notes


def test_notes_are_the_segments_of_every_picture_that_can_be_read(birds, caplog):
    segments = Segments(300)
    with caplog.at_level(logging.INFO):
        notes = segment_notes(SomeCorrupt(birds, {3}), segments, Accelerator(cpu=True))
    assert notes.shape == (16, NOTE_SIDE, NOTE_SIDE)
    assert (notes[3] == 0).all()
    for index in (0, 7, 15):
        np.testing.assert_array_equal(notes[index], segments.note(birds[index]["image"]))
    assert "regions an image, 1 images with a single one" in caplog.text


def notes_of_a_process(path, images):
    accelerator = Accelerator(cpu=True)
    notes = segment_notes(images, Segments(300), accelerator)
    torch.save(notes, path / f"{accelerator.process_index}.pt")


def test_two_processes_take_the_notes_of_one_and_both_hold_them(tmp_path):
    images = DrawnBirds(5, num_classes=2, image_size=48)
    one = segment_notes(images, Segments(300), Accelerator(cpu=True))
    launch(notes_of_a_process, tmp_path, images)
    for number in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{number}.pt"), one)


def test_a_set_of_single_regions_is_refused():
    with pytest.raises(ValueError, match="every image of flat is a single region at scale 1000"):
        segment_notes(OneColour(), Segments(), Accelerator(cpu=True))


def test_given_masks_are_looked_at_first(birds):
    check_given(birds)
    check_given(SomeCorrupt(birds, {0}))
    with pytest.raises(ValueError, match="given needs part masks, and the images have none"):
        check_given(OneColour())
    with pytest.raises(ValueError, match="part masks of flat show a single part"):
        check_given(OneColour(np.zeros((40, 40), np.uint8)))


def test_several_regions_are_more_than_one():
    assert not several(np.full((3, 3), 7))
    assert several(np.arange(9))
