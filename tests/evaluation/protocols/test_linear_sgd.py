import numpy as np
import pytest
import torch

from fg_ssl_zoo.evaluation.protocols import linear_sgd as module
from fg_ssl_zoo.evaluation.protocols.linear_sgd import RATES, linear_sgd, sgd_logits
from tests.evaluation.tasks import perfect_task, random_task, some


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
