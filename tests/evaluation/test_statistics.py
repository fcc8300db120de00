from itertools import product

import numpy as np
import pytest

from fg_ssl_zoo.evaluation.statistics import (
    bootstrap_interval,
    macro_f1,
    majority_rate,
    paired_p,
    per_class_mean,
)


def test_the_interval_is_that_of_the_normal_limit():
    values = (np.arange(2000) < 600).astype(float)
    low, high = bootstrap_interval(values)
    margin = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
    assert low == pytest.approx(0.3 - margin, abs=0.003)
    assert high == pytest.approx(0.3 + margin, abs=0.003)


def test_pictures_that_are_not_scored_do_not_count():
    values = np.array([1.0, 0.0, 1.0, 0.0] * 10)
    with_gaps = np.concatenate([values, np.full(7, np.nan)])
    assert bootstrap_interval(values) == bootstrap_interval(with_gaps)
    assert paired_p(with_gaps, 1 - with_gaps) == paired_p(values, 1 - values)


def test_the_paired_test_counts_all_sign_flips_of_a_small_case():
    a = np.array([1, 1, 1, 1, 0, 1, 1], dtype=float)
    b = np.zeros(7)
    b[4] = 1
    difference = a - b
    flips = [abs(np.dot(signs, difference)) for signs in product((-1, 1), repeat=7)]
    exact = np.mean([flip >= abs(difference.sum()) - 1e-9 for flip in flips])
    assert paired_p(a, b) == pytest.approx(exact, abs=0.02)


def test_equal_models_do_not_differ_and_opposite_ones_do():
    ones = np.ones(100)
    assert paired_p(ones, ones) == 1.0
    assert paired_p(ones, 1 - ones) < 0.001


def test_rare_classes_count_as_much_as_frequent_ones():
    labels = np.array([0] * 90 + [1] * 10)
    always_zero = (labels == 0).astype(float)
    assert per_class_mean(always_zero, labels) == 0.5
    assert majority_rate(labels) == 0.9


def test_macro_f1_is_the_mean_over_the_classes_that_occur():
    generator = np.random.default_rng(0)
    labels, predicted = generator.integers(0, 6, size=(2, 200))
    labels[labels == 5] = 0  # a class that is predicted and never there
    scores = []
    for name in range(5):
        both = sum((labels == name) & (predicted == name))
        scores.append(2 * both / (sum(labels == name) + sum(predicted == name)))
    assert macro_f1(predicted, labels) == pytest.approx(sum(scores) / 5)
