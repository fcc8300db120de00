import copy
import json
import math

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from timm.layers.drop import DropPath
from torch import nn

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import RecipeError, Train, load_recipe
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import ViewDataset, collate
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.layers.prototype_head import PrototypeHead
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.dino import DINO
from fg_ssl_zoo.ops.distillation import distillation_loss, signs_of_collapse
from fg_ssl_zoo.ops.distributed import rank
from fg_ssl_zoo.pretrain import pretrain
from tests.backbones.test_backbone import SMALL_HIERA
from tests.runs import end_of, go_on, launch

SMALL = {"prototypes": 32, "hidden_size": 32, "bottleneck": 16, "local_crops": 2}


def build(backbone="test_vit", size=64, backbone_options=None, **options):
    torch.manual_seed(0)
    shape = create_backbone(backbone, image_size=size, **backbone_options or {})
    method = create_method("dino", shape, **{**SMALL, **options})
    assert isinstance(method, DINO)
    return method


def batch_for(method, rows=4, size=64):
    dataset = ViewDataset(DrawnBirds(rows, image_size=size), method.views(size), seed=0)
    return collate([dataset[0, i] for i in range(rows)])


def softmax(x):
    e = [math.exp(v) for v in x]
    return [v / sum(e) for v in e]


def loss_of_the_paper(student, teacher, centre, student_temperature, teacher_temperature):
    """Equation 3 of the paper, one pair, image and prototype after the other."""
    num_views, num_images, num_prototypes = student.shape
    total, count = 0.0, 0
    for g in range(len(teacher)):
        for v in range(num_views):
            if v == g:
                continue
            for i in range(num_images):
                shifted = [
                    (float(t) - float(c)) for t, c in zip(teacher[g, i], centre, strict=True)
                ]
                p_t = softmax([t / teacher_temperature for t in shifted])
                p_s = softmax([float(s) / student_temperature for s in student[v, i]])
                total -= sum(p_t[k] * math.log(p_s[k]) for k in range(num_prototypes))
                count += 1
    return total / count


# --------------------------------------------------------------------------- loss


@pytest.mark.parametrize("num_views", [2, 5])
def test_the_loss_equals_the_double_loop_of_the_paper(num_views):
    generator = torch.manual_seed(0)
    student = torch.randn(num_views, 3, 7, dtype=torch.float64, generator=generator) / 5
    teacher = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator) / 5
    centre = torch.randn(7, dtype=torch.float64, generator=generator) / 5
    targets = ((teacher - centre) / 0.04).softmax(dim=-1)
    expected = loss_of_the_paper(student, teacher, centre, 0.1, 0.04)
    assert distillation_loss(student, targets, 0.1).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("prototypes", [32, 65536])
def test_a_student_that_says_the_same_of_all_prototypes_has_their_logarithm_as_loss(prototypes):
    targets = torch.randn(2, 2, prototypes, generator=torch.manual_seed(0)).softmax(dim=-1)
    loss = distillation_loss(torch.full((4, 2, prototypes), 0.3), targets, 0.1)
    assert loss.item() == pytest.approx(math.log(prototypes), abs=1e-4)


def test_a_collapsed_teacher_is_told_from_one_that_speaks():
    one = torch.zeros(2, 8, 16)
    one[..., 3] = 1
    alike = torch.full((2, 8, 16), 1 / 16)
    sharp = torch.eye(16)[torch.arange(16).view(2, 8)]
    found = [
        [round(v.item(), 4) for v in signs_of_collapse(t, torch.tensor(3.0)).values()]
        for t in (one, alike, sharp)
    ]
    ln = round(math.log(16), 4)
    assert found == [[0, 3, 0], [ln, round(3 - math.log(16), 4), ln], [0, 3, ln]]


@pytest.mark.parametrize("options", [{}, {"local_crops": 0}, {"local_size": 64}])
def test_a_batch_in_passes_by_size_equals_each_crop_alone(options):
    """One pass for each size, and one in all where the sizes are equal."""
    method = build(**options)
    passes = []
    method.backbone.register_forward_pre_hook(lambda _, x: passes.append(tuple(x[0].shape)))
    batch = batch_for(method)
    method.distillation.centre.normal_(std=0.1)
    centre = method.distillation.centre.clone()
    loss = method(batch).loss
    assert (
        passes
        == {
            "": [(8, 3, 64, 64), (8, 3, 32, 32)],
            "local_crops": [(8, 3, 64, 64)],
            "local_size": [(16, 3, 64, 64)],
        }["".join(options)]
    )
    pictures = [*batch["images"].unbind(1)]
    if "local_images" in batch:
        pictures += batch["local_images"].unbind(1)
    with torch.no_grad():
        seen = [method.backbone.normalize(p) for p in pictures]
        student = torch.stack([method.head(method.backbone(x)) for x in seen])
        teacher = torch.stack([method.teacher(x) for x in seen[:2]])
    expected = loss_of_the_paper(student, teacher, centre, 0.1, 0.04)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


# --------------------------------------------------------------------------- teacher


def test_after_k_steps_the_centre_is_the_paper_s_average_of_the_batches():
    method = build().eval()
    batch = batch_for(method)
    method(batch)
    assert not method.distillation.centre.any()  # a look in evaluation mode moves nothing
    method.train()
    with torch.no_grad():
        mean = method.teacher(method._by_view(batch["images"])).mean(dim=0)
    for k in range(1, 4):
        method(batch)
        torch.testing.assert_close(method.distillation.centre, (1 - 0.9**k) * mean)


def test_the_centre_moves_after_the_loss():
    method, still = build(), build(centre_momentum=1.0)
    batch = batch_for(method)
    assert torch.equal(method(batch).loss, still(batch).loss)
    assert not torch.equal(method(batch).loss, still(batch).loss)
    assert not still.distillation.centre.any()


def test_the_teacher_has_no_gradient_and_follows_by_the_cosine():
    method = build(momentum=0.9)
    method(batch_for(method)).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    start = copy.deepcopy(method.teacher.state_dict())
    with torch.no_grad():
        for parameter in [*method.backbone.parameters(), *method.head.parameters()]:
            parameter.add_(1.0)
    method.on_step_end(0.5)
    for key, value in method.teacher.state_dict().items():
        torch.testing.assert_close(value, start[key] + 0.05, msg=key)  # 1 - 0.95
    kept = copy.deepcopy(method.teacher.state_dict())
    method.on_step_end(1.0)
    assert all(torch.equal(v, kept[key]) for key, v in method.teacher.state_dict().items())


def test_the_teacher_drops_no_path_while_the_student_does():
    method = build(backbone_options={"drop_path_rate": 0.5, "proj_drop_rate": 0.5}).train()
    assert any(m.training and isinstance(m, DropPath) for m in method.teacher.modules())
    x = method._by_view(batch_for(method)["images"])
    with torch.no_grad():
        assert torch.equal(method.teacher(x), method.teacher(x))
        assert not torch.equal(method.backbone(x), method.backbone(x))
        torch.testing.assert_close(method.teacher[0](x), method.backbone.eval()(x))
    rates = [m.drop_prob for m in method.backbone.modules() if isinstance(m, DropPath)]
    assert max(rates) == 0.5  # the student's own are left alone


def test_the_teacher_s_temperature_rises_in_a_straight_line_and_stays():
    method = build(teacher_warmup=0.4)
    found = []
    for progress in (0.0, 0.1, 0.4, 0.9):
        if progress:
            method.on_step_end(progress)
        found.append(method.distillation.teacher_temperature.item())
    assert found == pytest.approx([0.04, 0.0475, 0.07, 0.07])


# --------------------------------------------------------------------------- head


def test_the_head_gives_cosines_whatever_the_lengths_and_takes_a_copy_and_a_state():
    head = build().head
    h = torch.randn(5, 64)
    z = head.mlp(h).detach()
    w = head.prototypes.weight.detach()
    cosines = torch.stack([torch.cosine_similarity(z, row[None]) for row in w], dim=1)
    torch.testing.assert_close(head(h), cosines)
    with torch.no_grad():
        head.prototypes.weight *= torch.rand(32, 1) + 0.5
    torch.testing.assert_close(head(h), cosines)
    twin, other = copy.deepcopy(head), build().head
    other.load_state_dict(head.state_dict())
    assert torch.equal(twin(h), head(h))
    assert torch.equal(other(h), head(h))
    assert [key for key in head.state_dict() if "prototypes" in key] == ["prototypes.weight"]
    layers = [tuple(m.weight.shape) for m in head.mlp if isinstance(m, nn.Linear)]
    assert layers == [(32, 64), (32, 32), (16, 32)]
    with torch.autocast("cpu", torch.bfloat16):
        assert head(h).dtype == torch.float32


def test_the_head_starts_from_the_normal_of_the_official_code_which_cuts_at_2_not_at_2_sigma():
    torch.manual_seed(0)
    layers = PrototypeHead(64, 512, 64, 8).mlp[::2]
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.01)
    beyond = float((weights.abs() > 0.04).float().mean())
    assert beyond == pytest.approx(0.0455, rel=0.05)  # of a normal, outside of two deviations


def test_the_prototypes_rest_while_fixed_and_move_after_it():
    """Decay shortens the vectors meanwhile; what they compute is their directions."""
    method = build(freeze_last_layer=0.5)
    optimizer = torch.optim.AdamW(method.param_groups(), lr=1e-2, weight_decay=0.4)
    batch = batch_for(method)

    def directions():
        return nn.functional.normalize(method.head.prototypes.weight.detach(), dim=1)

    trace = [directions()]
    for step in range(4):
        method(batch).loss.backward()
        quiet = not method.head.prototypes.weight.grad.any()
        assert quiet == (step < 2)
        assert method.head.mlp[0].weight.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        method.on_step_end((step + 1) / 4)
        trace.append(directions())
    torch.testing.assert_close(trace[2], trace[0], rtol=0, atol=1e-6)
    assert not torch.allclose(trace[3], trace[2], atol=1e-4)
    h = torch.randn(3, 64)
    assert torch.equal(method.head(h, fixed=torch.tensor(True)), method.head(h))


# --------------------------------------------------------------------------- views


@pytest.mark.parametrize(
    ("backbone", "size", "expected"),
    [
        ("test_vit", 64, 32),
        ("test_vit", 224, 96),
        ("test_resnet", 224, 96),
        ("test_resnet", 64, 27),
    ],
)
def test_local_crops_are_three_sevenths_of_the_side_in_whole_patches(backbone, size, expected):
    method = build(backbone, size)
    seen = method.views(size)({"image": np.zeros((80, 90, 3), np.uint8)}, np.random.default_rng(0))
    assert seen["images"].shape == (2, size, size, 3)
    assert seen["local_images"].shape == (2, expected, expected, 3)


def test_what_is_drawn_depends_on_the_generator_only_and_no_local_crops_are_none(birds):
    views = build().views(64)
    once, again = (views(birds[0], np.random.default_rng(5)) for _ in range(2))
    assert once.keys() == again.keys() == {"images", "local_images"}
    for key, seen in once.items():
        np.testing.assert_array_equal(seen, again[key])
    assert not np.array_equal(once["local_images"][0], once["local_images"][1])
    alone = build(local_crops=0).views(64)(birds[0], np.random.default_rng(5))
    assert list(alone) == ["images"]
    np.testing.assert_array_equal(alone["images"], once["images"])


def test_presets_are_the_papers_table_or_keep_colour_and_parts():
    paper, fine = build(preset="paper"), build()
    first, second = paper.augmentations
    assert (first.crop_scale, paper.local_augmentation.crop_scale) == ((0.4, 1), (0.05, 0.4))
    assert (first.blur, second.blur, paper.local_augmentation.blur) == (1.0, 0.1, 0.5)
    assert (first.solarize, second.solarize, paper.local_augmentation.solarize) == (0, 0.2, 0)
    assert paper.local_augmentation.blur_sigma[1] * 96 / 224 == pytest.approx(2)
    assert {a.crop_scale for a in build(preset="paper", local_crops=0).augmentations} == {(0.14, 1)}
    assert {a.crop_scale for a in build(local_crops=0).augmentations} == {(0.6, 1)}
    assert fine.local_augmentation.crop_scale == (0.15, 0.4)
    assert (fine.local_augmentation.grayscale, fine.local_augmentation.hue) == (0, 0)
    changed = build(augmentation={"crop_scale": (0.3, 1), "flip": 0}, local_crop_scale=(0.1, 0.3))
    large, small = changed.augmentations[1], changed.local_augmentation
    assert (large.crop_scale, small.crop_scale) == ((0.3, 1), (0.1, 0.3))
    assert large.flip == small.flip == 0


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("test_vit", 40, "local_size: 40 is not a multiple of the patch size 16 .* 64; 32 is"),
        ("test_vit", 3, "local_size: 3 is not a multiple of .*; 16 is"),
        ("test_vit", 80, "local_size: 80 is not a multiple of .*; 64 is"),
        ("test_resnet", 80, "local_size: 80 is not a number of pixels up to .* 64; 64 is"),
    ],
)
def test_a_local_size_that_does_not_fit_is_refused_with_the_nearest(backbone, size, message):
    with pytest.raises(ValueError, match=message):
        build(backbone, local_size=size)


def test_a_network_of_one_size_reads_no_local_crops():
    backbone = create_backbone("hiera_tiny_224", image_size=64, **SMALL_HIERA)
    with pytest.raises(ValueError, match="hiera_tiny_224 at 64 pixels cannot read images of 27"):
        create_method("dino", backbone)
    small = {"hidden_size": 8, "bottleneck": 4, "prototypes": 4}
    assert create_method("dino", backbone, local_crops=0, **small).local_crops == 0


def test_a_negative_count_is_refused_with_the_least():
    with pytest.raises(RecipeError, match="local_crops: should be greater than or equal to 0"):
        build(local_crops=-1)


# --------------------------------------------------------------------------- runs


def train_a_run(path, images, backbone="test_vit", drop=0.0, steps=4):
    given = {"drop_path_rate": drop} if drop else {}
    settings = Train(
        steps=steps, batch_size=8, optimizer="sgd", lr=0.5, warmup=0.0, checkpoint_every=0.5
    )
    short = {"freeze_last_layer": 0.3, "teacher_warmup": 0.8}
    go_on(path, images, lambda: build(backbone, 32, given, **short), settings, size=32)


@pytest.mark.slow
def test_a_run_that_was_stopped_equals_one_that_was_not_to_the_bit(tmp_path, birds):
    train_a_run(tmp_path / "whole", birds, drop=0.2)
    train_a_run(tmp_path / "cut", birds, drop=0.2)
    last = max(checkpoint.positions(tmp_path / "cut" / "checkpoints"))
    (tmp_path / "cut" / "checkpoints" / last.file_name).unlink()
    train_a_run(tmp_path / "cut", birds, drop=0.2)
    whole, cut = end_of(tmp_path / "whole"), end_of(tmp_path / "cut")
    assert whole["distillation.centre"].any()
    assert whole["distillation.teacher_temperature"] == pytest.approx(0.07)
    assert not whole["distillation.prototypes_fixed"]
    for key, value in whole.items():
        assert torch.equal(cut[key], value), key


def one_step(method, batch):
    loss = method(batch).loss
    loss.backward()
    gradients = {k: p.grad for k, p in method.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, method.distillation.centre


def work_of_a_process(path, images, batch):
    Accelerator(cpu=True)
    mine = slice(rank() * 2, rank() * 2 + 2)
    method = build(freeze_last_layer=0.0)
    found = one_step(method, {key: value[mine] for key, value in batch.items() if key != "corrupt"})
    torch.save(found, path / f"{rank()}.pt")
    train_a_run(path / "two", images, "test_resnet", steps=2)


@pytest.mark.slow
def test_two_processes_compute_and_train_what_one_does(tmp_path, birds):
    method = build(freeze_last_layer=0.0)
    batch = batch_for(method)
    loss, gradients, centre = one_step(method, batch)
    train_a_run(tmp_path / "one", birds, "test_resnet", steps=2)
    launch(work_of_a_process, tmp_path, birds, batch)
    shares = [torch.load(tmp_path / f"{r}.pt") for r in (0, 1)]
    torch.testing.assert_close((shares[0][0] + shares[1][0]) / 2, loss)
    for key, value in gradients.items():
        mean = (shares[0][1][key] + shares[1][1][key]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=key)
    for share in shares:
        torch.testing.assert_close(share[2], centre)
    one, two = end_of(tmp_path / "one"), end_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
def test_the_teacher_is_published_beside_the_student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = create_backbone("test_vit", image_size=32).model.state_dict()
    save_file(start, tmp_path / "start.safetensors")
    recipe = tmp_path / "fgssl_test_vit_drawn.dino.yaml"
    recipe.write_text(
        "backbone: test_vit\n"
        f"init: {tmp_path}/start.safetensors\n"
        "backbone_options: {drop_path_rate: 0.1}\n"
        "data: {name: drawn, image_size: 32, num_images: 16, num_classes: 4}\n"
        f"stages: [{{method: dino, options: {json.dumps(SMALL)},"
        " train: {steps: 2, batch_size: 8, optimizer: adamw}}]\n"
        "monitor: {k: 3}\n"
    )
    pretrain(load_recipe(recipe))
    run = tmp_path / "runs" / "fgssl_test_vit_drawn.dino"
    trained = end_of(run)
    student, teacher = (
        timm.create_model(f"local-dir:{run / folder}", pretrained=True)
        for folder in ("export", "export_teacher")
    )
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, trained[f"teacher.0.model.{key}"]), key
    assert not torch.equal(student.pos_embed, teacher.pos_embed)
    own, other = (
        json.loads((run / folder / "results.json").read_text())["rows"]
        for folder in ("export", "export_teacher")
    )
    assert own[0] == other[0]  # both started from the same weights
    card = (run / "export_teacher" / "README.md").read_text()
    assert f"It is the teacher of that training, which started from `{tmp_path}/start" in card
