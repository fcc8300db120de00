import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fg_ssl_zoo.ops.clustering import kmeans, lloyd, means, plus_plus, squared_distances


def blobs(sets=3, points=60, width=5, clusters=4, spread=0.3):
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(sets, clusters, width, generator=generator) * 3
    labels = torch.arange(points) % clusters
    noise = torch.randn(sets, points, width, generator=generator)
    return centres[:, labels] + spread * noise, labels


def slow_lloyd(points, start, steps):
    """Lloyd, 1982, one point after another in float64."""
    points, centres = (x.double().numpy().copy() for x in (points, start))

    def nearest():
        return [int(np.argmin([((x - c) ** 2).sum() for c in centres])) for x in points]

    for _ in range(steps):
        labels = nearest()
        for k in range(len(centres)):
            own = [x for x, label in zip(points, labels, strict=True) if label == k]
            if own:
                centres[k] = sum(own) / len(own)
    labels = nearest()
    inertia = sum(
        ((x - centres[label]) ** 2).sum() for x, label in zip(points, labels, strict=True)
    )
    return labels, centres, inertia


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_kmeans_equals_lloyd_point_by_point(steps):
    points, _ = blobs(spread=2.0)
    points, start = points.double(), points[:, :4].double()
    found = lloyd(points, start, max_iterations=steps, tolerance=-1.0)
    for b in range(len(points)):
        labels, centres, inertia = slow_lloyd(points[b], start[b], steps)
        assert found.labels[b].tolist() == labels
        torch.testing.assert_close(found.centres[b], torch.from_numpy(centres))
        assert float(found.inertia[b]) == pytest.approx(inertia)


def test_inertia_never_rises():
    points, _ = blobs(spread=3.0)
    start = points[:, :6]
    course = torch.stack(
        [lloyd(points, start, max_iterations=n, tolerance=-1.0).inertia for n in range(12)]
    )
    assert bool((course[1:] <= course[:-1] * (1 + 1e-6)).all())


def test_separate_blobs_are_found_in_every_set():
    points, labels = blobs()
    found = kmeans(points, 4, [0, 1, 2])
    for b in range(3):
        pairs = set(zip(found.labels[b].tolist(), labels.tolist(), strict=True))
        assert len(pairs) == 4
        for k in range(4):
            own = points[b][found.labels[b] == k]
            torch.testing.assert_close(found.centres[b, k], own.mean(dim=0))


def test_a_set_does_not_depend_on_its_neighbours():
    points, _ = blobs(sets=4, spread=3.0)
    whole = kmeans(points, 7, [5, 6, 7, 8], coarse=2)
    turned = kmeans(points[[2, 0]], 7, [7, 5], coarse=2)
    assert torch.equal(turned.labels, whole.labels[[2, 0]])
    assert torch.equal(turned.centres, whole.centres[[2, 0]])


def test_a_seed_is_all_that_is_random():
    points, _ = blobs(spread=3.0)
    one, two = (kmeans(points, 7, [1, 1, 1]) for _ in range(2))
    torch.manual_seed(3)
    other = kmeans(points, 7, [2, 2, 2])
    assert torch.equal(one.labels, two.labels)
    assert not torch.equal(one.labels, other.labels)


def test_a_batched_lloyd_equals_one_set_after_another():
    """The path of an accelerator: sets that are done wait for the others."""
    points, _ = blobs(spread=3.0)
    start = points[:, :5]
    batched = lloyd(points, start, tolerance=0.0)
    for b in range(3):
        alone = lloyd(points[b : b + 1], start[b : b + 1], tolerance=0.0)
        assert torch.equal(batched.labels[b], alone.labels[0])
        torch.testing.assert_close(batched.centres[b], alone.centres[0])


def test_more_restarts_never_cost_inertia():
    points, _ = blobs(spread=3.0)
    inertia = [kmeans(points, 9, [0, 1, 2], restarts=n).inertia for n in (1, 4)]
    assert bool((inertia[1] <= inertia[0]).all())


def test_points_far_from_the_origin_are_clustered_as_well():
    points, labels = blobs(spread=0.05)
    found = kmeans(points + 1e3, 4, [0, 0, 0])
    near = kmeans(points, 4, [0, 0, 0])
    torch.testing.assert_close(found.inertia, near.inertia, rtol=1e-2, atol=1e-2)
    assert len(set(zip(found.labels[0].tolist(), labels.tolist(), strict=True))) == 4


def test_cosine_looks_at_directions_only():
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(3)[torch.arange(30) % 3]
    points = directions * torch.rand(30, 1, generator=generator).add(0.1) * 50
    found = kmeans(points[None], 3, [0], cosine=True)
    assert float(found.inertia) == pytest.approx(0, abs=1e-4)
    torch.testing.assert_close(found.centres.norm(dim=-1), torch.ones(1, 3))


def test_equal_points_leave_clusters_empty_and_numbers_finite():
    for distinct in (1, 2):
        points = torch.randn(2, distinct, 8).repeat(1, 10, 1)
        found = kmeans(points, 5, [0, 1])
        assert bool(found.centres.isfinite().all())
        torch.testing.assert_close(found.inertia, torch.zeros(2), atol=1e-4, rtol=0)


def test_an_empty_cluster_keeps_its_centre():
    points = torch.tensor([[[0.0], [1.0], [2.0]]])
    centres = torch.tensor([[[1.0], [9.0]]])
    moved = means(points, torch.zeros(1, 3, dtype=torch.int64), centres)
    assert moved.tolist() == [[[1.0], [9.0]]]
    assert lloyd(points, centres).centres.tolist() == [[[1.0], [9.0]]]


def test_as_many_clusters_as_points_leave_nothing():
    points = torch.arange(6.0)[None, :, None]
    assert float(kmeans(points, 6, [0]).inertia) == pytest.approx(0, abs=1e-6)


def test_more_clusters_than_points_are_refused():
    with pytest.raises(ValueError, match="num_clusters: 7 clusters of 6 points; use 1 to 6"):
        kmeans(torch.randn(1, 6, 2), 7, [0])


def test_plus_plus_draws_a_point_by_its_squared_distance():
    """With 0 first, 2 has 4 / 13 and 3 has 9 / 13; both leave a sum of 1: the first draw stays."""
    points, drawn = torch.tensor([[[0.0], [2.0], [3.0]]]), []
    for seed in range(900):
        first, second = plus_plus(points, 2, [torch.Generator().manual_seed(seed)])[0, :, 0]
        drawn += [float(second)] if first == 0 else []
    assert len(drawn) / 900 == pytest.approx(1 / 3, abs=0.06)
    assert drawn.count(2.0) / len(drawn) == pytest.approx(4 / 13, abs=0.08)


def test_distances_are_squared_and_not_negative():
    points, centres = torch.randn(2, 9, 3), torch.randn(1, 4, 3)
    expected = torch.cdist(centres.expand(2, -1, -1), points) ** 2
    torch.testing.assert_close(squared_distances(points, centres), expected, atol=1e-5, rtol=1e-4)
    assert float(squared_distances(points * 1e3, points * 1e3).min()) >= 0


def test_inertia_on_pictures_is_within_a_per_cent_of_scikit_learn(birds):
    from sklearn.cluster import KMeans

    pixels = torch.stack([torch.from_numpy(birds[i]["image"]) for i in range(8)]) / 255
    points = F.avg_pool2d(pixels.movedim(-1, 1), 5, stride=2).flatten(2).mT
    ours = kmeans(points, 8, range(8), restarts=4).inertia
    theirs = [KMeans(8, n_init=4, random_state=0).fit(x.numpy()).inertia_ for x in points]
    assert math.fsum(ours.tolist()) <= 1.01 * math.fsum(theirs)
