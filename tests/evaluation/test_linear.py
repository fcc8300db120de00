import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fg_ssl_zoo.evaluation import linear as module
from fg_ssl_zoo.evaluation.linear import (
    RATES,
    linear,
    linear_sgd,
    logistic_regression,
    sgd_logits,
)
from tests.evaluation.tasks import features, made_task, perfect_task, random_task


def some(n, d, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=generator)
    labels = torch.arange(n) % classes
    return centres[labels] + 2 * torch.randn(n, d, generator=generator), labels


@pytest.mark.parametrize("width", [4, 40])
def test_logistic_regression_in_the_span_of_the_pictures_is_the_plain_one(width):
    train, labels = some(30, width)
    test, _ = some(200, width, seed=0)
    plain = LogisticRegression(C=1.0, max_iter=10_000, tol=1e-8).fit(train.double().numpy(), labels)
    predicted, converged = logistic_regression(train, labels, test)
    assert converged
    agree = (predicted == plain.predict(test.double().numpy())).mean()
    assert agree >= 0.995  # both stop at a tolerance


def test_a_fit_that_does_not_converge_says_so(monkeypatch):
    monkeypatch.setattr(module, "MAX_ITERATIONS", 2)
    (outcome,) = linear(random_task(each=12))
    assert outcome.notes == ("did not converge in 2 iterations",)


def test_unit_length_is_an_argument_and_a_setting():
    task = perfect_task()
    (plain,) = linear(task)
    (normalised,) = linear(task, l2_normalize=True)
    assert plain.settings["l2_normalize"] is False
    assert normalised.settings["l2_normalize"] is True


def test_rates_trained_side_by_side_equal_each_alone():
    train, labels = some(60, 5)
    test, _ = some(20, 5)
    both = sgd_logits(train, labels, test, (0.1, 1.0), 3, seed=0)
    for number, rate in enumerate((0.1, 1.0)):
        alone = sgd_logits(train, labels, test, (rate,), 3, seed=0)[0]
        torch.testing.assert_close(both[number], alone, rtol=1e-4, atol=1e-4)


def test_one_rate_of_the_sgd_probe_equals_torchs_own_loop(monkeypatch):
    monkeypatch.setattr(module, "EPOCHS", 3)
    train, labels = some(20, 4)
    layer = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for epoch in range(3):  # one batch an epoch
        optimizer.param_groups[0]["lr"] = 0.5 * (1 + np.cos(np.pi * epoch / 3)) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(train), labels).backward()
        optimizer.step()
    found = sgd_logits(train, labels, train, (0.5,), 3, seed=0)[0]
    torch.testing.assert_close(found, layer(train).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("c", [1e-3, 10.0])
@pytest.mark.parametrize("width", [4, 40])  # as it is, and in the span of the pictures
def test_c_is_the_inverse_weight_of_the_penalty(width, c):
    train, labels = some(30, width)
    labels[:18] = 0  # a strong penalty names the frequent class
    test, _ = some(100, width, seed=1)
    plain = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(train.double().numpy(), labels)
    predicted, _ = logistic_regression(train, labels, test, c=c)
    assert (predicted == plain.predict(test.double().numpy())).mean() >= 0.95
    task = made_task(features(train, labels), features(test, torch.zeros(100)), num_classes=3)
    np.testing.assert_array_equal(linear(task, c=c)[0].predictions, predicted)
    assert ((predicted == 0).mean() > 0.9) == (c == 1e-3)


@pytest.mark.parametrize("best", range(4))
def test_the_rate_with_the_most_right_held_out_pictures_is_taken(monkeypatch, best):
    rates = []

    def logits(train, labels, test, tried, num_classes, seed):
        rates.append(tried)
        return torch.stack([test if i == best else test.roll(1, 1) for i in range(len(tried))])

    monkeypatch.setattr(module, "sgd_logits", logits)
    (outcome,) = linear_sgd(perfect_task())
    assert outcome.settings["rate"] == RATES[best]
    assert rates == [RATES, (RATES[best],)]


def test_the_rate_is_chosen_on_train_alone():
    (outcome,) = linear_sgd(random_task(each=12))
    assert outcome.settings["rate"] in outcome.settings["rates"]
    assert outcome.settings["held_out"] == 0.1
