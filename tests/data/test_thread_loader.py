"""Batches of threads: the same ones, in order, and an error where its batch would have come."""

import threading

import pytest
import torch

from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import ViewDataset, collate, image_loader, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.thread_loader import ThreadLoader
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from tests.data.test_slots import assert_equal
from tests.pictures import SomeCorrupt


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]


@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_threads_are_those_of_the_training_process(birds, count):
    views = RandomViews(32, augmentations_of("simclr"), (None, None))
    dataset = ViewDataset(SomeCorrupt(birds, [3]), views, seed=1)
    order, steps = Order(16, 4, 1), range(3, 25)
    one, two = (list(step_loader(dataset, order, steps, num_workers=n)) for n in (count, 0))
    assert_equal(one, two)
    pictures = SomeCorrupt(birds, [0, 1, 2, 5])
    one, two = (
        list(image_loader(pictures, CentreView(32), range(15), batch_size=2, num_workers=n))
        for n in (count, 0)
    )
    assert one[0] == {}  # neither can be read
    assert_equal(one, two)


def test_as_many_batches_are_made_ahead_as_were_asked_for():
    made, taken = [], []

    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, key):
            made.append(key)
            return {"x": key, "corrupt": []}

    loader = ThreadLoader(
        Numbers(), [[n] for n in range(20)], collate=collate, num_threads=2, prefetch_factor=3
    )
    for batch in loader:
        taken.append(int(batch["x"]))
        assert len(made) <= len(taken) + 6
    assert taken == sorted(made) == list(range(20))


def test_an_error_is_raised_where_its_batch_would_have_come(birds):
    class Fails:
        def __call__(self, sample, generator):
            if sample["index"] == 9:
                raise ValueError("the tenth image")
            return {"x": sample["index"]}

    batches = iter(image_loader(birds, Fails(), range(16), batch_size=4, num_workers=2))
    assert [next(batches)["x"].tolist() for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match=r"^the tenth image$"):
        next(batches)
    for thread in threads():
        thread.join(30)
    assert not threads()


def test_random_numbers_that_follow_do_not_depend_on_helpers(birds):
    dataset = ViewDataset(birds, CentreView(32), seed=0)
    drawn = []
    for count in (0, 2, 3):
        torch.manual_seed(0)
        iter(step_loader(dataset, Order(16, 4, 0), range(1), num_workers=count))
        drawn.append(torch.rand(()).item())
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_pinned_batch_is_pinned_by_its_thread(birds, monkeypatch):
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda x: pinned.append(threading.current_thread().name) or x
    )
    dataset = ViewDataset(birds, CentreView(32), seed=0)
    loader = step_loader(dataset, Order(16, 4, 0), range(1), num_workers=2, pin_memory=True)
    (batch,) = loader
    assert batch["corrupt"] == []
    assert len(pinned) == len(batch) - 1
    assert all(name.startswith("pictures") for name in pinned)
