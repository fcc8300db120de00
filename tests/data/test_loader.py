import numpy as np
import pytest
import torch

from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.data.loader import (
    TooManyCorruptImages,
    ViewDataset,
    image_loader,
    resolve_num_workers,
    step_loader,
)
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.views import RandomViews, augmentations_of
from tests.pictures import SomeCorrupt


def views(size=32):
    return RandomViews(size, augmentations_of("fine_grained"), (None, None))


def batches(dataset, order, steps, **options):
    options = {"num_workers": 0, **options}
    return list(step_loader(dataset, order, steps, **options))


def test_a_wrong_bound_on_pixels_is_refused_outside_of_the_workers(birds, monkeypatch):
    monkeypatch.setenv("FG_SSL_ZOO_MAX_PIXELS", "abc")
    message = "^FG_SSL_ZOO_MAX_PIXELS=abc is no number of pixels"
    with pytest.raises(ValueError, match=message):
        image_loader(birds, CentreView(32), [0], batch_size=1, num_workers=1)
    with pytest.raises(ValueError, match=message):
        batches(ViewDataset(birds, views(), seed=0), Order(4, 2, 0), range(1), num_workers=1)


def test_an_epoch_holds_every_image_once_and_drops_the_rest():
    order = Order(num_images=11, batch_size=3, seed=0)
    drawn = [key for step in range(order.steps_per_epoch) for key in order(step)]
    assert len(drawn) == len(set(drawn)) == 9
    assert {epoch for epoch, _ in drawn} == {0}


def test_epochs_and_seeds_have_different_orders():
    order = Order(num_images=30, batch_size=30, seed=0)
    first, second = ([i for _, i in order(step)] for step in (0, 1))
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    assert first != [i for _, i in Order(30, 30, seed=1)(0)]


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"batch_size: 64 is more than the 16 training images"):
        Order(num_images=16, batch_size=64, seed=0)


def test_views_depend_neither_on_workers_nor_on_where_one_starts(birds):
    dataset, order = ViewDataset(birds, views(), seed=3), Order(len(birds), 4, 3)
    whole = batches(dataset, order, range(6))
    from_the_middle = batches(dataset, order, range(4, 6))
    with_threads = batches(dataset, order, range(6), num_workers=2)
    with_processes = batches(dataset, order, range(6), num_workers=3)
    for a, b in [
        *zip(whole[4:], from_the_middle, strict=True),
        *zip(whole, with_threads, strict=True),
        *zip(whole, with_processes, strict=True),
    ]:
        assert torch.equal(a["images"], b["images"])
        assert torch.equal(a["index"], b["index"])


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_the_shares_of_all_processes_and_parts_are_the_whole_batch(birds, world, parts):
    dataset, order = ViewDataset(birds, views(), seed=0), Order(len(birds), 8, 0)
    whole = batches(dataset, order, range(2))
    shares = [
        batches(dataset, order, range(2), rank=rank, world=world, parts=parts)
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        pieces = [shares[r][step * parts + p]["index"] for p in range(parts) for r in range(world)]
        assert torch.equal(torch.cat(pieces), batch["index"])


def test_a_batch_that_the_processes_cannot_share_is_refused(birds):
    dataset, order = ViewDataset(birds, views(), seed=0), Order(len(birds), 8, 0)
    with pytest.raises(ValueError, match="8 is not divisible by 3 processes x 1 accumulated"):
        step_loader(dataset, order, range(1), num_workers=0, world=3)


def test_a_corrupt_picture_is_replaced_by_the_next_and_named(birds):
    order = Order(len(birds), len(birds), 0)
    (batch,) = batches(ViewDataset(SomeCorrupt(birds, [4, 5]), views(), seed=0), order, range(1))
    seen = sorted(batch["index"].tolist())
    assert seen == sorted([*(set(range(16)) - {4, 5}), 6, 6])
    assert set(batch["corrupt"]) == {"4.jpg is truncated", "5.jpg is truncated"}


def test_a_set_without_a_readable_picture_is_an_error(birds):
    dataset = ViewDataset(SomeCorrupt(birds, range(16)), views(), seed=0)
    with pytest.raises(TooManyCorruptImages, match="none of the 16 images can be decoded"):
        dataset[0, 0]


def test_evaluation_reads_every_readable_picture_once_and_in_order(birds):
    loader = image_loader(
        SomeCorrupt(birds, [0, 9]), CentreView(32), range(16), batch_size=5, num_workers=0
    )
    seen = torch.cat([batch["index"] for batch in loader])
    assert seen.tolist() == [i for i in range(16) if i not in (0, 9)]


def test_notes_reach_the_views(birds):
    def parts_of(sample, generator):
        return {"parts": sample["parts"]}

    dataset = ViewDataset(birds, parts_of, 0, notes={"parts": torch.arange(16) * 10})
    assert [int(dataset[0, i]["parts"]) for i in (0, 7)] == [0, 70]
    holed = ViewDataset(SomeCorrupt(birds, [7]), parts_of, 0, notes=dataset.notes)
    assert (holed[0, 7]["index"], int(holed[0, 7]["parts"])) == (8, 80)  # of the image shown


def test_the_generator_is_seeded_by_seed_epoch_and_index(birds):
    def drawn(seed, key):
        dataset = ViewDataset(birds, lambda _, generator: {"x": generator.random()}, seed)
        return dataset[key]["x"]

    values = [drawn(0, (0, 0)), drawn(1, (0, 0)), drawn(0, (1, 0)), drawn(0, (0, 1))]
    assert len(set(values)) == 4
    assert values[2] == np.random.default_rng([0, 1, 0]).random()


def test_auto_workers_leave_small_machines_alone(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [resolve_num_workers("auto", 1, cores) for cores in (1, 2, 4, 64)] == [0, 0, 3, 8]
    assert resolve_num_workers("auto", world=4, cores=16) == 3
    assert resolve_num_workers(5) == 5


def test_auto_workers_share_the_cores_of_one_machine_of_several(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert resolve_num_workers("auto", world=8, cores=64) == 7
    assert resolve_num_workers("auto", world=256, cores=64) == 7
    assert resolve_num_workers("auto", world=1, cores=8) == 7  # an evaluation in one process
