import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train, load_recipe
from fg_ssl_zoo.data.loader import collate
from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.detcon import DetCon
from fg_ssl_zoo.ops.region_contrast import region_contrast
from fg_ssl_zoo.pretrain import pretrain
from tests.pictures import SomeCorrupt
from tests.runs import end_of, go_on, launch

SMALL = {"hidden_size": 16, "projection_size": 8, "num_samples": 4}


def build(backbone="test_resnet", size=64, **options):
    torch.manual_seed(0)
    shape = create_backbone(backbone, image_size=size)
    method = create_method("detcon", shape, **{"masks": "given", **SMALL, **options})
    assert isinstance(method, DetCon)
    return method


def batch_of(method, images, count=6):
    views = method.views(method.backbone.image_size)
    seen = [views(images[i], np.random.default_rng(i)) for i in range(count)]
    return collate([{**s, "corrupt": []} for s in seen])


# --------------------------------------------------------------------------- forward


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_loss_is_that_of_regions_pooled_one_by_one(birds, backbone):
    method = build(backbone, momentum=0.5).eval()
    with torch.no_grad():
        method.teacher[1][0].weight.mul_(-0.5)  # as if it had lagged behind
    batch = batch_of(method, birds)
    p, t = [], []
    for view in (0, 1):
        seen = method.backbone.normalize(batch["images"][:, view])
        for network, found in ((method.backbone, p), (method.teacher[0], t)):
            (maps,) = network.feature_maps(seen, [-1])
            rows = [
                maps[b][:, batch["masks"][b, view] == region].mean(dim=1)
                for b in range(6) for region in batch["ids"][b, view]
            ]  # fmt: skip
            found.append(torch.stack(rows))
    p = torch.stack([method.predictor(method.projector(x)).view(6, 4, -1) for x in p])
    t = torch.stack([method.teacher[1](x).view(6, 4, -1) for x in t])
    ids, weights = batch["ids"].transpose(0, 1), batch["weight"]
    expected = region_contrast(p, t, ids, 0.1, weights=weights)
    torch.testing.assert_close(method(batch).loss, expected)
    apart = build(backbone, local_negatives=False).eval()
    apart.load_state_dict(method.state_dict())
    expected = region_contrast(p, t, ids, 0.1, weights=weights, local_negatives=False)
    torch.testing.assert_close(apart(batch).loss, expected)


def test_pictures_of_a_single_region_move_nothing(birds):
    method = build()
    batch = batch_of(method, birds)
    batch["weight"] = torch.zeros(6)
    output = method(batch)
    output.loss.backward()
    assert output.loss == 0
    assert output.metrics["train/regions"] == 0
    assert all((p.grad == 0).all() for p in method.parameters() if p.requires_grad)


def test_the_log_tells_how_many_regions_a_picture_contributes(birds):
    method = build()
    batch = batch_of(method, birds, 3)
    batch["ids"] = torch.tensor(
        [[[0, 0, 1, 0], [0, 0, 1, 0]], [[2, 2, 2, 2], [3, 3, 3, 3]], [[0, 1, 2, 3], [0, 1, 2, 3]]]
    )
    batch["weight"] = torch.ones(3)
    assert method(batch).metrics["train/regions"] == pytest.approx((2 + 0 + 4) / 3)


# --------------------------------------------------------------------------- teacher


def test_the_teacher_keeps_its_own_statistics(birds):
    """Defect 8: both networks used to write into the same running statistics."""
    method = build()
    teacher, student = (copy.deepcopy(dict(m.named_buffers())) for m in (method.teacher, method))
    method(batch_of(method, birds))
    for key, value in method.teacher.named_buffers():
        assert torch.equal(value, teacher[key]), key
    moved = [k for k, v in method.named_buffers() if not torch.equal(v, student[k])]
    assert any(key.startswith("backbone.") for key in moved)
    assert any(key.startswith("projector.") for key in moved)


def test_the_teacher_follows_ever_more_slowly(birds):
    method = build(momentum=0.9)
    student, teacher = method.projector[0].weight, method.teacher[1][0].weight
    with torch.no_grad():
        student.add_(1)
    before = teacher.clone()
    method.on_step_end(0.5)
    torch.testing.assert_close(teacher, before + 0.05)
    before = teacher.clone()
    method.on_step_end(1.0)
    torch.testing.assert_close(teacher, before)
    assert not any(p.requires_grad for p in method.teacher.parameters())


# --------------------------------------------------------------------------- masks and views


def test_the_views_of_the_paper_are_those_of_byol():
    assert build(preset="paper").augmentations == PRESETS["byol"]
    assert build().augmentations == PRESETS["fine_grained"]


@pytest.mark.parametrize(("backbone", "cells"), [("test_resnet", 3), ("test_vit", 6)])
def test_masks_have_the_side_of_the_feature_map(birds, backbone, cells):
    method = build(backbone, size=96, masks="grid")
    assert batch_of(method, birds, 1)["masks"].shape == (1, 2, cells, cells)


def test_notes_are_taken_of_segments_only(birds):
    accelerator = Accelerator(cpu=True)
    assert set(build(masks="felzenszwalb").annotate(birds, accelerator)) == {"regions"}
    unreadable = SomeCorrupt(birds, range(16))
    assert build(masks="grid").annotate(unreadable, accelerator) == {}
    assert build(masks="given").annotate(birds, accelerator) == {}
    with pytest.raises(ValueError, match="single part"):
        build(masks="given").annotate(unreadable, accelerator)


def test_the_figures_name_who_measured_them():
    (line,) = DetCon.reported({})
    assert line.startswith("35.4 % on CUB")
    assert "2309.13822" in line


# --------------------------------------------------------------------------- runs


def train_a_run(path, images, steps=2):
    settings = Train(steps=steps, batch_size=8, optimizer="sgd", lr=0.1, checkpoint_every=0.5)
    go_on(path, images, lambda: build(masks="felzenszwalb", scale=300, momentum=0.9), settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, birds):
    path = tmp_path_factory.mktemp("whole")
    train_a_run(path, birds)
    return end_of(path)


@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tmp_path, birds, whole):
    launch(train_a_run, tmp_path, birds)
    two = end_of(tmp_path)
    assert two.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
def test_a_run_that_was_stopped_and_goes_on_equals_one_that_was_not_to_the_bit(
    tmp_path, birds, whole
):
    train_a_run(tmp_path, birds)
    last = max(checkpoint.positions(tmp_path / "checkpoints"))
    (tmp_path / "checkpoints" / last.file_name).unlink()
    train_a_run(tmp_path, birds)
    for key, value in end_of(tmp_path).items():
        assert torch.equal(value, whole[key]), key


@pytest.mark.slow
def test_a_recipe_trains_and_keeps_its_notes(tmp_path):
    recipe = load_recipe(
        overrides=[
            "backbone=test_resnet", "backbone_options={}", "data.name=drawn", "data.image_size=64",
            "data.num_images=16", "data.num_classes=2", "stages.0.method=detcon",
            "stages.0.options={hidden_size: 16, projection_size: 8}",
            "stages.0.train={steps: 2, batch_size: 8, optimizer: lars, lr: 0.2}",
            f"output={tmp_path}",
        ]
    )  # fmt: skip
    pretrain(recipe)
    (notes,) = (recipe.folder / "notes").iterdir()
    assert notes.name == "stage0_round0.safetensors"
    assert (recipe.folder / "export" / "model.safetensors").is_file()
