import pytest
import torch
import torch.nn.functional as F

from fg_ssl_zoo.parts.foreground import elbow, saliency_of, salient_clusters, split_foreground


def vote(saliency, labels, images, **options):
    found = salient_clusters(
        torch.tensor(labels),
        torch.tensor(saliency),
        torch.tensor(images),
        3,
        **{"threshold": 0.5, "votes": 0.75, **options},
    )
    return found.tolist()


def test_a_cluster_needs_the_votes_of_most_pictures_that_show_it():
    labels = [0, 1, 2, 0, 1, 0, 1, 0, 1]
    images = [0, 0, 0, 1, 1, 2, 2, 3, 3]
    saliency = [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1]  # 3 of 4, 2 of 4, 1 of 1
    assert vote(saliency, labels, images) == [True, False, True]
    assert vote(saliency, labels, images, votes=0.5) == [True, True, True]


def test_the_mean_within_a_picture_votes():
    assert vote([0.9, 0.9, 0.0, 0.9], [0, 0, 0, 1], [0, 0, 0, 0]) == [True, True, False]


def test_where_no_cluster_passes_the_most_salient_one_is_the_object():
    assert vote([0.1, 0.3, 0.2], [0, 1, 2], [0, 0, 0]) == [False, True, False]


def test_two_blobs_of_which_one_is_looked_at():
    features = torch.eye(2)[torch.arange(40) % 2] * 5 + 0.01 * torch.randn(40, 2)
    looked_at = torch.arange(40) % 2 == 1
    zeros = torch.zeros(40, dtype=torch.int64)
    found = split_foreground(features, looked_at.float(), zeros, 0, threshold=0.065, votes=0.75)
    assert torch.equal(found.foreground, looked_at)
    assert bool(((found.background - torch.tensor([5.0, 0.0])).abs() < 0.1).all())


def test_saliency_is_the_mean_of_chosen_heads_from_nought_to_one():
    attention = torch.rand(2, 3, 4, 4)
    found = saliency_of(attention, (0, 2))
    mean = (attention[:, 0] + attention[:, 2]).flatten(1) / 2
    for row, expected in zip(found, mean, strict=True):
        span = expected.max() - expected.min()
        torch.testing.assert_close(row, (expected - expected.min()) / span)
    assert bool((saliency_of(torch.ones(1, 2, 3, 3), None) == 0).all())
    with pytest.raises(ValueError, match="heads: there is no head 3; use 0 to 2"):
        saliency_of(attention, (3,))


def test_the_elbow_stops_where_another_cluster_gains_little():
    generator = torch.Generator().manual_seed(0)
    corners = F.one_hot(torch.arange(300) % 3, 40).float() * 10
    found = elbow(corners + torch.randn(300, 40, generator=generator), 0)
    assert found.centres.shape[1] == 4  # the first that gains less than 2.5 % is taken
    assert elbow(torch.ones(20, 3), 0).centres.shape[1] <= 2
    assert elbow(torch.randn(3, 2), 0).centres.shape[1] <= 3
