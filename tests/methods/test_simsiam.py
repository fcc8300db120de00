import copy
import math

import pytest
import torch

from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.engine.optim import create_optimizer, schedule
from tests.methods.short_runs import (
    assert_equal_states,
    build,
    by_one_and_by_two,
    pairs,
    train_twice,
)

SMALL = {"projection_size": 32, "predictor_size": 8}


def cosines(predictions, targets):
    """The mean cosine with loops, in float64."""
    total = 0.0
    for p, z in zip(predictions.detach().double(), targets.detach().double(), strict=True):
        total += float(sum(p * z)) / math.sqrt(float(sum(p * p)) * float(sum(z * z)))
    return total / len(predictions)


def test_the_loss_is_the_papers_and_both_views_take_one_pass():
    method = build("simsiam", **SMALL)
    images = pairs(method)
    both = torch.cat([method.backbone.normalize(images[:, view]) for view in (0, 1)])
    z = method.projector(method.backbone(both))
    p = method.predictor(z)
    expected = -(cosines(p[:8], z[8:]) + cosines(p[8:], z[:8])) / 2
    output = method({"images": images})
    assert float(output.loss.detach()) == pytest.approx(expected, abs=1e-5)
    rows = (z / z.norm(dim=1, keepdim=True)).detach()
    torch.testing.assert_close(output.metrics["train/z_std"], rows.std(0, correction=0).mean())


class Turn(torch.nn.Module):
    """A prediction at right angles to what it reads."""

    def forward(self, z):
        return torch.stack([-z[:, 1::2], z[:, ::2]], dim=2).flatten(1)


@pytest.mark.parametrize(("predictor", "expected"), [(torch.nn.Identity(), -1.0), (Turn(), 0.0)])
def test_equal_vectors_cost_minus_1_and_orthogonal_ones_0(predictor, expected):
    method = build("simsiam", **SMALL)
    method.predictor = predictor
    images = pairs(method)[:, :1].expand(-1, 2, -1, -1, -1)  # two equal views
    loss = float(method({"images": images}).loss.detach())
    assert loss == pytest.approx(expected, abs=1e-5)


def test_the_gradient_stops_at_the_projections_that_are_predicted():
    """As with projections that a twin has made."""
    method = build("simsiam", **SMALL)
    images = pairs(method)
    both = method.backbone.normalize(images.transpose(0, 1).flatten(0, 1))
    with torch.no_grad():
        twin = copy.deepcopy(method)
        z0, z1 = twin.projector(twin.backbone(both)).chunk(2)
    weight = method.projector[0].weight
    (found,) = torch.autograd.grad(method({"images": images}).loss, weight)
    p0, p1 = method.predictor(method.projector(method.backbone(both))).chunk(2)
    loss = sum(-torch.cosine_similarity(*pair).mean() / 2 for pair in ((p0, z1), (p1, z0)))
    torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0], rtol=1e-3, atol=1e-6)


def test_the_predictor_keeps_its_rate_and_all_else_follows_the_cosine():
    """Defect 5: a schedule that no step reads."""
    method = build("simsiam", **SMALL)
    settings = Train(optimizer="momentum", lr=0.5, batch_size=128, warmup=0.0)
    optimizer = create_optimizer(method, settings)
    rates = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    predictor = {id(p) for p in method.predictor.parameters()}
    for progress in (0.0, 0.3, 0.5, 1.0):
        schedule(optimizer, settings, progress)
        wanted = 0.25 * (1 + math.cos(math.pi * progress)) / 2
        for name, parameter in method.named_parameters():
            expected = 0.25 if id(parameter) in predictor else wanted
            assert rates[id(parameter)]["lr"] == pytest.approx(expected), name


def test_heads_are_those_of_the_paper():
    method = build("simsiam")
    d = method.backbone.num_features
    linear = [m for m in method.projector if isinstance(m, torch.nn.Linear)]
    norms = [m for m in method.projector if isinstance(m, torch.nn.BatchNorm1d)]
    assert [m.weight.shape for m in linear] == [(2048, d), (2048, 2048), (2048, 2048)]
    assert [norm.affine for norm in norms] == [True, True, False]
    assert method.projector[-1] is norms[-1]
    linear = [m for m in method.predictor if isinstance(m, torch.nn.Linear)]
    assert [m.weight.shape for m in linear] == [(512, 2048), (2048, 512)]
    assert [m.bias is not None for m in linear] == [False, True]
    assert build("simsiam", preset="paper", **SMALL).augmentations == PRESETS["moco_v2"]


def test_two_processes_equal_one_in_loss_gradients_and_statistics(tmp_path):
    one, *two = by_one_and_by_two("simsiam", SMALL, tmp_path)
    torch.testing.assert_close(two[0], one, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(two[1], one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_weights_of_one_that_was_not_stopped(tmp_path, birds):
    whole, again = train_twice(tmp_path, birds, "simsiam", SMALL)
    assert_equal_states(again, whole)
