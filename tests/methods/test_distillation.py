"""A student learns a teacher's features: the loss by loops, what is kept, and what is refused."""

import copy
import itertools
import math

import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import nn

import fg_ssl_zoo
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import parse_recipe
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.distillation import divergence, standardised
from fg_ssl_zoo.pretrain import pretrain
from tests.backbones.test_backbone import SMALL_HIERA
from tests.methods.short_runs import build, by_one_and_by_two, losses_on, pairs
from tests.test_methods import teacher_words


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """Words for a small model with a classifier of five classes."""
    torch.manual_seed(5)
    backbone = create_backbone("test_resnet", image_size=32)
    state = dict(backbone.model.state_dict())
    state |= {"fc.weight": torch.randn(5, backbone.num_features), "fc.bias": torch.randn(5)}
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(state, file)
    return f"test_resnet@{file}"


def columns_standardised(x):
    """Channel by channel, row by row."""
    out = torch.zeros_like(x)
    for c in range(x.shape[1]):
        mean = sum(x[:, c].tolist()) / len(x)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x[:, c].tolist()) / len(x))
        for n in range(len(x)):
            out[n, c] = (x[n, c] - mean) / (deviation + 1e-3)
    return out


def test_targets_have_mean_zero_and_deviation_one_and_a_constant_channel_is_zero():
    x = torch.randn(6, 4) * torch.tensor([1.0, 30.0, 0.1, 0.0]) + 7
    torch.testing.assert_close(standardised(x), columns_standardised(x), rtol=1e-4, atol=1e-5)
    assert standardised(x)[:, 3].abs().max() < 1e-2


def test_the_divergence_is_that_of_hinton_by_loops():
    student, teacher, t = torch.randn(3, 4), torch.randn(3, 4), 2.0
    wanted = 0.0
    for row, other in zip(student.tolist(), teacher.tolist(), strict=True):
        q = [math.exp(v / t) / sum(math.exp(w / t) for w in row) for v in row]
        p = [math.exp(v / t) / sum(math.exp(w / t) for w in other) for v in other]
        wanted += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) * t * t / 3
    assert float(divergence(student, teacher, t)) == pytest.approx(wanted, rel=1e-5)
    assert divergence(teacher, teacher, t).abs() < 1e-6


def test_the_loss_is_the_weighted_mean_of_its_terms(classified):
    method = build("distillation", teacher=classified, logit_weight=0.5, map_weight=3.0)
    twin, teacher = copy.deepcopy(method), method.teacher
    images = pairs(method)
    output = method({"images": images})
    x = twin.backbone.normalize(images[:, 0])
    h, f = twin.backbone(x), teacher(x)  # both are 32 px and have the same mean and std
    own_maps = copy.deepcopy(method.backbone).feature_maps(x, [0, 1, 2, 3, 4])
    error = nn.functional.mse_loss(twin.features(h), columns_standardised(f))
    terms = {"features": (2.0, error)}
    assert [(pair.mine, pair.theirs) for pair in twin.pairs] == [(2, 2), (3, 3), (4, 4)]
    for head, pair in zip(twin.maps, twin.pairs, strict=True):
        mine, theirs = pair.mine, pair.theirs
        rows = own_maps[mine].movedim(1, -1).flatten(0, 2)
        cells = teacher.feature_maps(x, [theirs])[0].movedim(1, -1).flatten(0, 2)
        error = nn.functional.mse_loss(head(rows), columns_standardised(cells))
        terms[f"map_{own_maps[mine].shape[-1]}"] = (3.0, error)
    logits = method._outside[1](f)
    terms["logits"] = (0.5, divergence(twin.logits(h), logits, 4.0))
    wanted = sum(w * t for w, t in terms.values()) / sum(w for w, _ in terms.values())
    torch.testing.assert_close(output.loss, wanted, rtol=1e-3, atol=1e-4)
    for name, (_, term) in terms.items():
        found = output.metrics[f"loss/{name}"]
        torch.testing.assert_close(found, term.detach(), rtol=1e-3, atol=1e-4)


def test_the_teacher_is_neither_trained_nor_kept_nor_exported():
    method = build("distillation", teacher=teacher_words())
    before = copy.deepcopy(method.teacher.state_dict())
    method.train()
    method({"images": pairs(method)}).loss.backward()
    assert not method.teacher.training
    assert not any("teacher" in key for key in method.state_dict())
    for key, value in method.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(p.grad is None for p in method.teacher.parameters())


def test_a_teacher_of_another_size_reads_the_same_view():
    method = build("distillation", teacher=teacher_words(), teacher_size=64)
    batch = {"images": torch.zeros(4, 1, 64, 64, 3, dtype=torch.uint8)}
    seen = {}
    for name, network in (("student", method.backbone), ("teacher", method.teacher)):
        network.model.conv1.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].shape[-1]})
        )
    method(batch)
    assert seen == {"student": 32, "teacher": 64}
    assert method.views(32).size == 64


def test_cached_targets_are_the_features_that_embed_gives_and_no_map_is_learnt():
    method = build("distillation", teacher=teacher_words(), targets="cached")
    birds = DrawnBirds(5, image_size=48)
    notes = method.annotate(birds, Accelerator(cpu=True))["teacher"]
    accelerator = Accelerator(cpu=True)
    model = fg_ssl_zoo.load(teacher_words(), image_size=32, accelerator=accelerator)
    wanted = model.embed([birds[i]["image"] for i in range(5)])
    torch.testing.assert_close(notes, torch.as_tensor(wanted), rtol=1e-4, atol=1e-4)
    output = method({"images": pairs(method, count=5), "teacher": notes})
    assert output.metrics.keys() == {"loss/features"}


def test_two_processes_equal_one(tmp_path):
    whole, *shares = by_one_and_by_two("distillation", {"teacher": teacher_words()}, tmp_path)
    for share in shares:
        torch.testing.assert_close(share["loss"], whole["loss"], rtol=1e-4, atol=1e-5)
        for key, gradient in whole["gradients"].items():
            torch.testing.assert_close(share["gradients"][key], gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"teacher": "runs/nothing"}, "teacher: no model 'runs/nothing'"),
        (
            {"teacher": "test_resnet@scratch"},
            "teacher: 'test_resnet@scratch' has random weights; name a trained",
        ),
        ({"teacher": "TEACHER", "logit_weight": 1.0}, "logit_weight: teacher .* no classifier"),
        (
            {"teacher": "TEACHER", "feature_weight": 0.0},
            "feature_weight and logit_weight are both 0; one of",
        ),
        ({"teacher": "VIT", "teacher_size": 40}, "teacher_size: 40 is not divisible by the patch"),
    ],
)
def test_a_wrong_teacher_is_one_line(options, said, tmp_path):
    vit = tmp_path / "vit.safetensors"
    save_file(create_backbone("test_vit", image_size=64).model.state_dict(), vit)
    words = {"TEACHER": teacher_words(), "VIT": f"test_vit@{vit}"}
    options = {**options, "teacher": words.get(options["teacher"], options["teacher"])}
    with pytest.raises(ValueError, match=said) as refused:
        build("distillation", **options)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_run_names_its_teacher_in_results_and_card_and_has_no_pretraining_folder(tmp_path):
    recipe = {
        "name": "fgssl_tiny_drawn.distillation",
        "backbone": "test_resnet",
        "data": {"image_size": 32, "num_images": 16, "num_classes": 4, "num_workers": 0},
        "output": str(tmp_path / "run"),
        "stages": [
            {
                "method": "distillation",
                "options": {"teacher": teacher_words()},
                "train": {"steps": 2, "batch_size": 8},
            },
            {"method": "simclr", "train": {"steps": 2, "batch_size": 8}},
        ],
    }
    pretrain(parse_recipe(recipe))
    card = (tmp_path / "run" / "export" / "README.md").read_text(encoding="utf-8")
    assert "Distilled from" in card
    assert teacher_words() in card
    recipe["stages"] = recipe["stages"][:1]
    recipe["output"] = str(tmp_path / "alone")
    pretrain(parse_recipe(recipe))
    assert not (tmp_path / "alone" / "export" / "pretraining").exists()


def test_a_teacher_that_is_not_there_is_said_before_the_run_has_a_folder(tmp_path):
    recipe = {
        "name": "fgssl_tiny_drawn.distillation",
        "backbone": "test_resnet",
        "output": str(tmp_path / "run"),
        "stages": [{"method": "distillation", "options": {"teacher": "local-dir:nowhere"}}],
    }
    with pytest.raises(ValueError, match=r"stages\[0\].options.teacher: .*nowhere"):
        pretrain(parse_recipe(recipe))
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_a_teacher_is_one_line_before_any_work(tmp_path):
    recipe = {
        "name": "fgssl_tiny_drawn.distillation",
        "backbone": "test_resnet",
        "output": str(tmp_path / "run"),
        "stages": [{"method": "distillation"}],
    }
    with pytest.raises(
        ValueError, match=r"^stages\[0\].options.teacher: distillation requires this option$"
    ):
        pretrain(parse_recipe(recipe))
    assert not (tmp_path / "run").exists()


def test_the_student_reaches_the_teachers_features_on_a_few_pictures():
    torch.manual_seed(0)
    student = create_backbone("test_vit", image_size=32)
    method = create_method("distillation", student, teacher=teacher_words())
    images = pairs(method)
    losses = losses_on(method, images, torch.optim.AdamW(method.param_groups(), lr=3e-3), steps=30)
    assert losses[-1] < 0.5 * losses[0]


def test_a_map_of_stride_8_is_compared_at_a_size_that_8_does_not_divide():
    method = build("distillation", teacher=teacher_words(), student_size=100, teacher_size=100)
    assert [(pair.mine, pair.name) for pair in method.pairs] == [(2, "13"), (3, "7"), (4, "4")]


def test_a_transformer_predicts_finer_maps_in_earlier_blocks_and_several_cells_in_one():
    student = create_backbone("vit_tiny_patch16_224", image_size=64)  # 12 blocks, 4 x 4 cells
    method = create_method("distillation", student, teacher=teacher_words(), teacher_size=64)
    assert [(p.mine, p.theirs, p.fold) for p in method.pairs] == [(3, 2, 2), (7, 3, 1), (11, 4, 1)]
    images = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    output = method.eval()({"images": images})
    x = student.normalize(images[:, 0])
    own, _ = student.maps_and_features(x, [3, 7, 11])
    theirs = method.teacher.feature_maps(method.teacher.normalize(images[:, 0]), [2, 3, 4])
    for number, block in enumerate(("block_4", "block_8", "block_12")):
        found = method.maps[number](own[number].movedim(1, -1))  # (2, 4, 4, d)
        target = torch.zeros_like(found)
        fold, channels = method.pairs[number].fold, theirs[number].shape[1]
        scaled = nn.functional.interpolate(
            theirs[number], size=(4 * fold, 4 * fold), mode="bilinear", antialias=True
        )
        for y, x_, dy, dx in itertools.product(range(4), range(4), range(fold), range(fold)):
            part = scaled[:, :, fold * y + dy, fold * x_ + dx]
            target[:, y, x_, fold * dy + dx :: fold**2] = part
        assert target.shape[-1] == fold**2 * channels
        error = nn.functional.mse_loss(
            found.flatten(0, 2), columns_standardised(target.flatten(0, 2))
        )
        torch.testing.assert_close(
            output.metrics[f"loss/map_{block}"], error.detach(), rtol=1e-3, atol=1e-4
        )


@pytest.mark.slow
def test_a_teacher_of_one_size_reads_its_own(tmp_path):
    weights = tmp_path / "crossvit.safetensors"
    save_file(timm.create_model("crossvit_tiny_240", num_classes=0).state_dict(), weights)
    words = {"teacher": f"crossvit_tiny_240@{weights}", "map_weight": 0.0}
    assert build("distillation", **words).teacher.image_size == 240
    with pytest.raises(
        ValueError, match=r"^teacher_size: crossvit_tiny_240 cannot read images of 64"
    ):
        build("distillation", **words, teacher_size=64)


def test_a_transformer_of_few_blocks_or_large_patches_has_one_pair_a_block():
    shallow = create_backbone("vit_tiny_patch16_224", image_size=64, depth=2)
    method = create_method("distillation", shallow, teacher=teacher_words(), teacher_size=64)
    assert [(p.mine, p.theirs) for p in method.pairs] == [(0, 3), (1, 4)]
    coarse = create_backbone("vit_tiny_patch16_224", image_size=16)  # one cell
    method = create_method("distillation", coarse, teacher=teacher_words(), teacher_size=96)
    assert [(p.theirs, p.fold) for p in method.pairs] == [(2, 4), (3, 4), (4, 3)]


def test_a_convolutional_student_may_read_smaller_pictures_and_a_transformer_may_not():
    method = build("distillation", teacher=teacher_words(), student_size=48, teacher_size=64)
    assert method.views(32).size == 64  # the size of the recipe is that of the other stages
    assert [(pair.mine, pair.theirs) for pair in method.pairs] == [(2, 2), (3, 3), (4, 4)]
    seen = []
    method.backbone.model.conv1.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[-1]))
    method({"images": torch.zeros(4, 1, 64, 64, 3, dtype=torch.uint8)})
    assert seen == [48]
    hiera = create_backbone("hiera_tiny_224", image_size=64, **SMALL_HIERA)
    with pytest.raises(ValueError, match=r"^student_size: hiera_tiny_224 at 64 .* images of 32 \("):
        create_method("distillation", hiera, teacher=teacher_words(), student_size=32)
    transformer = create_backbone("test_vit", image_size=64)
    with pytest.raises(ValueError, match="student_size: test_vit accepts images of 64 pixels only"):
        create_method("distillation", transformer, teacher=teacher_words(), student_size=32)
