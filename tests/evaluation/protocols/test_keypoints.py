import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import Ridge

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import parse_words
from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.fixed_views import CentreView
from fg_ssl_zoo.evaluation.evaluate import make_task
from fg_ssl_zoo.evaluation.parts.points import PointsInCrop, keypoint_names
from fg_ssl_zoo.evaluation.protocols import keypoints as probe
from fg_ssl_zoo.evaluation.protocols.keypoints import (
    PENALTY,
    Keypoints,
    few_shot_rows,
    found_share,
    keypoints,
    mean_places,
    ridge_points,
)
from fg_ssl_zoo.features.extract import Features
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
    seen = PointsInCrop(CentreView(80, 0.8))(
        {"image": image, "index": 0, "keypoints": points}, np.random.default_rng()
    )
    # the crop is 80 px wide: x from 60 to 140, y from 10 to 90
    np.testing.assert_allclose(seen["keypoints"][0], [0.5, 0.5, 1])
    np.testing.assert_allclose(seen["keypoints"][2], [0.0, 0.5, 1], atol=1e-6)
    assert seen["keypoints"][:, 2].tolist() == [1, 0, 1, 0]


def test_drawn_birds_are_probed(birds, tmp_path):
    backbone = create_backbone("test_resnet", image_size=64).eval()
    task = make_task(backbone, birds, birds, Accelerator(cpu=True), cache=tmp_path)
    outcome, *few = keypoints(task, options=Keypoints(shots=(4, 16, 50), draws=2))
    assert outcome.values.shape == (16,)
    assert outcome.value > outcome.settings["mean_place"]  # fitted on the same images
    assert outcome.settings["keypoints"] == birds.keypoints
    assert outcome.notes == ("no keypoints_50_pck: there are 16 training images",)
    assert [o.metric for o in few] == ["keypoints_4_pck", "keypoints_16_pck"]
    np.testing.assert_allclose(few[1].values, outcome.values)  # all of them, in another order
    assert few[1].settings["mean_place"] == pytest.approx(outcome.settings["mean_place"])
    assert few[0].settings["std_over_draws"] > 0 == few[1].settings["std_over_draws"]


def test_few_shots_equal_a_ridge_regression_on_each_drawn_list(birds, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(2, 16, 12, generator=generator)
    seen, truth = torch.rand(2, 16, len(birds.keypoints), 3, generator=generator)
    seen[..., 2], truth[..., 2] = (seen[..., 2] > 0.3).float(), 1
    seen[:, 2, 2] = 0
    seen[5, 2, 2] = 1  # the third keypoint is in one image alone, so in some draws in none
    backbone = create_backbone("test_resnet", image_size=32).eval()
    task = make_task(backbone, birds, birds, Accelerator(cpu=True), cache=tmp_path)
    rows_of = iter([Features(part, None, torch.arange(16)) for part in (train, test)])
    points = iter([seen, truth])
    monkeypatch.setattr(probe, "extract", lambda *_, **__: next(rows_of))
    monkeypatch.setattr(probe, "points_of", lambda *_: next(points))
    _, found = keypoints(task, options=Keypoints(shots=(6,), draws=4))

    scores, blind, unseen = [], [], 0
    for draw in range(4):
        rows = few_shot_rows(16, 6, seed=draw)
        x = train[rows].double()
        penalty = PENALTY * float((x - x.mean(0)).square().sum(1).mean())
        hits, blind_hits = [], []
        for k in range(len(birds.keypoints)):
            shown = [i for i, row in enumerate(rows.tolist()) if seen[row, k, 2] > 0]
            if not shown:  # nothing is known of it: never found
                unseen += 1
                hits.append(np.zeros(16))
                blind_hits.append(np.zeros(16))
                continue
            y = seen[rows][shown, k, :2].double().numpy()
            places = Ridge(alpha=penalty).fit(x[shown].numpy(), y).predict(test.double().numpy())
            for into, guess in ((hits, places), (blind_hits, y.mean(axis=0))):
                into.append(np.linalg.norm(guess - truth[:, k, :2].numpy(), axis=1) <= 0.1)
        scores.append(np.mean(hits, axis=0))
        blind.append(np.mean(blind_hits))
    assert 0 < unseen < 4
    np.testing.assert_allclose(found.values, np.mean(scores, axis=0))
    assert found.settings["std_over_draws"] == pytest.approx(np.std(np.mean(scores, axis=1)))
    assert found.settings["mean_place"] == pytest.approx(np.mean(blind))
    assert found.settings["mean_place_std_over_draws"] == pytest.approx(np.std(blind))
    name = birds.keypoints[2]
    assert found.notes == (f"{name}: shown by no image of {unseen} of 4 draws, not found",)


def test_test_pictures_that_show_no_keypoint_are_not_scored(birds, tmp_path, monkeypatch):
    backbone = create_backbone("test_resnet", image_size=32).eval()
    task = make_task(backbone, birds, birds, Accelerator(cpu=True), cache=tmp_path)
    points = probe.points_of
    monkeypatch.setattr(probe, "points_of", lambda *words: 0 * points(*words))
    for outcome in keypoints(task, options=Keypoints(shots=(3,), draws=2)):
        assert np.isnan(outcome.values).all()
        assert outcome.notes == ("16 test images show no keypoint",)


def test_visible_keypoints_outside_of_the_picture_are_refused(birds, tmp_path):
    class Off(Subset):
        def __getitem__(self, index):
            points = birds[index]["keypoints"].copy()
            points[2] = (1.7, 0.5, index in (1, 4))
            return {**birds[index], "keypoints": points}

    backbone = create_backbone("test_resnet", image_size=32).eval()
    off = Off(birds, np.arange(len(birds)))
    task = make_task(backbone, birds, off, Accelerator(cpu=True), cache=tmp_path)
    with pytest.raises(ValueError, match=r"2 visible .* as eye of drawn\[1\] at x 1.7, y 0.5"):
        keypoints(task, options=Keypoints(shots=(3,), draws=1))


def test_small_draws_are_parts_of_large_ones_and_follow_the_seed():
    few, more = (few_shot_rows(40, count, seed=3).tolist() for count in (5, 10))
    assert more[:5] == few
    assert len(set(more)) == 10
    assert few_shot_rows(40, 5, seed=4).tolist() != few


def test_one_picture_is_no_regression():
    assert parse_words(Keypoints, ["shots=[2,5]", "draws=3"], "keypoints").shots == (2, 5)
    with pytest.raises(ValueError, match=r"keypoints\.shots"):
        parse_words(Keypoints, ["shots=[1]"], "keypoints")


def test_pictures_without_keypoints_are_refused(birds):
    with pytest.raises(ValueError, match=r"drawn has no keypoints; drawn, the official"):
        keypoint_names(SomeCorrupt(birds))
