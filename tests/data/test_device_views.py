"""Views that the device finishes are those that the loader would have made."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fg_ssl_zoo.data.device_views import defer, finish
from fg_ssl_zoo.data.views import PRESETS, Augmentation, MultiCrop, RandomViews

SOLARIZED = replace(PRESETS["byol"][1], solarize=1.0, blur=1.0)


def both(views, images):
    """A batch as the loader makes it, and one that the device finishes."""
    later = defer(views)
    assert later is not None
    found = []
    for kind in (views, later):
        samples = [
            kind({"image": images[i]["image"]}, np.random.default_rng(i))
            for i in range(len(images))
        ]
        keys = samples[0]
        batch = {k: torch.from_numpy(np.stack([sample[k] for sample in samples])) for k in keys}
        found.append(finish(batch))
    return found


@pytest.mark.parametrize(
    "pair",
    [*PRESETS.values(), (SOLARIZED, Augmentation(blur=0.0))],
    ids=[*PRESETS, "solarized"],
)
@pytest.mark.parametrize("size", [48, 224])
def test_pixels_differ_by_at_most_one(birds, pair, size):
    here, there = both(RandomViews(size, pair, (None, None)), birds)
    assert here.keys() == there.keys() == {"images"}
    assert there["images"].dtype == torch.uint8
    apart = (here["images"].int() - there["images"].int()).abs()
    assert apart.max() <= 1
    assert (apart == 0).float().mean() > 0.95


def test_crops_of_two_sizes_are_finished_alike(birds):
    crops = MultiCrop(
        RandomViews(64, PRESETS["byol"], (None, None)), RandomViews(32, [SOLARIZED] * 3, [None] * 3)
    )
    here, there = both(crops, birds)
    assert here.keys() == there.keys() == {"images", "local_images"}
    for key, value in here.items():
        assert value.shape == there[key].shape
        assert (value.int() - there[key].int()).abs().max() <= 1


def test_an_edit_before_the_crop_is_made_and_views_that_only_the_loader_makes_are_told(birds):
    edits = (lambda image, generator: image[::-1], None)  # upside down
    edited, plain = (RandomViews(32, PRESETS["simclr"], e) for e in (edits, (None, None)))
    here, there = both(edited, birds)
    assert (here["images"].int() - there["images"].int()).abs().max() <= 1
    unedited = both(plain, birds)[1]
    assert not torch.equal(there["images"][:, 0], unedited["images"][:, 0])
    assert torch.equal(there["images"][:, 1], unedited["images"][:, 1])
    assert defer(RandomViews(32, PRESETS["simclr"], edits, after=True)) is None
    assert defer(lambda sample, generator: sample) is None
