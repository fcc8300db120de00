import copy
import inspect
import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from accelerate import Accelerator

from fg_ssl_zoo.config import load_recipe, parse_recipe, recipe_files
from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.layers.batch_norm import synchronise
from fg_ssl_zoo.method import Method
from fg_ssl_zoo.methods import check_options, method_class
from fg_ssl_zoo.ops.distributed import rank, world_size
from fg_ssl_zoo.ops.gradcam import gradient_at
from tests.engine.test_processes import launch
from tests.methods.short_runs import build, drop_newest, pairs, train

SMALL = {"projection_size": 16, "queue_size": 16, "decoder_size": 32, "store_size": 64}
SIMSIAM = {**SMALL, "base": "simsiam", "predictor_size": 8}
AT_ONCE = {"pair_rise": (0.0, 0.0)}


@cache
def images():
    """The same eight pairs for all."""
    return pairs(build("synthesized_pairs", **SMALL))


def ready(base="moco", **options):
    """With a selection, after the features of one batch."""
    shape = SIMSIAM if base == "simsiam" else SMALL
    method = build("synthesized_pairs", **{**shape, **AT_ONCE, **options})
    method({"images": images()})
    method.on_step_end(0.5)
    return method


def gradients(method, seed=3):
    torch.manual_seed(seed)
    output = method({"images": images()})
    output.loss.backward()
    return output, {n: p.grad for n, p in method.named_parameters() if p.grad is not None}


# --------------------------------------------------------------------------- the base


@pytest.mark.parametrize("base", ["moco", "simsiam"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_without_alpha_and_nu_it_is_its_base_step_for_step(base, backbone):
    options = dict(SIMSIAM if base == "simsiam" else SMALL)
    off = {"reconstruction_weight": 0.0, "pair_weight": 0.0, "base": base}
    method = build("synthesized_pairs", backbone, **{**options, **off})
    for key in ("decoder_size", "store_size", "base"):
        options.pop(key, None)
    if base == "simsiam":
        options.pop("queue_size")
    plain = build(base, backbone, **options)
    assert all(not p.requires_grad for p in method.decoder.parameters())
    losses = {}
    for each in (plain, method):
        optimizer = torch.optim.SGD(list(each.param_groups()), lr=0.05, momentum=0.9)
        losses[each] = []
        for step in range(4):
            output = each({"images": images().roll(step, dims=1)})
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            each.on_step_end((step + 1) / 4)
            losses[each].append(output.loss.item())
            for key in ("train/accuracy", "train/z_std"):
                assert (key in output.metrics) == ((key == "train/accuracy") == (base == "moco"))
    assert losses[method] == losses[plain]
    found = method.state_dict()
    for key, value in plain.state_dict().items():
        own = key if key.startswith(("backbone.", "queue.")) else f"base.{key}"
        assert torch.equal(found[own], value), key


def info_nce_of_the_paper(q, k, queue, temperature):
    total = 0.0
    for query, key in zip(q.double(), k.double(), strict=True):
        query, key = query / query.norm(), key / key.norm()
        own = math.exp(float(query @ key) / temperature)
        others = sum(math.exp(float(query @ other) / temperature) for other in queue.double())
        total -= math.log(own / (own + others)) / len(q)
    return total


def simsiam_of_the_paper(p, z):
    halves = len(p) // 2
    total = 0.0
    for i, row in enumerate(p.double()):
        other = z[(i + halves) % len(p)].double()
        total -= float(row @ other / (row.norm() * other.norm())) / len(p)
    return total


def agreement_of_the_paper(method, first, second, queue):
    if method.queue is None:
        z = method.base.projector(method.backbone(torch.cat([first, second])))
        return simsiam_of_the_paper(method.base.predictor(z), z)
    q = method.base.projector(method.backbone(first))
    return info_nce_of_the_paper(q, method.base.teacher(second), queue.items, 0.2)


@pytest.mark.parametrize("base", ["moco", "simsiam"])
def test_the_loss_is_the_sum_of_three_terms(base):
    method = ready(base, perturbation="zero", reconstruction_weight=0.7, pair_weight=0.3)
    twin, seen = copy.deepcopy(method), images().flip(1)
    torch.manual_seed(3)
    output = method({"images": seen})
    torch.manual_seed(3)
    swapped = torch.rand(8, 1, 1, 1) >= 0.5
    assert 0 < swapped.sum() < 8
    with torch.no_grad():
        compare_with_the_paper(method, twin, seen, output, swapped)


def compare_with_the_paper(method, twin, seen, output, swapped):
    """Term by term; `method` is after its forward pass and `twin` before it."""
    first, second = twin.backbone.normalize(seen).unbind(1)
    contrast = agreement_of_the_paper(twin, first, second, twin.queue)
    h = twin.backbone(torch.cat([first, second]) if twin.queue is None else first)[:8]
    decoded = copy.deepcopy(twin.decoder)(h)
    reconstruction = sum(
        float((a - b).square().mean()) / 8 for a, b in zip(decoded, first, strict=True)
    )
    changed = h.clone()
    for d in range(h.shape[1]):
        if twin.weak.chosen[d]:
            changed[:, d] = 0
    decoder = method.decoder.eval()  # its running statistics have seen h by now
    made = decoder(h), decoder(changed)
    pair = [torch.where(swapped, a, b) for a, b in (made[::-1], made)]
    expected = agreement_of_the_paper(twin, *pair, twin.pair_queue)
    assert float(output.metrics["loss/contrast"]) == pytest.approx(contrast, rel=1e-4)
    assert float(output.metrics["loss/reconstruction"]) == pytest.approx(reconstruction, rel=1e-4)
    assert float(output.metrics["loss/pairs"]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    total = contrast + 0.7 * reconstruction + 0.3 * expected
    assert float(output.loss.detach()) == pytest.approx(total, rel=1e-4)


# --------------------------------------------------------------------------- the criteria


def test_grad_cam_at_the_last_map_of_each_images_own_loss_is_the_importance():
    """The closed form: one backward pass through the heads tells what one to the map would."""
    for importance in ("gradcam", "grad_x_act"):
        method = build("synthesized_pairs", importance=importance, size=64, **SMALL).eval()
        generator = torch.manual_seed(0)
        noise = torch.randint(0, 256, (4, 2, 64, 64, 3), dtype=torch.uint8, generator=generator)
        first, second = method.backbone.normalize(noise).unbind(1)
        found = method.importance_of(method.base(method.backbone, first, second, method.queue))
        model = method.backbone.model
        for i in range(4):
            maps = model.forward_features(first[i : i + 1])
            assert maps[0, 0].numel() == 4
            h = maps.mean((2, 3))
            query = F.normalize(method.base.projector(h))[0]
            key = F.normalize(method.base.teacher(second[i : i + 1]))[0]
            logits = torch.stack([query @ key, *(method.queue.items @ query)]) / 0.2
            (gradient,) = torch.autograd.grad(-logits.log_softmax(0)[0], maps)
            weight = gradient.mean((2, 3))[0]  # Grad-CAM's, 1 / (h w) of dL/dh
            wanted = (weight * h[0] if importance == "grad_x_act" else weight).abs()
            torch.testing.assert_close(found[i] / 4, wanted, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("base", ["moco", "simsiam"])
def test_what_is_multiplied_by_zero_before_the_head_has_no_importance(base):
    method = ready(base)
    silent = [3, 11]
    with torch.no_grad():
        method.base.projector[0].weight[:, silent] = 0
    method.weak.importance.count.zero_()
    method.weak.importance.value.zero_()
    method({"images": images()})
    method.on_step_end(0.7)
    value = method.weak.importance.value
    assert value[silent].tolist() == [0.0, 0.0]
    assert (value > 0).sum() == len(value) - 2
    assert method.weak.chosen[silent].all()


def test_importance_is_a_mean_of_magnitudes_and_statistics_are_of_the_first_views():
    method = build("synthesized_pairs", importance="gradcam", **SMALL).eval()
    first, second = method.backbone.normalize(images()).unbind(1)
    base = method.base(method.backbone, first, second, method.queue)
    gradient = gradient_at(base.loss, base.h)
    wanted = sum(row.abs() for row in gradient) / 8
    method({"images": images()})
    torch.testing.assert_close(method.weak.importance.value, wanted)
    torch.testing.assert_close(method.weak.statistics.items[:8], base.h.detach())
    assert method.weak.statistics.count == 8


# --------------------------------------------------------------------------- the pairs


@pytest.mark.parametrize("perturbation", ["gauss", "swap", "zero", "mean"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_what_is_decoded_differs_in_s_and_nowhere_else_to_the_bit(perturbation, per_sample):
    method = ready(perturbation=perturbation, per_sample=per_sample)
    read = {}
    method.decoder.register_forward_pre_hook(lambda _, x: read.update({len(x[0]): x[0].detach()}))
    selection = []
    plain = method.weak.of
    method.weak.of = lambda importance: selection.append(plain(importance)) or selection[0]
    method({"images": images()})
    h, (original, changed) = read[8], read[16].chunk(2)
    weak = selection[0].expand_as(h)
    assert torch.equal(original, h)
    assert torch.equal(changed[~weak], h[~weak])
    assert 0 < weak.sum() < weak.numel()
    assert (changed[weak] != h[weak]).float().mean() > 0.2  # some are zero and stay so
    assert changed.min() >= 0  # h ends in ReLU
    assert (len({tuple(row.tolist()) for row in weak}) > 1) == per_sample


def test_an_empty_s_makes_pairs_of_equal_pictures():
    method = ready(variance_share=0.0, importance_share=0.0)
    assert not method.weak.chosen.any()
    assert method({"images": images()}).metrics["train/pair_difference"] == 0
    assert ready()({"images": images()}).metrics["train/pair_difference"] > 0


@pytest.mark.parametrize("base", ["moco", "simsiam"])
def test_the_pair_loss_teaches_the_encoder_and_not_the_decoder(base):
    with_pairs, without = ready(base), ready(base)
    without.nu.zero_()
    output, full = gradients(with_pairs)
    _, alone = gradients(without)
    assert "loss/pairs" in output.metrics
    assert full.keys() == alone.keys()
    for name, gradient in full.items():
        untouched = name.startswith("decoder.") or not gradient.any()  # a block starts as identity
        assert torch.equal(gradient, alone[name]) == untouched, name
    assert all(
        full[f"decoder.{n}"].abs().sum() > 0 for n, _ in with_pairs.decoder.named_parameters()
    )


def test_the_reconstruction_teaches_the_backbone_unless_it_is_stopped():
    off = {"pair_weight": 0.0}
    _, both = gradients(ready(**off))
    _, stopped = gradients(ready(stop_reconstruction=True, **off))
    _, none = gradients(ready(reconstruction_weight=0.0, **off))
    assert {n for n in both if n not in none} == {n for n in both if n.startswith("decoder.")}
    for name, gradient in none.items():
        assert torch.equal(stopped[name], gradient), name
    differ = {n.split(".")[0] for n in none if not torch.equal(both[n], none[n])}
    assert differ == {"backbone"}


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_decoded_pictures_leave_the_running_statistics_alone(norm):
    with_pairs, without = ready(synthetic_norm=norm), ready(synthetic_norm=norm)
    without.nu.zero_()
    for method in (with_pairs, without):
        modes = [part.training for part in method.modules()]
        method({"images": images()})
        assert [part.training for part in method.modules()] == modes
    wanted = dict(without.named_buffers())
    for name, value in with_pairs.named_buffers():
        if name.startswith(("backbone.", "decoder.", "base.", "queue.")):
            assert torch.equal(value, wanted[name]), name
    assert not torch.equal(with_pairs.pair_queue.items, without.pair_queue.items)
    other = ready(synthetic_norm="running" if norm == "batch" else "batch")
    assert other({"images": images()}).loss != with_pairs({"images": images()}).loss


def test_synthesized_keys_have_a_queue_of_their_own():
    method = ready()
    before = method.pair_queue.items.clone()
    assert method.pair_queue.place == method.queue.place == 8
    method({"images": images()})
    assert torch.equal(method.pair_queue.items[:8], before[:8])
    assert not torch.equal(method.pair_queue.items[8:], before[8:])
    assert not torch.allclose(method.pair_queue.items, method.queue.items, atol=1e-2)


# --------------------------------------------------------------------------- schedule, log


def test_nu_waits_for_the_decoder_and_rises():
    method = build("synthesized_pairs", pair_weight=0.4, **SMALL)
    assert method.nu == 0
    for progress, nu in ((0.05, 0), (0.1, 0), (0.125, 0.2), (0.15, 0.4), (1.0, 0.4)):
        method.on_step_end(progress)
        assert method.nu.item() == pytest.approx(nu)
    assert "loss/pairs" in method({"images": images()}).metrics
    assert build("synthesized_pairs", **{**SMALL, **AT_ONCE}).nu == 0.5


def test_the_teacher_follows_and_simsiams_predictor_keeps_its_rate():
    method = ready(momentum=0.9, momentum_end=1.0)
    before = method.base.teacher[1][0].weight.clone()
    with torch.no_grad():
        method.base.projector[0].weight.copy_(before + 1)
    method.on_step_end(0.5)  # momentum 0.95
    torch.testing.assert_close(method.base.teacher[1][0].weight, before + 0.05)
    constant = [group.get("constant_lr", False) for group in ready("simsiam").param_groups()]
    assert constant == [False, True]


def test_the_log_is_an_instrument():
    found = ready()({"images": images()}).metrics
    assert set(found) == {
        "loss/contrast", "loss/reconstruction", "loss/pairs", "train/accuracy", "train/psnr",
        "train/weak_share", "train/weak_overlap", "train/variance_weak", "train/variance_kept",
        "train/neighbours_kept", "train/pair_difference",
    }  # fmt: skip
    assert all(not x.requires_grad and x.shape == () for x in found.values())


@pytest.mark.parametrize("base", ["moco", "simsiam"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_picture_shows_pair_difference_and_where_both_groups_look(base, backbone):
    options = SIMSIAM if base == "simsiam" else SMALL
    method = build("synthesized_pairs", backbone, **options)
    method({"images": images()})
    method.on_step_end(0.5)
    method.eval()
    before = copy.deepcopy(method.state_dict())
    with torch.no_grad():
        shown = method.picture({"images": images()})
    assert (shown.shape, shown.dtype) == ((8 * 32, 6 * 32, 3), torch.uint8)
    columns = shown.view(8, 32, 6, 32, 3).unbind(2)
    torch.testing.assert_close(columns[0], images()[:, 0], rtol=0, atol=1)
    difference = (columns[1].int() - columns[2].int()).abs()
    torch.testing.assert_close(columns[3].int(), difference, rtol=0, atol=1)
    assert all((column.int() <= columns[0].int() + 1).all() for column in columns[4:])
    for key, value in method.state_dict().items():  # queue and store too
        assert torch.equal(value, before[key]), key


# --------------------------------------------------------------------------- stages, recipes


def test_a_decoder_that_was_trained_first_is_taken_over():
    first = build("reconstruction", decoder_size=32)
    method = build("synthesized_pairs", seed=1, **SMALL)
    method.decoder.load_state_dict(first.decoder.state_dict())
    assert type(method).companions is Method.companions


def test_the_page_shows_a_staged_recipe_and_what_finds_s_in_a_checkpoint(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "synthesized_pairs.md").read_text("utf-8")
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    recipe = parse_recipe({"name": "shown", "backbone": "resnet50", **yaml.safe_load(shown)})
    for stage in recipe.stages:
        check_options(stage.method, stage.options)
    method, names = ready(), {}
    torch.save({"method": method.state_dict()}, tmp_path / "last.pt")
    exec(compile(code, "synthesized_pairs.md", "exec"), names)
    h = torch.randn(3, method.backbone.num_features)
    found = names["without_weak"](h, tmp_path / "last.pt")
    assert torch.equal(found, h[:, ~method.weak.chosen])
    options = inspect.signature(method_class("synthesized_pairs").__init__).parameters
    words = set(re.findall(r"`(\w+)[:`]", text))
    assert {"random_share", "criterion", "per_sample", "decoder_size"} <= words & set(options)
    logged = set(re.findall(r"`((?:loss|train)/\w+)`", text))
    assert logged <= set(method({"images": images()}).metrics)


def test_wrong_options_are_refused_with_what_would_do():
    with pytest.raises(ValueError, match="random_share=0 would do"):
        build("synthesized_pairs", per_sample=True, random_share=1.0)


def test_the_recipes_are_those_of_the_protocol_and_the_card_says_in_its_style():
    for name in ("fgssl_resnet50_cub.ldf", "fgssl_resnet50_cars.ldf", "fgssl_vit_small_cub.ldf"):
        recipe = load_recipe(recipe_files()[name])
        (stage,) = recipe.stages
        assert stage.method == "synthesized_pairs"
        assert recipe.data.image_size == 224
        if "resnet" in name:
            assert recipe.init == "tv_in1k"
            train = stage.train
            assert (train.lr, train.lr_scaling, train.batch_size) == (0.03, "none", 128)
            assert (train.epochs, train.weight_decay) == (100, 1e-4)
    method = build("synthesized_pairs", preset="paper", **SMALL)
    assert "no released code" in method.papers[0]
    assert method.augmentations == PRESETS["moco_v2"]


# --------------------------------------------------------------------------- processes, resume


def one_step_and_selection(options, path):
    """Gradients of this process's share of eight pairs, and all state after the step."""
    torch.set_num_threads(1)
    Accelerator(cpu=True)
    method = build("synthesized_pairs", **options)
    method.weak.chosen[::3] = True
    method.weak.variance.fill_(1.0)
    if world_size() > 1:
        synchronise(method, torch.device("cpu"))
    share = 8 // world_size()
    mine = images()[rank() * share : (rank() + 1) * share]
    torch.manual_seed(5 + rank())  # each process draws its own, and the first one's counts
    output = method({"images": mine})
    output.loss.backward()
    shared = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    shared |= {key: x for key, x in output.metrics.items() if key.startswith("loss/")}
    if world_size() > 1:
        for value in shared.values():
            dist.all_reduce(value)
            value /= world_size()
    method.on_step_end(0.5)
    torch.save({"shared": shared, "state": method.state_dict()}, path / f"{rank()}.pt")


@pytest.mark.parametrize("options", [
    {**SMALL, **AT_ONCE, "perturbation": "gauss"},
    {**SIMSIAM, **AT_ONCE, "perturbation": "swap", "per_sample": True},
], ids=["moco", "simsiam"])  # fmt: skip
def test_two_processes_equal_one_and_select_the_same(tmp_path, options):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one_step_and_selection(options, tmp_path / "one")
    launch(one_step_and_selection, options, tmp_path / "two")
    one, *two = (torch.load(tmp_path / name) for name in ("one/0.pt", "two/0.pt", "two/1.pt"))
    assert one["shared"]["loss/pairs"] != 0
    assert one["state"]["weak.chosen"].sum() > 0.2 * len(one["state"]["weak.chosen"])
    for key, value in two[0]["state"].items():
        if key.startswith(("weak.", "nu", "queue", "pair_queue")):
            assert torch.equal(two[1]["state"][key], value), key
    torch.testing.assert_close(two[0]["state"], one["state"], rtol=1e-3, atol=1e-4)
    for key, value in one["shared"].items():
        assert (two[0]["shared"][key] - value).norm() < 1e-3 * value.norm() + 1e-5, key


def test_a_run_that_goes_on_has_store_selection_queues_and_nu_of_one_that_was_not_stopped(
    tmp_path, birds
):
    options = {**SMALL, "pair_rise": (0.2, 0.9), "reselect_every": 0.25}
    whole = train(tmp_path, birds, "synthesized_pairs", options)
    assert drop_newest(tmp_path) == 4
    again = train(tmp_path, birds, "synthesized_pairs", options)
    assert whole.keys() == again.keys()
    for key, value in whole.items():
        assert torch.equal(again[key], value), key
    assert whole["weak.statistics.count"] == 48
