"""Batches through memory that is used again: the same batches, and no more memory than slots."""

import gc

import numpy as np
import pytest
import torch

from fg_ssl_zoo.data import loader as loader_module
from fg_ssl_zoo.data.loader import (
    PREFETCH,
    ViewDataset,
    collate,
    image_loader,
    loader_of_all,
    step_loader,
)
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.slots import _READERS, Filled, SlotReader, stacked
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from tests.pictures import SomeCorrupt


def assert_equal(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if key == "corrupt":
                assert a[key] == b[key]
            else:
                assert a[key].dtype == b[key].dtype
                assert torch.equal(a[key], b[key]), key


class Growing:
    """Views whose size changes with the image of a batch, and a tensor and numbers besides."""

    def __call__(self, sample, generator):
        side = 8 + 4 * (sample["index"] // 4)
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        return {"images": pixels, "mean": torch.tensor([pixels.mean()]), "half": side / 2}


@pytest.fixture
def watched(monkeypatch):
    """What came from the loader processes."""
    messages, read = [], SlotReader.__call__
    monkeypatch.setattr(SlotReader, "__call__", lambda self, m: messages.append(m) or read(self, m))
    return messages


@pytest.mark.slow
def test_slots_are_used_again_and_batches_stay_what_they_were(birds, watched):
    views = RandomViews(32, augmentations_of("simclr"), (None, None))
    dataset = ViewDataset(SomeCorrupt(birds, [3]), views, seed=1)
    order, steps = Order(16, 4, 1), range(30)
    batches = list(step_loader(dataset, order, steps, num_workers=3))
    assert_equal(batches, list(step_loader(dataset, order, steps, num_workers=0)))
    sent = watched[:30]
    assert all(isinstance(message, Filled) for message in sent)
    assert sum(bool(message.new) for message in sent) == 3 * (PREFETCH + 1)
    assert len({message.slot for message in sent}) == 3 * (PREFETCH + 1)
    assert len({batch["images"].data_ptr() for batch in batches}) == 30
    number = sent[0].reader
    gc.collect()
    assert number not in _READERS  # the slots are given back with the loader's iterator


@pytest.mark.slow
def test_batches_of_other_sizes_are_the_same_too(birds):
    dataset, order = ViewDataset(birds, Growing(), seed=0), Order(16, 1, 0)
    steps = range(60)
    assert_equal(
        list(step_loader(dataset, order, steps, num_workers=3)),
        list(step_loader(dataset, order, steps, num_workers=0)),
    )


def test_every_picture_once_and_a_short_last_batch(birds):
    views = RandomViews(32, augmentations_of("simclr"), (None, None))
    pictures, numbers = SomeCorrupt(birds, [0, 1, 2, 5]), list(range(15))
    one, two = (
        list(image_loader(pictures, views, numbers, batch_size=2, num_workers=n)) for n in (3, 0)
    )
    assert one[0] == two[0] == {}  # neither can be read
    assert_equal(one, two)


def test_stacking_into_a_slot_is_stacking():
    room = {}

    def make(key, shape, dtype):
        room[key] = torch.zeros(shape, dtype=dtype)
        return room[key]

    for values in (
        [np.float32([1, 2]), np.float32([3, 4])],
        [torch.tensor([True]), torch.tensor([False])],
        [1, 2],
        [1, 2.5],
    ):
        plain, slotted = stacked("x", values), stacked("x", values, make)
        assert plain.dtype == slotted.dtype
        assert torch.equal(plain, slotted)
        assert slotted.data_ptr() == room["x"].data_ptr()
    assert collate([{"corrupt": ["a"], "x": 1}, {"corrupt": [], "x": 2}])["corrupt"] == ["a"]


def test_a_pinned_batch_is_a_copy_of_its_slot(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    reader = SlotReader()
    slot = torch.arange(4)
    first = Filled(reader.number, (0, 0), {"x": 3}, {"x": slot}, ["a"]).pin_memory()
    slot.fill_(7)
    second = Filled(reader.number, (0, 0), {"x": 4}, {}, []).pin_memory()
    assert first["x"].tolist() == [0, 1, 2]
    assert first["corrupt"] == ["a"]
    assert second["x"].tolist() == [7, 7, 7, 7]
    assert reader(first) is first  # torch hands on what its thread has pinned


def test_prefetching_is_what_the_slots_were_counted_for(birds):
    views = RandomViews(32, augmentations_of("simclr"), (None, None))
    dataset = ViewDataset(birds, views, seed=1)
    for made in (
        step_loader(dataset, Order(16, 4, 1), range(3), num_workers=3),
        loader_of_all(birds, views, [0, 1], batch_size=1, num_workers=3),
    ):
        assert isinstance(made.collate_fn, loader_module.SlotCollate)
        assert len(made.collate_fn.slots) == made.prefetch_factor + 1
