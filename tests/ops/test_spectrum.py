import math

import pytest
import torch

from fg_ssl_zoo.ops.spectrum import feature_std, rankme


def test_rankme_of_an_orthonormal_set_is_its_rank():
    basis, _ = torch.linalg.qr(torch.randn(40, 8, generator=torch.manual_seed(0)))
    assert rankme(basis) == pytest.approx(8, rel=1e-4)


def test_rankme_of_one_direction_is_one():
    assert rankme(torch.ones(30, 5)) == pytest.approx(1, rel=1e-4)


def test_rankme_equals_the_entropy_with_loops():
    features = torch.randn(20, 6, generator=torch.manual_seed(1))
    values = torch.linalg.svdvals(features.double()).tolist()
    shares = [v / sum(values) + 1e-7 for v in values]
    entropy = -sum(p * math.log(p) for p in shares)
    assert rankme(features) == pytest.approx(math.exp(entropy))


def test_feature_std_is_one_on_the_sphere_and_zero_at_a_point():
    spread = torch.randn(20_000, 16, generator=torch.manual_seed(2))
    assert feature_std(spread) == pytest.approx(1, abs=0.01)
    assert feature_std(torch.ones(10, 16)) == pytest.approx(0, abs=1e-7)


def test_feature_std_does_not_see_lengths():
    features = torch.randn(50, 4, generator=torch.manual_seed(3))
    lengths = torch.rand(50, 1) + 0.5
    assert feature_std(features * lengths) == pytest.approx(feature_std(features), rel=1e-5)
