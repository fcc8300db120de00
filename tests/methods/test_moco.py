import math

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo import pretrain
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.methods import check_queue, complete_options, create_method, long_queue
from tests.methods.short_runs import (
    assert_equal_states,
    build,
    by_one_and_by_two,
    pairs,
    student,
    train,
    train_twice,
)
from tests.runs import launch

SMALL = {"projection_size": 16, "queue_size": 16}


def loss_of_the_paper(q, k, queue, temperature):
    """Equation 1 with loops, in float64."""
    q, k, queue = (rows.detach().double() for rows in (q, k, queue))
    total = 0.0
    for query, key in zip(q, k, strict=True):
        query, key = query / query.norm(), key / key.norm()
        own = math.exp(float(query @ key) / temperature)
        others = sum(math.exp(float(query @ other) / temperature) for other in queue)
        total -= math.log(own / (own + others)) / len(q)
    return total


def queries_and_keys(method, images):
    first, second = (method.backbone.normalize(images[:, view]) for view in (0, 1))
    seen, partner = first, second
    if method.symmetric:
        seen, partner = torch.cat([first, second]), torch.cat([second, first])
    return method.projector(method.backbone(seen)), method.teacher(partner)


@pytest.mark.parametrize("symmetric", [False, True])
def test_loss_accuracy_and_queue_equal_those_of_the_paper(symmetric):
    method = build("moco", symmetric=symmetric, **SMALL)
    for seed, parameter in enumerate(method.teacher[1].parameters()):  # not the student any more
        with torch.no_grad():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(seed))
    images, queue = pairs(method), method.queue.items.clone()
    with torch.no_grad():
        q, k = queries_and_keys(method, images)
    output = method({"images": images})
    expected = loss_of_the_paper(q, k, queue, 0.2)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)
    keys = torch.nn.functional.normalize(k, dim=1)
    torch.testing.assert_close(method.queue.items[:8], keys[:8])
    assert torch.equal(method.queue.items[8:], queue[8:])
    unit_q = torch.nn.functional.normalize(q, dim=1)
    right = [
        all(float(a @ b) > float(a @ n) for n in queue) for a, b in zip(unit_q, keys, strict=True)
    ]
    assert float(output.metrics["train/accuracy"]) == pytest.approx(sum(right) / len(right))


def test_equal_vectors_give_ln_of_the_queue_and_one():
    method = build("moco", **{**SMALL, "queue_size": 4096})
    for head in (method.projector[-1], method.teacher[1][-1]):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.ones_(head.bias)
    method.queue.items.fill_(1 / math.sqrt(16))
    output = method({"images": pairs(method)})
    assert float(output.loss.detach()) == pytest.approx(8.318, abs=1e-3)
    assert output.metrics["train/accuracy"] == 0


def test_the_teacher_follows_backbone_and_projector_from_0_99_to_0_999():
    method = build("moco", **SMALL)
    with torch.no_grad():
        for parameter in student(method).parameters():
            parameter += 1
    expected = {key: value.clone() for key, value in method.teacher.state_dict().items()}
    for progress, momentum in ((0.0, 0.99), (0.5, 0.9945), (1.0, 0.999)):
        method.on_step_end(progress)
        for key, value in method.teacher.named_parameters():
            own = student(method).get_parameter(key)
            expected[key] = momentum * expected[key] + (1 - momentum) * own
            torch.testing.assert_close(value, expected[key], msg=key)


def test_the_head_is_that_of_the_official_code_and_names_appear_once():
    method = build("moco", projection_size=128)
    width = method.backbone.num_features
    linear = torch.nn.Linear
    assert [type(m) for m in method.projector] == [linear, torch.nn.ReLU, linear]
    assert [m.weight.shape for m in method.projector if isinstance(m, linear)] == [
        (width, width), (128, width),
    ]  # fmt: skip
    assert all(m.bias is not None for m in method.projector if isinstance(m, linear))
    owners = {key.split(".")[0] for key in method.state_dict()}
    assert owners == {"backbone", "projector", "teacher", "queue"}
    assert not any(p.requires_grad for p in method.teacher.parameters())
    assert (
        create_method("moco", method.backbone, preset="paper").augmentations == PRESETS["moco_v2"]
    )


# --------------------------------------------------------------------------- the queue's size


def test_a_queue_smaller_than_a_batch_is_refused_before_anything_is_trained(tmp_path):
    words = [
        "stages[0].method=moco", "stages[0].options={queue_size: 63}", "data.num_images=128",
        f"output={tmp_path / 'run'}",
    ]  # fmt: skip
    recipe = load_recipe("fgssl_resnet18_drawn.simclr", words)
    with pytest.raises(
        ValueError,
        match=r"^stages\[0\]\.options\.queue_size: 63 is smaller than the batch of 64 images; "
        r"use 64 or more$",
    ):
        pretrain.pretrain(recipe)
    assert not (tmp_path / "run").exists()
    check_queue({"queue_size": 63}, 63)
    check_queue({}, 10**6)  # it is chosen


def test_a_queue_that_is_not_given_is_half_of_the_pictures_or_a_batch(birds):
    assert complete_options("moco", {}, birds) == {"queue_size": 8}  # of 16
    assert complete_options("lcr", {}, birds, batch_size=12) == {"queue_size": 12}
    assert complete_options("synthesized_pairs", {"queue_size": 9}, birds) == {"queue_size": 9}
    assert complete_options("synthesized_pairs", {"base": "simsiam"}, birds) == {"base": "simsiam"}
    assert complete_options("simclr", {}, birds) == {}
    many = DrawnBirds(10_000)
    assert complete_options("moco", {}, many) == {"queue_size": 4096}
    assert complete_options("moco", {}, many, batch_size=5000) == {"queue_size": 5000}


@pytest.mark.parametrize(
    ("size", "times"), [(None, None), (8, None), (9, "0.16"), (16, "0.5"), (32, "1.5")]
)
def test_a_given_queue_above_half_of_the_pictures_is_named_in_the_log(size, times):
    line = long_queue({} if size is None else {"queue_size": size}, 16)
    assert (line is None) == (times is None)
    if line:
        assert line.startswith(f"queue_size: {size} keys are more than half of the 16 training")
        assert (
            f"on average {times} older keys of its own among its negatives; use 8 or less" in line
        )


def test_a_queue_of_half_an_epoch_holds_an_own_older_key_one_time_in_eight():
    count, generator = 64, torch.manual_seed(0)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(200)])
    for kept, share in ((32, 1 / 8), (64, 1 / 2), (128, 3 / 2)):
        found = [(order[i - kept : i] == order[i]).sum() for i in range(kept, len(order))]
        assert float(sum(found)) / len(found) == pytest.approx(share, rel=0.1)


# --------------------------------------------------------------------------- runs


def test_two_processes_equal_one_in_loss_gradients_and_queue(tmp_path):
    one, *two = by_one_and_by_two("moco", SMALL, tmp_path)
    assert torch.equal(two[0]["state"]["queue.items"], two[1]["state"]["queue.items"])
    assert two[0]["state"]["queue.place"] == 8
    torch.testing.assert_close(two[0], one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_train_the_weights_the_teacher_and_the_queue_that_one_trains(tmp_path, birds):
    one = train(tmp_path / "one", birds, "moco", SMALL, steps=3)
    launch(train_and_keep, tmp_path / "two", birds)
    two = torch.load(tmp_path / "two" / "end.pt")
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def train_and_keep(path, images):
    state = train(path, images, "moco", SMALL, steps=3)
    if Accelerator(cpu=True).is_main_process:
        torch.save(state, path / "end.pt")


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_weights_teacher_and_queue_of_one_that_was_not_stopped(
    tmp_path, birds
):
    whole, again = train_twice(tmp_path, birds, "moco", SMALL)
    assert_equal_states(again, whole)
