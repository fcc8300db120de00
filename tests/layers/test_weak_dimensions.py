import pytest
import torch

from fg_ssl_zoo.layers.feature_statistics import FeatureBank, MovingMoments
from fg_ssl_zoo.layers.weak_dimensions import (
    WeakDimensions,
    lowest,
    neighbours_kept,
    partly_random,
)

WIDTH = 20
STANDARD = {
    "criterion": "union", "relative": False, "variance_share": 0.2, "importance_share": 0.2,
    "per_sample": False, "random_share": 0.0, "every": 0.01, "perturbation": "gauss",
    "strength": 1.0,
}  # fmt: skip


def build(statistics="store", **options):
    torch.manual_seed(0)
    kept = FeatureBank(64, WIDTH) if statistics == "store" else MovingMoments(WIDTH)
    return WeakDimensions(kept, WIDTH, **STANDARD | options)


def features(rows=16, seed=0):
    """Each dimension has its own scale; the third never changes."""
    h = torch.rand(rows, WIDTH, generator=torch.manual_seed(seed))
    h = h * torch.linspace(3, 1, WIDTH)
    h[:, 3] = 0.7
    return h


def importances(rows=16):
    a = torch.rand(rows, WIDTH, generator=torch.manual_seed(7)) + 0.1
    a[:, 5] = 0
    return a


def selected(progress=0.5, **options):
    weak = build(**options)
    weak.observe(features(), importances())
    weak.reselect(progress)
    return weak


def smallest(values, count):
    return set(sorted(range(len(values)), key=lambda d: values[d])[:count])


def sets_of_the_paper(relative=False):
    """S_var and S_cam with loops, in float64: four of twenty dimensions each."""
    h, a = features().double(), importances().double()
    variances = []
    for d in range(WIDTH):
        mean = sum(h[:, d]) / len(h)
        variance = sum((x - mean) ** 2 for x in h[:, d]) / len(h)
        variances.append(float(variance / (mean**2 + 1e-6) if relative else variance))
    return smallest(variances, 4), smallest([float(sum(a[:, d])) for d in range(WIDTH)], 4)


def members(mask):
    return set(mask.nonzero().flatten().tolist())


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("criterion", ["variance", "gradcam", "union", "intersection"])
def test_s_is_that_of_the_paper(criterion, relative):
    low_variance, low_importance = sets_of_the_paper(relative)
    wanted = {
        "variance": low_variance,
        "gradcam": low_importance,
        "union": low_variance | low_importance,
        "intersection": low_variance & low_importance,
    }[criterion]
    weak = selected(criterion=criterion, relative=relative)
    assert members(weak.chosen) == wanted
    assert low_variance != low_importance


@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.5, 1.0])
def test_of_one_criterion_it_has_its_share_of_the_dimensions(share):
    values = torch.rand(3, WIDTH, generator=torch.manual_seed(0))
    values[0] = 1.0  # all alike
    mask = lowest(values, share)
    assert mask.sum(1).tolist() == [round(share * WIDTH)] * 3
    for row, chosen in zip(values, mask, strict=True):
        if 0 < share < 1:
            assert row[chosen].max() <= row[~chosen].min()
    assert members(mask[0]) == set(range(round(share * WIDTH)))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("statistics", ["store", "moving"])
def test_what_never_changes_is_always_of_low_variance(statistics, relative):
    weak = build(statistics, criterion="variance", relative=relative, variance_share=1 / WIDTH)
    for step in range(5):
        weak.observe(features(seed=step), importances())
        weak.reselect((step + 1) / 5)
        assert members(weak.chosen) == {3}


@pytest.mark.parametrize("count", [0, 1, 6, 19, 20])
def test_a_random_s_is_of_the_same_size_and_stays_as_it_is(count):
    drawn = torch.randperm(WIDTH, generator=torch.manual_seed(1))
    first = torch.zeros(WIDTH, dtype=torch.bool)
    first[torch.randperm(WIDTH, generator=torch.manual_seed(2))[:count]] = True
    assert torch.equal(partly_random(first, drawn, 0.0), first)
    assert members(partly_random(first, drawn, 1.0)) == set(drawn[:count].tolist())
    half = partly_random(first, drawn, 0.5)
    assert half.sum() == count
    assert (half & first).sum() >= count - round(0.5 * count)


def test_the_random_control_has_the_size_of_each_criterion():
    for criterion in ("variance", "gradcam", "union", "intersection"):
        chosen = selected(criterion=criterion).chosen
        control = selected(criterion=criterion, random_share=1.0)
        assert control.chosen.sum() == chosen.sum()
        assert members(control.chosen) == set(control.drawn[: chosen.sum()].tolist())


def test_each_image_may_have_its_own():
    weak = selected(per_sample=True, criterion="union")
    rows = weak.of(importances(3))
    assert rows.shape == (3, WIDTH)
    assert not torch.equal(rows[0], rows[1])
    for row, values in zip(rows, importances(3), strict=True):
        assert members(row) == sets_of_the_paper()[0] | smallest(values.tolist(), 4)
    assert torch.equal(selected().of(importances(3)), selected().chosen[None])


def test_s_is_made_anew_in_every_share_of_the_stage_and_in_each_round():
    weak, made = build(every=0.25), []
    for step in [*range(1, 9), *range(1, 9)]:
        weak.observe(features(seed=step), importances())
        before = weak.variance.clone()
        weak.reselect(step / 8)
        made.append(not torch.equal(before, weak.variance))
    assert made == [True, True, False, True, False, True, False, True] * 2


def test_the_log_tells_size_overlap_and_variances():
    weak = selected(criterion="variance")
    before = members(weak.chosen)
    weak.observe(features(48, seed=5), importances(48))
    weak.reselect(0.9)
    after, found = members(weak.chosen), weak.describe(features(), weak.chosen[None])
    h = torch.cat([features(), features(48, seed=5)]).double()
    variance = h.var(0, correction=0)
    inside = sorted(after)
    outside = sorted(set(range(WIDTH)) - after)
    assert found["train/weak_share"] == pytest.approx(0.2)
    assert found["train/weak_overlap"] == pytest.approx(len(before & after) / len(before | after))
    assert found["train/variance_weak"] == pytest.approx(variance[inside].mean().item())
    assert found["train/variance_kept"] == pytest.approx(variance[outside].mean().item())


def neighbour(h, i, mask):
    """Index of the nearest other row with loops, in float64."""
    rows = [row[mask].double() for row in h]
    cosines = [float(rows[i] @ r / (rows[i].norm() * r.norm())) for r in rows]
    return max((j for j in range(len(h)) if j != i), key=lambda j: cosines[j])


def test_neighbours_are_counted_that_stay_without_s():
    h = torch.randn(12, WIDTH, generator=torch.manual_seed(0))
    weak = torch.rand(12, WIDTH, generator=torch.manual_seed(1)) < 0.4
    everything = torch.ones(WIDTH, dtype=torch.bool)
    for masks in (weak, weak[:1]):
        stays = [
            neighbour(h, i, everything) == neighbour(h, i, ~mask)
            for i, mask in enumerate(masks.expand_as(h))
        ]
        assert 0 < sum(stays) < 12
        assert neighbours_kept(h, masks) == pytest.approx(sum(stays) / 12)
    assert neighbours_kept(h, torch.zeros_like(weak)) == 1


# --------------------------------------------------------------------------- perturbation


def test_zero_mean_and_swap_are_what_they_say():
    h = features(6, seed=9)
    assert torch.equal(selected(perturbation="zero").replacement(h), torch.zeros_like(h))
    mean = features().mean(0)
    torch.testing.assert_close(
        selected(perturbation="mean").replacement(h), mean.expand_as(h), rtol=1e-5, atol=1e-6
    )
    weak = selected(perturbation="swap")
    for _ in range(10):
        swapped = weak.replacement(h)
        for own, other in zip(h, swapped, strict=True):
            assert not torch.equal(own, other)  # of another image
            assert any(torch.equal(row, other) for row in h)


def test_noise_has_the_mean_deviation_of_all_dimensions_also_where_there_is_little():
    weak = selected(perturbation="gauss", strength=0.5)
    h = torch.full((20_000, WIDTH), -50.0)
    change = weak.replacement(h) - h
    sigma = features().double().var(0, correction=0).sqrt().mean()
    torch.testing.assert_close(
        change.std(0), torch.full((WIDTH,), 0.5 * sigma.item()), rtol=0.03, atol=0
    )
    assert change.mean().abs() < 0.01 * sigma


def test_what_is_never_negative_stays_so_and_what_is_may_be():
    weak = selected(perturbation="gauss", strength=3.0)
    assert weak.replacement(features()).min() == 0
    assert weak.replacement(features() - 1).min() < -1
