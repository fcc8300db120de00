"""Scores of discovered parts at partitions and keypoints whose scores are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.evaluation.parts.scores import (
    adjusted_rand_index,
    contingency,
    foreground_iou,
    keypoint_contingency,
    keypoint_errors,
    keypoints_of,
    knows_parts,
    mask_contingency,
    mean_place_errors,
    normalized_mutual_information,
    part_agreement,
    part_centres,
    part_scores,
    stretched,
)
from fg_ssl_zoo.evaluation.statistics import influence_values
from fg_ssl_zoo.evaluation.table import best
from tests.pictures import SomeCorrupt


def table(found, true):
    found, true = torch.tensor(found), torch.tensor(true)
    return contingency(found, true, (int(found.max()) + 1, int(true.max()) + 1))


def masks_of(birds):
    return torch.from_numpy(np.stack([birds[i]["part_mask"] for i in range(len(birds))])).long()


# --------------------------------------------------------------------------- agreement


def test_equal_partitions_score_one_whatever_their_numbers():
    counts = table([2, 2, 0, 0, 1], [0, 0, 1, 1, 2])
    assert normalized_mutual_information(counts).item() == pytest.approx(1)
    assert adjusted_rand_index(counts).item() == pytest.approx(1)


def test_independent_partitions_share_nothing():
    counts = table([0, 0, 1, 1], [0, 1, 0, 1])
    assert normalized_mutual_information(counts).item() == pytest.approx(0, abs=1e-12)
    assert adjusted_rand_index(counts).item() == pytest.approx(-0.5)  # 0 of 2 pairs, 2/3 expected


def test_half_of_the_parts_told_apart_has_a_known_nmi():
    counts = table([0, 0, 1, 1], [0, 1, 2, 2])  # H = ln 2 and 1.5 ln 2, all of the first is shared
    assert normalized_mutual_information(counts).item() == pytest.approx(2 / 2.5)
    pairs = (1 - 2 * 1 / 6) / (1.5 - 2 * 1 / 6)
    assert adjusted_rand_index(counts).item() == pytest.approx(pairs)


def test_the_scores_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    found, true = generator.integers(6, size=300), generator.integers(4, size=300)
    true[:150] = found[:150] % 4
    counts = table(found.tolist(), true.tolist())
    nmi, ari = normalized_mutual_information(counts), adjusted_rand_index(counts)
    assert nmi.item() == pytest.approx(normalized_mutual_info_score(true, found))
    assert ari.item() == pytest.approx(adjusted_rand_score(true, found))


@pytest.mark.parametrize("score", [normalized_mutual_information, adjusted_rand_index])
def test_one_part_everywhere_is_told_from_nothing(score):
    assert score(table([0, 0, 0], [0, 0, 0])).item() == 1
    assert score(table([0, 0, 0], [0, 1, 1])).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "score", [normalized_mutual_information, adjusted_rand_index, foreground_iou]
)
def test_the_values_of_pictures_have_the_score_as_their_mean(score):
    counts = torch.randint(0, 50, (9, 4, 5), generator=torch.Generator().manual_seed(0))
    counts[:, 2] = 0  # a part that is found nowhere
    values = influence_values(score, counts)
    assert values.mean() == pytest.approx(score(counts.sum(dim=0).double()).item())
    assert np.isfinite(values).all()


def test_foreground_is_everything_but_number_zero():
    counts = table([0, 0, 1, 2, 2, 1], [0, 1, 1, 1, 0, 2])  # three in both, five in either
    assert foreground_iou(counts.double()).item() == pytest.approx(3 / 5)


# --------------------------------------------------------------------------- maps


def test_maps_are_stretched_over_their_pictures():
    small = torch.tensor([[0, 1], [2, 3]])
    assert stretched(small, 4, 6).tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 3, 3, 3]] * 2


def test_the_masks_themselves_are_perfect_parts(birds):
    maps = masks_of(birds)
    counts = mask_contingency(maps, birds, 12)
    assert counts.sum().item() == 16 * 64 * 64
    assert torch.equal(counts.sum(dim=0), counts.sum(dim=0).diag().diag())


def test_centres_are_means_of_pixel_middles():
    maps = torch.tensor([[[0, 1], [2, 1]], [[0, 0], [0, 0]]])
    centres = part_centres(maps, 4)
    expected = [[0.75, 0.5, 1], [0.25, 0.75, 1], [0, 0, 0]]
    torch.testing.assert_close(centres[0], torch.tensor(expected, dtype=torch.float64))
    assert centres[1].count_nonzero() == 0


# --------------------------------------------------------------------------- keypoints


def test_keypoints_that_are_linear_in_the_centres_are_found_exactly():
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(60, 4, 2, generator=generator, dtype=torch.float64)
    centres = torch.cat([places, torch.ones(60, 4, 1)], dim=-1)
    linear = torch.rand(8, 6, generator=generator, dtype=torch.float64) / 10
    points = (0.1 + places.flatten(1) @ linear).reshape(60, 3, 2)
    seen = torch.cat([points, torch.ones(60, 3, 1)], dim=-1)
    seen[:5, 0, 2] = 0
    seen[:5, 0, :2] = 0.9  # not visible: must not be read
    errors = keypoint_errors(centres[:40], seen[:40].float(), centres[40:], seen[40:].float())
    assert errors.max() < 1e-6
    assert mean_place_errors(seen[:40].float(), seen[40:].float()).mean() > 0.02


def test_a_part_that_is_absent_has_its_own_place_in_the_regression():
    generator = torch.Generator().manual_seed(0)
    there = torch.arange(40) % 2 == 0
    x = torch.rand(40, 1, 2, generator=generator, dtype=torch.float64)
    centres = torch.cat([x * there[:, None, None], there[:, None, None].double()], dim=-1)
    points = torch.where(there[:, None, None], x, 0.25)  # without the part it is at a quarter
    seen = torch.cat([points, torch.ones(40, 1, 1)], dim=-1).float()
    assert keypoint_errors(centres[:20], seen[:20], centres[20:], seen[20:]).max() < 1e-6


def test_the_error_is_the_mean_distance_of_visible_keypoints():
    centres = torch.zeros(3, 1, 3, dtype=torch.float64)
    seen = torch.tensor([[[0.2, 0.2, 1.0], [0, 0, 0]]]).repeat(3, 1, 1)
    truth = torch.tensor([
        [[0.5, 0.6, 1.0], [0.9, 0.9, 1]],  # 0.3 and 0.4 away; the second was never shown
        [[0.2, 0.2, 1.0], [0.9, 0.9, 0]],
        [[0.2, 0.2, 0.0], [0.9, 0.9, 0]],
    ])  # fmt: skip
    errors = keypoint_errors(centres, seen, centres, truth)
    np.testing.assert_allclose(errors[:2], [0.5, 0], atol=1e-7)
    assert math.isnan(errors[2])


def test_the_part_at_each_visible_keypoint_is_counted():
    maps = torch.tensor([[[0, 1], [2, 3]]])
    points = torch.tensor([[[0.9, 0.1, 1], [0.1, 0.9, 1], [1.0, 1.0, 1], [0.1, 0.1, 0]]])
    counts = keypoint_contingency(maps, points, 4)
    assert counts[0].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_keypoints_outside_of_the_picture_are_refused(birds):
    class Off:
        name, keypoints, classes, labels = "off", birds.keypoints, [], None

        def __len__(self):
            return 3

        def __getitem__(self, index):
            points = birds[index]["keypoints"].copy()
            points[2] = (1.2, 0.5, index == 1)
            return {**birds[index], "keypoints": points}

    with pytest.raises(
        ValueError,
        match=r"off: 1 visible keypoints lie outside .* eye of off\[1\] at x 1.2, y 0.5",
    ):
        keypoints_of(Off())


# --------------------------------------------------------------------------- all of them


def test_true_masks_as_parts_beat_shuffled_ones():
    train = DrawnBirds(48, num_classes=4, image_size=32, seed=0)
    test = DrawnBirds(12, num_classes=4, image_size=32, seed=1)
    maps = masks_of(train), masks_of(test)
    true = {o.metric: o for o in part_scores(maps[0], train, maps[1], test)}
    wrong = {o.metric: o for o in part_scores(maps[0], train, maps[1].roll(1, dims=0), test)}
    assert list(true) == [
        "parts_nmi", "parts_ari", "parts_fg_nmi", "parts_fg_ari", "parts_fg_iou",
        "parts_keypoint_nmi", "parts_keypoint_ari", "parts_keypoint_error",
    ]  # fmt: skip
    for metric in ("parts_nmi", "parts_ari", "parts_fg_nmi", "parts_fg_ari", "parts_fg_iou"):
        assert true[metric].value == pytest.approx(1)
        assert wrong[metric].value < 0.7
    assert true["parts_keypoint_nmi"].value > 0.8 > wrong["parts_keypoint_nmi"].value
    error = true["parts_keypoint_error"]
    assert error.value < wrong["parts_keypoint_error"].value
    assert error.value < error.settings["mean_place"]
    assert all(outcome.values.shape == (12,) for outcome in true.values())


def test_what_cannot_be_scored_is_refused_in_one_line(birds):
    maps = masks_of(birds)
    with pytest.raises(ValueError, match="15 part maps for 16 training images"):
        part_scores(maps[:15], birds, maps, birds)
    bare = SomeCorrupt(birds)
    with pytest.raises(ValueError, match="drawn has neither part masks nor keypoints to score"):
        part_scores(maps, bare, maps, bare)


def test_pictures_that_cannot_be_read_are_not_scored(birds):
    class Broken(SomeCorrupt):
        parts, keypoints = birds.parts, birds.keypoints

    broken = Broken(birds, [3])
    maps = masks_of(birds)
    for outcome in part_scores(maps, birds, maps, broken):
        assert math.isnan(outcome.values[3])
        assert np.isfinite(outcome.values[[0, 1, 2, 4]]).all()


def test_the_lowest_error_is_the_best():
    rows = [{"name": n, "scores": {"parts_keypoint_error": {"value": v}, "parts_nmi": {"value": v}}}
            for n, v in (("a", 0.1), ("b", 0.2))]  # fmt: skip
    results = SimpleNamespace(rows=rows)
    assert best({"rows": results.rows}, "parts_keypoint_error") == "a"
    assert best({"rows": results.rows}, "parts_nmi") == "b"


# --------------------------------------------------------------------------- while training


def test_the_log_scores_masks_over_all_readable_pictures(birds):
    images, maps = SomeCorrupt(birds, {3}), masks_of(birds)
    images.parts = birds.parts
    assert knows_parts(images)
    assert part_agreement(maps, images) == {
        "eval/part_nmi": pytest.approx(1), "eval/part_ari": pytest.approx(1),
    }  # fmt: skip
    halves = (maps > 2).long()
    counts = mask_contingency(halves, images, 2).sum(dim=0)
    found = part_agreement(halves, images)
    assert found["eval/part_nmi"] == pytest.approx(normalized_mutual_information(counts).item())
    assert found["eval/part_ari"] == pytest.approx(adjusted_rand_index(counts).item())


class Points:
    """Images with two keypoints and no masks."""

    name, classes, labels, keypoints = "points", [], None, ["left", "right"]

    def __init__(self, visible=1.0):
        self.visible = visible

    def __len__(self):
        return 3

    def __getitem__(self, index):
        points = [[0.2, 0.5, self.visible], [0.8, 0.5, self.visible]]
        return {
            "image": np.zeros((8, 8, 3), np.uint8), "index": index,
            "keypoints": np.array(points, np.float32),
        }  # fmt: skip


def test_the_log_scores_keypoints_where_there_are_no_masks(birds):
    maps = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert part_agreement(maps, Points())["eval/part_nmi"] == pytest.approx(0)
    maps[:, :, 2:] = 7
    assert part_agreement(maps, Points())["eval/part_nmi"] == pytest.approx(1)
    assert part_agreement(maps, Points(visible=0.0)) == {}
    assert not knows_parts(SomeCorrupt(birds))  # neither masks nor keypoints are named
