import pytest
import torch

from fg_ssl_zoo.layers.feature_statistics import FeatureBank, MovingMean, MovingMoments


def vectors(count, seed=0):
    return 3 * torch.randn(count, 4, generator=torch.manual_seed(seed)) + 1


@pytest.mark.parametrize("sizes", [[3], [3, 3, 3], [5, 2, 4, 1], [7, 7], [9, 20, 3]])
def test_the_store_holds_the_newest_and_its_moments_are_theirs(sizes):
    store, seen = FeatureBank(7, 4), []
    for step, size in enumerate(sizes):
        new = vectors(size, seed=step)
        store.push(new)
        seen += list(new)
        newest = torch.stack(seen[-7:]).double()
        mean, variance = store.moments()
        torch.testing.assert_close(mean, newest.mean(0).float())
        torch.testing.assert_close(variance, newest.var(0, correction=0).float())
    kept = {tuple(row) for row in store.items.tolist()} - {(0.0,) * 4}
    assert kept == {tuple(row.tolist()) for row in seen[-7:]}


def test_an_empty_store_has_no_variance_and_half_precision_is_taken_in():
    store = FeatureBank(7, 4)
    assert all(torch.equal(x, torch.zeros(4)) for x in store.moments())
    store.push(vectors(3).bfloat16())
    assert store.items.dtype == torch.float32


def test_a_moving_mean_is_the_plain_mean_at_first_and_forgets_later():
    average, decay = MovingMean(4, decay=0.9), 0.9
    rows = vectors(30)
    for number, row in enumerate(rows, start=1):
        average.push(row)
        if number <= 10:
            torch.testing.assert_close(average.value, rows[:number].mean(0))
    wanted = rows[:10].double().mean(0)
    for row in rows[10:].double():
        wanted = decay * wanted + (1 - decay) * row
    torch.testing.assert_close(average.value, wanted.float())


def test_moving_moments_of_two_batches_are_those_of_both():
    moments, rows = MovingMoments(4), vectors(12)
    assert all(torch.equal(x, torch.zeros(4)) for x in moments.moments())
    moments.push(rows[:6])
    moments.push(rows[6:])
    mean, variance = moments.moments()
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(variance, rows.var(0, correction=0))


@pytest.mark.parametrize("kind", [lambda: FeatureBank(7, 4), lambda: MovingMoments(4)])
def test_all_of_it_is_state_and_nothing_is_trained(kind):
    one, other = kind(), kind()
    one.push(vectors(5))
    other.load_state_dict(one.state_dict())
    for each in (one, other):
        each.push(vectors(4, seed=1))
    for a, b in zip(one.moments(), other.moments(), strict=True):
        assert torch.equal(a, b)
    assert list(one.parameters()) == []
