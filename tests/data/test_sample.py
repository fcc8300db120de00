"""What sources and views declare beyond the interface, asked by `isinstance`."""

import numpy as np

from fg_ssl_zoo.data.datasets import Subset, fingerprint
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.regions import RandomRegionViews, given_parts
from fg_ssl_zoo.data.sample import (
    HasIdentity,
    HasKeypoints,
    HasParts,
    Images,
    ReadsMasks,
    keypoints_known,
    parts_known,
)
from fg_ssl_zoo.data.views import RandomViews


class Plain:
    """The interface and nothing else."""

    name, classes, labels = "plain", (), None

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"image": np.zeros((4, 4, 3), np.uint8), "index": index}


class Landmarks(Plain):
    def __init__(self):
        self.keypoints = ["left", "right"]


class Numbered(Plain):
    identity = "series 7"


def test_a_source_has_what_it_declares_and_nothing_else():
    assert isinstance(Plain(), Images)
    assert not isinstance(Plain(), HasParts | HasKeypoints | HasIdentity)
    assert (parts_known(Plain()), keypoints_known(Plain())) == ([], [])
    assert (parts_known(Landmarks()), keypoints_known(Landmarks())) == ([], ["left", "right"])
    assert isinstance(DrawnBirds(2), HasParts)


def test_a_subset_carries_what_its_source_declares():
    few = Subset(Landmarks(), np.asarray([1]))
    assert (parts_known(few), keypoints_known(few)) == ([], ["left", "right"])


def test_the_identity_decides_the_fingerprint_and_the_name_where_there_is_none():
    assert fingerprint(Numbered()) != fingerprint(Plain()) == fingerprint(Landmarks())


def test_region_views_read_masks_where_the_regions_are_the_masks():
    masks, other = (
        RandomRegionViews(32, 4, 2, (), regions) for regions in (given_parts, lambda sample: sample)
    )
    assert isinstance(masks, ReadsMasks)
    assert (masks.reads_masks, other.reads_masks) == (True, False)
    assert not isinstance(RandomViews(32, (), ()), ReadsMasks)
