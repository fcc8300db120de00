"""k-means on features, scored against the classes."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fg_ssl_zoo.evaluation.protocols.clusters import Clusters, assigned, cluster, clusters
from tests.evaluation.tasks import features, made_task, perfect_task, random_task


def test_features_that_are_the_classes_are_clustered_perfectly():
    for outcome in clusters(perfect_task()):
        np.testing.assert_allclose(outcome.value, 1.0)
        assert outcome.settings["num_clusters"] == 5
        assert outcome.settings["std_over_draws"] == pytest.approx(0, abs=1e-12)


def test_random_features_are_near_chance():
    nmi, ari, accuracy = clusters(random_task(), Clusters(draws=1, restarts=1))
    assert nmi.value == pytest.approx(0, abs=0.03)
    assert ari.value == pytest.approx(0, abs=0.02)
    assert 0.2 <= accuracy.value < 0.3  # the best of all assignments is above a fifth


def test_the_scores_are_scikit_learns():
    task = random_task(num_classes=4, each=10)
    options = Clusters(draws=1, restarts=2)
    nmi, ari, accuracy = clusters(task, options)
    found = cluster(task.train.features, task.test.features, 4, 2, seed=0)
    labels = task.test.labels.numpy()
    assert nmi.value == pytest.approx(normalized_mutual_info_score(labels, found))
    assert ari.value == pytest.approx(adjusted_rand_score(labels, found))
    right = max((np.array(order)[found] == labels).mean() for order in permutations(range(4)))
    assert accuracy.value == pytest.approx(right)


def test_clusters_without_a_class_name_none():
    found, labels = np.array([0, 0, 1, 2, 2]), np.array([1, 1, 0, 0, 0])
    np.testing.assert_array_equal(assigned(found, labels), [1, 1, -1, 0, 0])


def test_no_label_moves_the_clusters_and_two_calls_agree():
    task = random_task(num_classes=3, each=8)
    first, again = clusters(task), clusters(task)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        assert a.values.shape == (24,)
    other = features(task.train.features, task.train.labels.flip(0))
    shuffled = made_task(other, task.test, num_classes=3)
    for a, b in zip(first, clusters(shuffled), strict=True):
        np.testing.assert_array_equal(a.values, b.values)


def test_one_class_and_one_picture_each_are_no_crash():
    one = features(torch.randn(4, 3), [0, 0, 0, 0])
    for outcome in clusters(made_task(one, one, num_classes=1)):
        assert outcome.value == pytest.approx(1.0)
    alone = features(torch.eye(3), [0, 1, 2])
    for outcome in clusters(made_task(alone, alone, num_classes=3)):
        assert outcome.value == pytest.approx(1.0)
