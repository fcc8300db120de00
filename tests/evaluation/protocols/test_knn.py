import math
from collections import defaultdict

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fg_ssl_zoo.ops.neighbours import knn_predict, knn_top1


def rows(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.manual_seed(seed))


def vote_with_loops(train, labels, test, k, temperature):
    predicted = []
    for query in test:
        similarity = [float(query @ r / query.norm() / r.norm()) for r in train]
        nearest = sorted(range(len(train)), key=lambda i: -similarity[i])[:k]
        votes = defaultdict(float)
        for i in nearest:
            votes[int(labels[i])] += math.exp(similarity[i] / temperature)
        predicted.append(max(votes, key=votes.__getitem__))
    return torch.tensor(predicted)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_equal_the_loops(k):
    train, test = rows(60, 8, 0), rows(25, 8, 1)
    labels = torch.arange(60) % 4
    expected = vote_with_loops(train, labels, test, k, 0.07)
    predicted = knn_predict(train, labels, test, num_classes=4, k=k, chunk=7)
    assert predicted.tolist() == expected.tolist()


def test_one_neighbour_equals_scikit_learn():
    train, test = rows(80, 6, 2), rows(30, 6, 3)
    labels = torch.arange(80) % 5
    peer = KNeighborsClassifier(n_neighbors=1, metric="cosine").fit(train, labels)
    predicted = knn_predict(train, labels, test, num_classes=5, k=1)
    assert predicted.tolist() == peer.predict(test).tolist()


def test_perfect_features_give_one_and_random_ones_chance():
    labels = torch.arange(2000) % 10
    one_hot = torch.eye(10)[labels]
    assert knn_top1(one_hot, labels, one_hot, labels) == 1.0
    chance = knn_top1(rows(2000, 16, 4), labels, rows(2000, 16, 5), labels)
    assert chance == pytest.approx(0.1, abs=0.03)


def test_a_set_smaller_than_k_votes_with_all_of_it():
    labels = torch.tensor([0, 0, 1])
    train = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert knn_top1(train, labels, train, labels, k=20) == 1.0


def test_a_sharp_temperature_votes_for_the_nearest_without_overflow():
    train, labels = rows(50, 4, 6), torch.arange(50) % 5
    sharp = knn_predict(train, labels, rows(9, 4, 7), num_classes=5, k=20, temperature=0.001)
    nearest = knn_predict(train, labels, rows(9, 4, 7), num_classes=5, k=1)
    assert sharp.tolist() == nearest.tolist()
