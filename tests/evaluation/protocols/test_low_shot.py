import numpy as np

from fg_ssl_zoo.evaluation.protocols.low_shot import draw_shots, low_shot
from tests.evaluation.tasks import perfect_task


def test_every_class_gives_its_share_and_small_draws_are_parts_of_large_ones():
    labels = np.array([0] * 10 + [1] * 3 + [2] * 6)
    few, more = (set(draw_shots(labels, count, seed=4).tolist()) for count in (2, 5))
    assert few < more
    assert np.bincount(labels[sorted(few)]).tolist() == [2, 2, 2]
    assert np.bincount(labels[sorted(more)]).tolist() == [5, 3, 5]


def test_draws_differ_and_repeat():
    labels = np.arange(40) % 4
    draws = [draw_shots(labels, 3, seed=seed).tolist() for seed in (0, 1, 0)]
    assert draws[0] != draws[1]
    assert draws[0] == draws[2]


def test_shots_that_no_class_has_are_left_out():
    outcomes = low_shot(perfect_task(num_classes=3, each=6))
    assert [outcome.metric for outcome in outcomes] == [
        "low_shot_1_top1", "low_shot_2_top1", "low_shot_5_top1",
    ]  # fmt: skip
    assert all(outcome.settings["std_over_draws"] == 0 for outcome in outcomes)
