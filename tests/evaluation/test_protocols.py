"""What every protocol on features keeps, whatever it measures."""

import numpy as np
import pytest
import torch

from fg_ssl_zoo.evaluation.protocol import options_of
from fg_ssl_zoo.evaluation.protocols import DEFAULT, PROTOCOLS, metric
from tests.evaluation.tasks import features, made_task, perfect_task, random_task

ON_FEATURES = [*DEFAULT, "linear_sgd"]


@pytest.mark.parametrize("name", ON_FEATURES)
def test_perfect_features_are_always_right(name):
    for outcome in PROTOCOLS[name].run(perfect_task()):
        assert outcome.value == 1.0, outcome.metric
        assert outcome.values.shape == (30,)


@pytest.mark.parametrize("name", [*ON_FEATURES, "clusters"])
def test_every_outcome_has_a_record_of_its_own_protocol(name):
    for outcome in PROTOCOLS[name].run(random_task(each=12)):
        named = [record.named(outcome.metric) for record in PROTOCOLS[name].metrics]
        assert next(filter(None, named)).name == outcome.metric


@pytest.mark.parametrize("record", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_record_describes_its_options_and_its_file_has_its_name(record):
    assert record.run.__module__ == f"fg_ssl_zoo.evaluation.protocols.{record.name}"
    for option in options_of(record.options) if record.options else []:
        assert option.text.endswith("."), option


def test_options_are_described_as_they_are_typed():
    options = {option.name: option for option in options_of(PROTOCOLS["finetune"].options)}
    assert options["weight_decay"].default == "0.0001"
    assert options["head"].choices == ("linear", "mlp", "paper")
    assert options["epochs"].text == "Passes over the training images."
    discovery = {option.name: option for option in options_of(PROTOCOLS["part_discovery"].options)}
    assert discovery["layers"].default == "null"
    assert discovery["stride"].text == discovery["layers"].text  # one line for both


def test_a_metric_is_titled_by_its_record_and_its_number():
    assert metric("low_shot_7_top1").title == "7 labels"
    assert metric("low_shot_7_top1").name == "low_shot_7_top1"
    assert metric("parts_keypoint_error").higher_is_better is False
    assert metric("rankme").format == "{:.1f}"
    assert metric("anything").title == "anything"


@pytest.mark.parametrize("name", ON_FEATURES)
def test_random_features_guess(name):
    for outcome in PROTOCOLS[name].run(random_task()):
        if outcome.metric == "retrieval_rank5":
            assert outcome.value == pytest.approx(1 - 0.8**5, abs=0.05)
        else:
            assert outcome.value == pytest.approx(1 / 5, abs=0.05), outcome.metric


@pytest.mark.parametrize("name", ON_FEATURES)
def test_every_test_picture_is_scored_and_the_same_twice(name):
    task = random_task(each=12)
    first, second = PROTOCOLS[name].run(task), PROTOCOLS[name].run(task)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        assert a.values.shape == (60,)
        assert not np.isnan(a.values).any()
        assert a.settings == b.settings


@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_single_class_and_one_picture_each_are_no_crash(name):
    one = features(torch.randn(4, 3), [0, 0, 0, 0])
    for outcome in PROTOCOLS[name].run(made_task(one, one, num_classes=1)):
        assert outcome.value == 1.0
    alone = features(torch.eye(3), [0, 1, 2])
    for outcome in PROTOCOLS[name].run(
        made_task(alone, features(torch.eye(3).repeat(2, 1), [0, 1, 2] * 2), num_classes=3)
    ):
        assert outcome.value == 1.0
