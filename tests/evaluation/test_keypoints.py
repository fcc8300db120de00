import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import create_backbone
from fg_ssl_zoo.evaluation.evaluate import make_task
from fg_ssl_zoo.evaluation.keypoints import (
    PointsInCrop,
    found_share,
    keypoint_names,
    keypoints,
    mean_places,
    ridge_points,
)
from tests.pictures import SomeCorrupt


def test_places_that_are_linear_in_the_features_are_found():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(90, 5, generator=generator)
    places = 0.5 + 0.1 * (features @ torch.randn(5, 4, generator=generator)).reshape(90, 2, 2)
    seen = torch.cat([places, torch.ones(90, 2, 1)], dim=-1)
    seen[:10, 0, 2] = 0
    seen[:10, 0, :2] = 99  # not visible: must not be read
    found = ridge_points(features[:60], seen[:60], features[60:])
    assert (found - places[60:]).abs().max() < 0.02
    assert found_share(found, seen[60:]).mean() == 1.0


def test_a_ridge_regression_in_the_dual_form_is_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 30, generator=generator), torch.rand(12, 1, 2, generator=generator)
    new = torch.randn(3, 30, generator=generator)
    found = ridge_points(x, torch.cat([y, torch.ones(12, 1, 1)], -1), new)
    x, y, new = x.double(), y.double(), new.double()
    centred = x - x.mean(0)
    penalty = 1e-2 * centred.square().sum(1).mean() * torch.eye(30, dtype=torch.float64)
    weights = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (y - y.mean(0))[:, 0])
    torch.testing.assert_close(found[:, 0], (new - x.mean(0)) @ weights + y.mean(0))


def test_the_share_counts_visible_keypoints_within_a_tenth():
    truth = torch.tensor([[[0.5, 0.5, 1], [0.2, 0.2, 1], [0.9, 0.9, 0]], [[0, 0, 0]] * 3])
    predicted = torch.tensor([[[0.5, 0.59], [0.2, 0.31], [0, 0]], [[0.0, 0.0]] * 3])
    share = found_share(predicted, truth)
    assert share[0] == 0.5
    assert np.isnan(share[1])
    assert mean_places(truth)[0].tolist() == [0.5, 0.5]


def test_keypoints_follow_the_centre_crop():
    image = np.zeros((100, 200, 3), np.uint8)
    points = np.array([[0.5, 0.5, 1], [0.25, 0.0, 1], [0.3, 0.5, 1], [0.9, 0.5, 1]], np.float32)
    seen = PointsInCrop(0.8)(
        {"image": image, "index": 0, "keypoints": points}, np.random.default_rng()
    )
    # the crop is 80 px wide: x from 60 to 140, y from 10 to 90
    np.testing.assert_allclose(seen["keypoints"][0], [0.5, 0.5, 1])
    np.testing.assert_allclose(seen["keypoints"][2], [0.0, 0.5, 1], atol=1e-6)
    assert seen["keypoints"][:, 2].tolist() == [1, 0, 1, 0]


def test_drawn_birds_are_probed(birds, tmp_path):
    backbone = create_backbone("test_resnet", image_size=64).eval()
    task = make_task(backbone, birds, birds, Accelerator(cpu=True), cache=tmp_path)
    (outcome,) = keypoints(task)
    assert outcome.values.shape == (16,)
    assert outcome.value > outcome.settings["mean_place"]  # fitted on the same pictures
    assert outcome.settings["keypoints"] == birds.keypoints


def test_pictures_without_keypoints_are_refused(birds):
    with pytest.raises(ValueError, match=r"drawn has no keypoints; drawn, the official"):
        keypoint_names(SomeCorrupt(birds))
