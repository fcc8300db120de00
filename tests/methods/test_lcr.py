import copy
import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.config import Train, load_recipe, parse_recipe, recipe_files
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.lcr import LCR, attention_loss, correlation
from tests.runs import end_of, go_on, launch

MEAN = {"global_pool": "avg", "fc_norm": False}
BACKBONES = {"test_vit": MEAN, "test_resnet": {"zero_init_last": False}}
SMALL = {"queue_size": 32, "projection_size": 8}


def build(backbone="test_resnet", size=64, **options):
    torch.manual_seed(0)
    shape = create_backbone(backbone, image_size=size, **BACKBONES[backbone])
    method = create_method("lcr", shape, **{**SMALL, **options})
    assert isinstance(method, LCR)
    nn.init.normal_(method.attention.norm.running_mean)  # no constant map by chance
    return method


def pictures(count=4, size=64):
    return torch.randint(
        0, 256, (count, 2, size, size, 3), dtype=torch.uint8, generator=torch.manual_seed(1)
    )


# --------------------------------------------------------------------------- losses


def kl_of_the_paper(attention, target):
    """Double sum over images and positions."""
    total = 0.0
    for a, g in zip(attention.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        p, q = ([math.exp(x) for x in values] for values in (g, a))
        p, q = ([x / sum(values) for x in values] for values in (p, q))
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return total / len(attention)


def test_the_kl_equals_the_double_sum_and_is_zero_for_equal_maps():
    torch.manual_seed(0)
    attention, target = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    found = attention_loss(attention, target)
    assert found.item() == pytest.approx(kl_of_the_paper(attention, target))
    assert attention_loss(target, target).item() == pytest.approx(0, abs=1e-12)
    assert attention_loss(target + 3, target).item() == pytest.approx(0, abs=1e-12)
    twice = attention_loss(attention.repeat(2, 1, 1), target.repeat(2, 1, 1))
    torch.testing.assert_close(twice, found)


def test_the_correlation_is_one_for_maps_that_differ_in_scale():
    a = torch.rand(2, 3, 4, dtype=torch.float64)
    assert correlation(a, 5 * a + 1).item() == pytest.approx(1)
    assert correlation(a, -a).item() == pytest.approx(-1)


def loss_of_the_paper(method, images, weight=1.0):
    """Both terms image by image, with the Grad-CAM of each image's own loss."""
    losses, divergences = [], []
    model = method.backbone.model
    for first, second in images:
        maps = model.forward_features(method.backbone.normalize(first[None]))
        query = F.normalize(method.projector(maps.mean((2, 3))), dim=1)[0]
        key = F.normalize(method.teacher(method.backbone.normalize(second[None])), dim=1)[0]
        positive = torch.exp(query @ key / 0.2)
        rest = sum(torch.exp(query @ n / 0.2) for n in method.queue.items)
        loss = -torch.log(positive / (positive + rest))
        (gradient,) = torch.autograd.grad(loss, maps, retain_graph=True)
        cam = (maps * gradient).sum(1).relu().detach()
        raw = method.attention.norm(method.attention.conv(maps)).relu().amax(1)
        attention = (raw - raw.min()) / (raw.max() - raw.min())
        cam = (cam - cam.min()) / (cam.max() - cam.min()) if cam.any() else torch.ones_like(cam)
        p, log_q = cam.flatten().softmax(0), attention.flatten().log_softmax(0)
        divergences.append((p * (p.log() - log_q)).sum())
        losses.append(loss)
    contrast, divergence = torch.stack(losses).mean(), torch.stack(divergences).mean()
    return contrast, divergence, contrast + weight * divergence


def test_the_loss_and_its_gradient_are_those_of_the_paper_image_by_image():
    """Pitfall 3 too: one image at a time gives the same target, so the batch does not show."""
    method = build(attention_weight=2.0).double().eval()
    twin, images = copy.deepcopy(method), pictures(3)
    for network in (method, twin):
        plain = network.backbone.normalize
        network.backbone.normalize = lambda x, plain=plain: plain(x).double()
    output = method({"images": images})
    contrast, divergence, expected = loss_of_the_paper(twin, images, 2.0)
    torch.testing.assert_close(output.metrics["loss/contrast"], contrast.detach())
    torch.testing.assert_close(output.metrics["loss/attention"], divergence.detach())
    torch.testing.assert_close(output.loss, expected)
    assert divergence > 1e-3
    output.loss.backward()
    expected.backward()
    for name, parameter in method.named_parameters():
        wanted = twin.get_parameter(name).grad
        assert (parameter.grad is None) == (wanted is None) == name.startswith("teacher."), name
        if wanted is not None:
            torch.testing.assert_close(parameter.grad, wanted)


def test_equal_vectors_cost_the_logarithm_of_the_queue_and_one():
    method = build().eval()
    with torch.no_grad():
        for head in (method.projector, method.teacher[1]):
            nn.init.zeros_(head[2].weight)
            nn.init.ones_(head[2].bias)
        method.queue.items.fill_(1 / math.sqrt(8))
    found = method({"images": pictures()}).metrics["loss/contrast"]
    assert found.item() == pytest.approx(math.log(1 + 32))


def test_the_kl_teaches_branch_and_backbone_and_neither_projector_nor_teacher():
    kl, plain = (build(attention_weight=w).eval() for w in (1.0, 1e-12))
    for method in (kl, plain):
        method({"images": pictures()}).loss.backward()
    for name, parameter in kl.named_parameters():
        if name.startswith("teacher."):
            assert parameter.grad is None
            continue
        other = plain.get_parameter(name).grad
        same = (parameter.grad - other).norm() < 1e-4 * other.norm()
        assert same == name.startswith("projector."), name


# --------------------------------------------------------------------------- teacher and queue


def test_the_teacher_follows_after_a_step_and_the_queue_takes_its_keys_after_the_loss():
    method = build(momentum=0.9, momentum_end=1.0)
    images = pictures()
    before = copy.deepcopy(method)
    with torch.no_grad():
        keys = F.normalize(copy.deepcopy(method.teacher)(method.backbone.normalize(images[:, 1])))
    method({"images": images})
    assert torch.equal(method.queue.items[4:], before.queue.items[4:])
    torch.testing.assert_close(method.queue.items[:4], keys)
    assert not [key for key in method.state_dict() if key.startswith("student")]
    with torch.no_grad():
        method.projector[0].weight.add_(1)
    method.on_step_end(0.5)  # momentum 0.95
    expected = before.teacher[1][0].weight + 0.05
    torch.testing.assert_close(method.teacher[1][0].weight, expected)
    weight = method.teacher[1][0].weight.clone()
    method.on_step_end(1.0)
    assert torch.equal(method.teacher[1][0].weight, weight)
    with pytest.raises(ValueError, match="queue_size: 2 is smaller than the batch of 4"):
        build(queue_size=2)({"images": images})


# --------------------------------------------------------------------------- what is published


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_companion_pools_by_the_attention_before_and_after_its_export(backbone, tmp_path):
    method = build(backbone).eval()
    found = method.companions()["attention"].eval()
    images = pictures()
    x = method.backbone.normalize(images[:, 0])
    with torch.no_grad():
        if backbone == "test_vit":
            maps = method.backbone.model.forward_features(x)[:, 1:].mT.unflatten(2, (4, 4))
        else:
            maps = method.backbone.model.forward_features(x)
        attention = method.attention(maps)
        pooled = (maps * attention[:, None]).sum((2, 3)) / attention.sum((1, 2))[:, None]
        torch.testing.assert_close(found(x), pooled, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(found(x), method.backbone(x), rtol=1e-3)
    recipe = parse_recipe({
        "name": "fgssl_test_cub.lcr", "backbone": backbone,
        "data": {"name": "cub", "image_size": 64}, "stages": [{"method": "lcr"}],
    })  # fmt: skip
    folder = export(found, tmp_path / "model", recipe, {"rows": [], "companion": "attention"})
    config = json.loads((folder / "config.json").read_text())
    options = {**BACKBONES[backbone], **({"img_size": 64} if backbone == "test_vit" else {})}
    assert config["model_args"] == {
        "trunk": backbone, "trunk_options": options, "attention_channels": 32,
    }  # fmt: skip
    opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert open_backbone(str(folder)).name == "fgssl_attentive"
    assert torch.equal(opened(x), found(x))


def test_features_of_an_image_do_not_depend_on_its_batch():
    """Defect 12: min-max over the batch, also at inference."""
    found = build().eval().companions()["attention"].eval()
    x = torch.randn(4, 3, 64, 64, generator=torch.manual_seed(0))
    whole = found(x)
    for number in range(4):
        alone = found(x[number : number + 1])
        torch.testing.assert_close(alone[0], whole[number], rtol=1e-5, atol=1e-6)
    loud = torch.cat([x[:1], 50 * x[1:]])
    torch.testing.assert_close(found(loud)[0], whole[0], rtol=1e-5, atol=1e-6)


def test_a_backbone_named_by_a_recipe_becomes_a_stock_trunk():
    shape = create_backbone("fgssl_resnet18_drawn", image_size=64)
    found = create_method("lcr", shape, **SMALL).companions()["attention"]
    assert found.options["trunk"] == "resnet18"


def test_the_picture_shows_each_first_view_beside_its_attention():
    method, images = build().eval(), pictures()
    with torch.no_grad():
        shown = method.picture({"images": images})
    assert (shown.shape, shown.dtype) == ((4 * 64, 128, 3), torch.uint8)
    rows = shown.view(4, 64, 128, 3)
    assert torch.equal(rows[:, :, :64], images[:, 0])
    assert (rows[:, :, 64:] <= images[:, 0]).all()


def test_a_class_token_is_refused_with_the_option_that_helps():
    with pytest.raises(ValueError, match=r"global_pool: avg, fc_norm: false"):
        create_method("lcr", create_backbone("test_vit", image_size=64))


def test_the_recipes_have_the_papers_rates_and_their_cards_its_figures_and_the_reruns():
    for name in ("fgssl_resnet50_cub.lcr", "fgssl_resnet50_cars.lcr"):
        recipe = load_recipe(recipe_files()[name])
        (stage,) = recipe.stages
        train = stage.train
        assert (recipe.init, recipe.data.image_size) == ("tv_in1k", 224)
        assert (train.optimizer, train.lr, train.lr_scaling) == ("sgd", 0.03, "none")
        assert (train.batch_size, train.epochs, train.weight_decay) == (128, 100, 1e-4)
    lines = LCR.reported({})
    assert lines[0].startswith("71.31 % linear top-1 on CUB")
    assert lines[1].startswith("64.71 % and 66.85 % in reruns")


# --------------------------------------------------------------------------- processes, resume


def train_a_run(path, images, backbone, steps=3):
    settings = Train(
        steps=steps, batch_size=8, optimizer="sgd", lr=0.05, lr_scaling="none", checkpoint_every=0.5
    )
    go_on(path, images, lambda: build(backbone), settings)


@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tmp_path, birds):
    train_a_run(tmp_path / "one", birds, "test_vit")
    launch(train_a_run, tmp_path / "two", birds, "test_vit")
    one, two = end_of(tmp_path / "one"), end_of(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path, birds):
    for name in ("whole", "cut"):
        train_a_run(tmp_path / name, birds, "test_resnet")
    last = max(checkpoint.positions(tmp_path / "cut" / "checkpoints"))
    (tmp_path / "cut" / "checkpoints" / last.file_name).unlink()
    train_a_run(tmp_path / "cut", birds, "test_resnet")
    whole, cut = end_of(tmp_path / "whole"), end_of(tmp_path / "cut")
    for key, value in whole.items():
        assert torch.equal(cut[key], value), key
