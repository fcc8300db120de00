"""What every protocol on features keeps, whatever it measures."""

import numpy as np
import pytest
import torch

from fg_ssl_zoo.evaluation.protocols import DEFAULT, PROTOCOLS
from tests.evaluation.tasks import features, made_task, perfect_task, random_task

ON_FEATURES = [*DEFAULT, "linear_sgd"]


@pytest.mark.parametrize("name", ON_FEATURES)
def test_perfect_features_are_always_right(name):
    for outcome in PROTOCOLS[name].run(perfect_task()):
        assert outcome.value == 1.0, outcome.metric
        assert outcome.values.shape == (30,)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_random_features_guess(name):
    for outcome in PROTOCOLS[name].run(random_task()):
        if outcome.metric == "retrieval_rank5":
            assert outcome.value == pytest.approx(1 - 0.8**5, abs=0.05)
        else:
            assert outcome.value == pytest.approx(1 / 5, abs=0.05), outcome.metric


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_test_picture_is_scored_and_the_same_twice(name):
    task = random_task(each=12)
    first, second = PROTOCOLS[name].run(task), PROTOCOLS[name].run(task)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        assert a.values.shape == (60,)
        assert not np.isnan(a.values).any()
        assert a.settings == b.settings


@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_single_class_and_one_picture_each_are_no_crash(name):
    one = features(torch.randn(4, 3), [0, 0, 0, 0])
    for outcome in PROTOCOLS[name].run(made_task(one, one, num_classes=1)):
        assert outcome.value == 1.0
    alone = features(torch.eye(3), [0, 1, 2])
    for outcome in PROTOCOLS[name].run(
        made_task(alone, features(torch.eye(3).repeat(2, 1), [0, 1, 2] * 2), num_classes=3)
    ):
        assert outcome.value == 1.0
