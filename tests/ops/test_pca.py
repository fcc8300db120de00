import pytest
import torch

from fg_ssl_zoo.ops.pca import principal_axes


def test_axes_are_the_right_singular_vectors():
    points = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([5.0, 4, 3, 2, 1, 0.5]) + 3
    mean, axes = principal_axes(points, 3)
    torch.testing.assert_close(mean, points.mean(dim=0))
    torch.testing.assert_close(axes.T @ axes, torch.eye(3, dtype=torch.float64))
    expected = torch.linalg.svd(points - mean, full_matrices=False).Vh[:3].T
    torch.testing.assert_close((axes * expected).sum(dim=0).abs(), torch.ones(3).double())
    assert bool((axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)) > 0).all())


def test_more_axes_than_coordinates_are_refused():
    with pytest.raises(ValueError, match="pca: 7 axes of 6 dimensions"):
        principal_axes(torch.randn(9, 6), 7)
