"""A step waits for nothing that a device computes, and its networks are one graph each."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.engine import hardware
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.layers.momentum import teacher_of
from fg_ssl_zoo.methods import METHODS
from tests.runs import end_of, go_on
from tests.test_methods import batch_for, build

WAITS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim"}
"""Operators whose result the host must know: `item()`, `bool()`, shapes that depend on values."""

COPIES = {"lift_fresh"}
"""What `torch.tensor` calls: on a GPU it copies from the memory of the host."""

READ_EACH_STEP = {"synthesized_pairs": 2}
"""Its window of selection and the weight of its pairs, which decide what is computed."""


class Waiting(TorchDispatchMode):
    """Counts the operators that make the host wait."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name.partition("::")[2]
        if name in WAITS | COPIES or (name in ("index", "index_put_") and by_mask(args[1])):
            self.found[name] += 1
        return operator(*args, **(kwargs or {}))


def by_mask(indices):
    return any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)


def waiting_in(work):
    with Waiting() as waiting:
        work()
    return waiting.found


def test_what_makes_the_host_wait_is_counted():
    x = torch.arange(4.0)
    assert waiting_in(lambda: x.sum().item()) == {"_local_scalar_dense": 1}
    assert waiting_in(lambda: x[x > 1]) == {"index": 1}
    assert waiting_in(lambda: torch.tensor([1.0])) == {"lift_fresh": 1}
    assert not waiting_in(lambda: x.mul(2).softmax(0))


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_method_reads_no_value_and_copies_none_from_the_host(name, birds):
    method = build(name, "test_resnet").train()
    batch = batch_for(method, birds)
    optimizer = create_optimizer(method, Train(optimizer="adamw"))

    def step():
        method(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.on_step_end(0.5)

    step()  # a first one makes the moments
    assert waiting_in(step).total() == READ_EACH_STEP.get(name, 0)


@pytest.mark.slow
def test_the_loop_reads_no_value_between_log_lines(tmp_path, birds):
    def run(steps):
        settings = Train(steps=steps, batch_size=8, optimizer="adamw", checkpoint_every=99)
        folder = tmp_path / str(steps)
        return waiting_in(
            lambda: go_on(folder, birds, lambda: build("simclr", "test_vit"), settings)
        )

    three, six = run(3), run(6)
    assert six["_local_scalar_dense"] == three["_local_scalar_dense"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_student_and_teacher_are_one_graph(name):
    student = create_backbone(name, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    for network in (student.model.train(), teacher_of(student).model.train()):
        torch._dynamo.reset()
        told = torch._dynamo.explain(network)(images)
        assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


def test_networks_are_compiled_until_the_block_ends(monkeypatch):
    asked = []
    method = build("byol", "test_resnet")
    keys = list(method.state_dict())
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: asked.append((self, how)))
    with hardware.compiled(method, True):
        pass
    student, teacher = method.backbone.model, method.teacher[0].model
    assert asked == [(student, {"dynamic": False}), (teacher, {"dynamic": False})]
    assert list(method.state_dict()) == keys
    with hardware.compiled(method, False):
        assert len(asked) == 2


def test_the_picture_of_a_batch_is_not_compiled(tmp_path, birds, monkeypatch):
    stances = []

    def drawing():
        method = build("super_resolution", "test_resnet")

        def picture(batch):
            stances.append(torch._dynamo.eval_frame._stance.stance)
            return torch.zeros(2, 2, 3, dtype=torch.uint8)

        method.picture = picture
        return method

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: None)
    settings = Train(steps=1, batch_size=8, optimizer="sgd", lr=0.1)
    go_on(tmp_path, birds, drawing, settings, compile=True)
    assert stances == ["force_eager"]


@pytest.mark.long  # needs a C++ compiler
def test_a_compiled_run_has_the_weights_of_one_that_is_not(tmp_path, birds):
    settings = Train(steps=2, batch_size=8, optimizer="sgd", lr=0.1)
    for name, compiled in (("plain", False), ("compiled", True)):
        go_on(tmp_path / name, birds, lambda: build("byol", "test_vit"), settings, compile=compiled)
    plain, compiled = end_of(tmp_path / "plain"), end_of(tmp_path / "compiled")
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-5)
