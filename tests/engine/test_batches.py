"""Batches on the device: in order, their views finished, unreadable pictures named."""

import torch

from fg_ssl_zoo.data.device_views import defer
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.views import PRESETS, MultiCrop, RandomViews
from fg_ssl_zoo.engine.batches import on_device

VIEWS = MultiCrop(
    RandomViews(64, PRESETS["byol"], (None, None)), RandomViews(32, PRESETS["byol"], (None, None))
)


def batches_of(views, birds, noted):
    loader = step_loader(ViewDataset(birds, views, 0), Order(16, 4, 0), range(4), num_workers=2)
    return list(on_device(loader, torch.device("cpu"), noted.append))


def test_views_that_the_device_finishes_go_through_the_loader_like_others(birds):
    later = defer(VIEWS)
    assert later is not None
    noted = []
    batches = batches_of(VIEWS, birds, noted), batches_of(later, birds, noted)
    assert noted == [[]] * 8
    for here, there in zip(*batches, strict=True):
        assert here.keys() == there.keys()
        assert torch.equal(here["index"], there["index"])
        for key in ("images", "local_images"):
            assert here[key].dtype == there[key].dtype == torch.uint8
            assert (here[key].int() - there[key].int()).abs().max() <= 1
