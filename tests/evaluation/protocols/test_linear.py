import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fg_ssl_zoo.evaluation.protocols import linear as module
from fg_ssl_zoo.evaluation.protocols.linear import Linear, linear, logistic_regression
from tests.evaluation.tasks import features, made_task, perfect_task, random_task, some


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
    (normalised,) = linear(task, Linear(l2_normalize=True))
    assert plain.settings["l2_normalize"] is False
    assert normalised.settings["l2_normalize"] is True


@pytest.mark.parametrize("c", [1e-3, 10.0])
@pytest.mark.parametrize("width", [4, 40])  # as it is, and in the span of the images
def test_c_is_the_inverse_weight_of_the_penalty(width, c):
    train, labels = some(30, width)
    labels[:18] = 0  # a strong penalty names the frequent class
    test, _ = some(100, width, seed=1)
    plain = LogisticRegression(C=c, max_iter=10_000, tol=1e-8).fit(train.double().numpy(), labels)
    predicted, _ = logistic_regression(train, labels, test, c=c)
    assert (predicted == plain.predict(test.double().numpy())).mean() >= 0.95
    task = made_task(features(train, labels), features(test, torch.zeros(100)), num_classes=3)
    np.testing.assert_array_equal(linear(task, Linear(c=c))[0].predictions, predicted)
    assert ((predicted == 0).mean() > 0.9) == (c == 1e-3)
