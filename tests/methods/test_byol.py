import copy
import math

import numpy as np
import pytest
import torch

from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.ops.similarity import mean_cosine
from tests.methods.short_runs import (
    assert_equal_states,
    build,
    by_one_and_by_two,
    pairs,
    student,
    train_twice,
)

SMALL = {"hidden_size": 32, "projection_size": 16}


def loss_of_the_paper(predictions, targets):
    """Equation 2 with loops in float64: squared distance of unit vectors, one direction."""
    total = 0.0
    for p, t in zip(predictions.detach().double(), targets.double(), strict=True):
        difference = p / p.norm() - t / t.norm()
        total += float(sum(x**2 for x in difference)) / len(predictions)
    return total


def test_the_loss_is_the_papers_and_each_network_takes_both_views_in_one_pass():
    method = build("byol", **SMALL)
    with torch.no_grad():
        for parameter in method.teacher.parameters():  # not the student any more
            parameter += 0.01
    images = pairs(method)
    twin = copy.deepcopy(method)
    both = torch.cat([twin.backbone.normalize(images[:, view]) for view in (0, 1)])
    z = twin.projector(twin.backbone(both))
    p, t = twin.predictor(z), twin.teacher(both)
    expected = loss_of_the_paper(p[:8], t[8:]) + loss_of_the_paper(p[8:], t[:8])
    output = method({"images": images})
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)
    rows = (z / z.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(output.metrics["train/z_std"], rows.std(0, correction=0).mean())


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 4.0)])
def test_a_direction_costs_0_for_equal_and_4_for_opposite_vectors(sign, expected):
    z = torch.randn(6, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    assert float(2 - 2 * mean_cosine(sign * z, z)) == pytest.approx(expected, abs=1e-12)
    assert loss_of_the_paper(sign * z, z) == pytest.approx(expected, abs=1e-12)
    method = build("byol", **SMALL)
    last, theirs = method.predictor[-1], method.teacher[1][-1]
    for layer, value in ((last, sign), (theirs, 1.0)):
        torch.nn.init.zeros_(layer.weight)
        layer.bias = torch.nn.Parameter(torch.full((16,), value))
    loss = float(method({"images": pairs(method)}).loss.detach())
    assert loss == pytest.approx(2 * expected, abs=1e-5)


@pytest.mark.parametrize("start", [0.99, 0.996])
def test_the_teacher_follows_on_the_schedule_of_the_paper(start):
    method = build("byol", momentum=start, **SMALL)
    with torch.no_grad():
        for parameter in student(method).parameters():
            parameter += 1
    expected = {key: value.clone() for key, value in method.teacher.named_parameters()}
    steps = 5
    for k in range(1, steps + 1):
        momentum = 1 - (1 - start) * (math.cos(math.pi * k / steps) + 1) / 2
        method.on_step_end(k / steps)
        for key, value in method.teacher.named_parameters():
            own = student(method).get_parameter(key)
            expected[key] = momentum * expected[key] + (1 - momentum) * own
            torch.testing.assert_close(value, expected[key], msg=key)


def test_gradients_reach_the_student_only_and_its_pass_moves_no_statistic_of_the_teacher():
    method = build("byol", **SMALL)
    before = copy.deepcopy(method.teacher.state_dict())
    method({"images": pairs(method)}).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    for key, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    owners = {key.split(".")[0] for key in method.state_dict()}
    assert owners == {"backbone", "projector", "predictor", "teacher"}


def test_heads_are_those_of_the_paper():
    method = build("byol")
    for head, first in (
        (method.projector, method.backbone.num_features), (method.predictor, 256),
    ):  # fmt: skip
        shapes = [m.weight.shape for m in head if isinstance(m, torch.nn.Linear)]
        assert shapes == [(4096, first), (256, 4096)]
        assert isinstance(head[1], torch.nn.BatchNorm1d)
        assert len(head) == 4


def test_the_papers_two_views_differ_in_blur_and_solarisation(birds):
    method = build("byol", preset="paper", **SMALL)
    assert method.augmentations == PRESETS["byol"]
    first, second = method.augmentations
    assert [(v.blur, v.solarize) for v in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]
    seen = method.views(64)(birds[0], np.random.default_rng(0))["images"]
    assert seen.shape == (2, 64, 64, 3)


def test_two_processes_equal_one_in_loss_gradients_and_statistics(tmp_path):
    one, *two = by_one_and_by_two("byol", SMALL, tmp_path)
    torch.testing.assert_close(two[0], one, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two[1], one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_weights_and_the_teacher_of_one_that_was_not_stopped(
    tmp_path, birds
):
    whole, again = train_twice(tmp_path, birds, "byol", SMALL)
    assert_equal_states(again, whole)
