"""Batches on the device: in order, their views finished, unreadable pictures named."""

import contextlib

import torch

from fg_ssl_zoo.data.device_views import defer
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.data.views import PRESETS, MultiCrop, RandomViews
from fg_ssl_zoo.engine import batches as engine_batches
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


def test_on_a_gpu_a_batch_is_copied_while_the_one_before_it_is_used(monkeypatch):
    """With stand-ins for streams: the step waits for its copy, and keeps its memory until used."""
    log = []

    class Stream:
        def __init__(self, device=None):
            pass

        def record_event(self):
            log.append("copied")
            return torch.Event("cuda")

        def wait_event(self, event):
            log.append("wait")

    def loader():
        for number in range(3):
            log.append(f"load {number}")
            yield {"index": torch.tensor(number), "corrupt": []}

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: log.append("keep"))
    monkeypatch.setattr(engine_batches, "send_to_device", lambda batch, *_, **__: dict(batch))
    for batch in on_device(loader(), torch.device("cuda"), lambda names: None):
        log.append(f"step {int(batch['index'])}")
    assert log == [
        "load 0", "copied", "load 1", "copied", "wait", "keep", "step 0",
        "load 2", "copied", "wait", "keep", "step 1", "wait", "keep", "step 2",
    ]  # fmt: skip
