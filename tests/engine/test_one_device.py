"""A step of a method makes its tensors on the device of its batch.

Fake tensors have shapes and a device, and torch refuses operators between two devices. The device
is `meta`, as autograd has no thread for a GPU that is not there.
"""

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fg_ssl_zoo.config import Train
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.layers import weak_dimensions
from fg_ssl_zoo.methods import METHODS, synthesized_pairs
from tests.test_methods import batch_for, build

QUICK = {"jigsaw", "moco", "reconstruction", "simclr", "simsiam"}
"""Methods whose step takes less than a second here."""


@pytest.fixture
def numbers_are_known(monkeypatch):
    """The numbers that `synthesized_pairs` reads in a step; no autocast, which meta lacks."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(synthesized_pairs, "bool", lambda x: True, raising=False)
    read = weak_dimensions.__dict__.get("int", int)
    known = lambda x: 5 if isinstance(x, Tensor) else read(x)  # noqa: E731
    monkeypatch.setattr(weak_dimensions, "int", known, raising=False)


def moved(module, mode):
    """The same module with fake tensors on the device; shared parameters stay shared."""
    found = {}

    def fake(x):
        if x is not None and id(x) not in found:
            plain = x.detach()
            with mode:
                found[id(x)] = mode.from_tensor(plain).to("meta")
            if isinstance(x, nn.Parameter):
                found[id(x)] = nn.Parameter(found[id(x)], requires_grad=x.requires_grad)
        return None if x is None else found[id(x)]

    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            kept.update({name: fake(x) for name, x in kept.items()})
    return module


def test_two_devices_are_refused():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="device"):
        torch.ones(2) + torch.ones(2, device="meta")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS]
)
@pytest.mark.parametrize("backbone", ["test_resnet"])
def test_a_step_stays_on_the_device_of_its_batch(name, backbone, birds, numbers_are_known):
    method, mode = build(name, backbone).train(), FakeTensorMode()
    batch = batch_for(method, birds)
    networks = [method, *(n for n in getattr(method, "_outside", ()) if n is not None)]
    for network in networks:
        moved(network, mode)
    with mode:
        placed = {
            key: mode.from_tensor(x).to("meta") for key, x in batch.items() if isinstance(x, Tensor)
        }
        output = method(placed)
        output.loss.backward()
        optimizer = create_optimizer(method, Train(optimizer="lars"))
        optimizer.step()
        method.on_step_end(0.5)
    assert {x.device.type for x in (output.loss, *output.metrics.values())} == {"meta"}
