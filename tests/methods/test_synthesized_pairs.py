import copy
import math

import pytest
import torch
import torch.nn.functional as F

from fg_ssl_zoo.ops.gradcam import gradient_at
from tests.methods.short_runs import build
from tests.methods.synthesized import AT_ONCE, SIMSIAM, SMALL, images, ready


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
