import copy
import math

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Train
from fg_ssl_zoo.data import tensor_cache
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import collate
from fg_ssl_zoo.engine.optim import create_optimizer
from fg_ssl_zoo.methods import create_method
from fg_ssl_zoo.methods.particle import PAPER, Particle
from fg_ssl_zoo.ops.distributed import rank, world_size
from fg_ssl_zoo.parts import Discovery
from tests.methods.test_dino import loss_of_the_paper as loss_of_dino
from tests.ops.test_region_contrast import loss_of_the_paper
from tests.pictures import Drawings
from tests.runs import end_of, go_on, launch

SMALL = {
    "num_parts": 4, "hidden_size": 16, "projection_size": 8, "num_samples": 3, "prototypes": 12,
    "discovery": {"size": 16, "sample": 1000},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """Part maps of tests stay out of the user's cache."""
    monkeypatch.setattr(tensor_cache, "cached_assets_path", lambda *_, **__: tmp_path / "parts")


def build(backbone="test_resnet", size=64, **options):
    torch.manual_seed(0)
    method = create_method(
        "particle", create_backbone(backbone, image_size=size), **{**SMALL, **options}
    )
    assert isinstance(method, Particle)
    return method


def noted(sample, note):
    return {**sample, "regions": torch.as_tensor(np.asarray(note, np.uint8))}


def batch_of(method, samples):
    views = method.views(method.backbone.image_size)
    seen = [views(sample, np.random.default_rng(i)) for i, sample in enumerate(samples)]
    return collate([{**each, "corrupt": []} for each in seen])


def halves():
    """A note of two parts."""
    note = np.zeros((16, 16), np.uint8)
    note[:, 8:] = 3
    return note


# --------------------------------------------------------------------------- loss


def pooled(backbone, pixels, masks, ids):
    """Mean feature of each drawn part, cell by cell; a ViT's tokens behind its last norm."""
    with torch.no_grad():
        features = backbone.model.forward_features(backbone.normalize(pixels))
    if features.ndim == 3:
        cells = math.isqrt(features.shape[1] - backbone.model.num_prefix_tokens)
        features = features[:, -(cells**2) :].mT.unflatten(2, (cells, cells))
    rows = []
    for b in range(len(pixels)):
        for part in ids[b].tolist():
            places = [
                features[b, :, y, x] for y in range(masks.shape[1]) for x in range(masks.shape[2])
                if masks[b, y, x] == part
            ]  # fmt: skip
            rows.append(sum(places) / len(places) if places else torch.zeros(features.shape[1]))
    return torch.stack(rows)


def targets_and_predictions(method, batch):
    q, t = [], []
    for view in (0, 1):
        seen = batch["images"][:, view], batch["masks"][:, view], batch["ids"][:, view]
        rows = [pooled(network, *seen) for network in (method.backbone, method.teacher[0])]
        with torch.no_grad():
            q.append(method.predictor(method.projector(rows[0])))
            t.append(method.teacher[1](rows[1]))
    shape = (2, len(batch["images"]), method.num_samples, -1)
    return (torch.stack(x).view(shape).double() for x in (q, t))


@pytest.mark.parametrize("local_negatives", [True, False])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_the_loss_is_that_of_the_paper_part_by_part(birds, backbone, local_negatives):
    method = build(backbone, distillation=False, local_negatives=local_negatives).eval()
    with torch.no_grad():
        method.teacher[1][0].weight.mul_(-0.5)  # as if it had lagged behind
    batch = batch_of(method, [noted(birds[i], halves()) for i in range(4)])
    q, t = targets_and_predictions(method, batch)
    expected = loss_of_the_paper(
        q, t, batch["ids"].transpose(0, 1), 0.1,
        weights=batch["weight"], local_negatives=local_negatives,
    )  # fmt: skip
    assert method(batch).loss.item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_vit_adds_dino_between_the_two_views_alone(birds):
    method = build("test_vit").eval()
    assert method.distils
    method.distillation.centre.normal_(std=0.1)
    batch = batch_of(method, [noted(birds[i], halves()) for i in range(4)])
    q, t = targets_and_predictions(method, batch)
    parts = loss_of_the_paper(q, t, batch["ids"].transpose(0, 1), 0.1, weights=batch["weight"])
    views = [method.backbone.normalize(batch["images"][:, view]) for view in (0, 1)]
    with torch.no_grad():
        student = torch.stack([method.head(method.backbone(view)) for view in views])
        teacher = torch.stack([method.teacher[2](method.teacher[0](view)) for view in views])
    dino = loss_of_dino(student, teacher, method.distillation.centre, 0.1, 0.04)
    output = method(batch)
    assert output.metrics["loss/parts"].item() == pytest.approx(parts.item(), rel=1e-3)
    assert output.metrics["loss/dino"].item() == pytest.approx(dino, rel=1e-3)
    assert output.loss.item() == pytest.approx(parts.item() + dino, rel=1e-3)


def test_equal_embeddings_give_twice_the_logarithm_of_2_b_s_minus_1(birds):
    method = build()
    for head in (method.predictor, method.teacher[1]):
        nn.init.zeros_(head[-1].weight)
        nn.init.ones_(head[-1].bias)
    batch = batch_of(method, [birds[i] for i in range(4)])
    batch["ids"] = torch.arange(3).expand(4, 2, 3)
    batch["weight"] = torch.ones(4)
    loss = method(batch).loss.item()
    assert loss == pytest.approx(2 * math.log(2 * 4 * 3 - 1), rel=1e-5)
    assert loss == pytest.approx(6.271, abs=1e-3)


# --------------------------------------------------------------------------- nothing to compare


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_flat_pictures_and_pictures_of_one_part_weigh_nothing(backbone):
    flat = Drawings(*(np.full((50, 70, 3), value, np.uint8) for value in (0, 128, 255)))
    method = build(backbone, distillation=False, scope="image")
    notes = method.annotate(flat, Accelerator(cpu=True))["regions"]
    assert notes.shape == (3, 16, 16)
    samples = [noted(flat[i], notes[i].numpy()) for i in range(3)]
    output = method(batch_of(method, samples))
    output.loss.backward()
    assert output.loss == 0
    assert output.metrics["train/regions"] == 0
    assert all((p.grad == 0).all() for p in method.parameters() if p.requires_grad)


def test_a_picture_whose_views_share_no_part_counts_nothing_beside_the_others(birds):
    method = build().eval()
    batch = batch_of(method, [noted(birds[i], halves()) for i in range(3)])
    batch["ids"] = torch.tensor([[[0, 0, 0], [3, 3, 3]], [[0, 0, 0], [0, 0, 0]], [[3, 3, 3]] * 2])
    batch["weight"] = torch.ones(3)
    q, t = targets_and_predictions(method, batch)
    expected = loss_of_the_paper(q, t, batch["ids"].transpose(0, 1), 0.1)
    assert expected.isfinite()
    assert method(batch).loss.item() == pytest.approx(expected.item(), rel=1e-3)
    batch["ids"] = batch["ids"][:1].expand(3, 2, 3)
    assert method(batch).loss == 0


# --------------------------------------------------------------------------- notes and views


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_notes_are_parts_of_the_backbone_as_it_is(birds, backbone):
    method = build(backbone)
    notes = method.annotate(birds, Accelerator(cpu=True))
    assert set(notes) == {"regions"}
    first = notes["regions"]
    assert (first.shape, first.dtype) == ((16, 16, 16), torch.uint8)
    assert torch.equal(
        method.parts(birds, Accelerator(cpu=True)), first + (backbone == "test_resnet")
    )  # 0 is background
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(3)))
    assert not torch.equal(method.annotate(birds, Accelerator(cpu=True))["regions"], first)


def test_parts_of_each_picture_alone_are_not_scored(birds):
    assert build(scope="image").parts(birds, Accelerator(cpu=True)) is None


@pytest.mark.parametrize("shape", [(120, 90), (64, 200)])
def test_a_picture_that_is_its_part_map_stays_so_in_every_view(shape):
    """Defect 9: the same crop and flip for both. Beside a border the image blends two parts."""
    note = np.arange(16, dtype=np.uint8).repeat(16).reshape(16, 16) // 4
    height, width = shape
    big = cv2.resize(note, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    sample = noted({"image": np.repeat(big[..., None] * 60, 3, axis=2), "index": 0}, note)
    still = {"jitter": 0, "blur": 0, "solarize": 0, "crop_scale": [0.08, 1]}
    views = build(preset="paper", augmentation=still).views(64)
    crossed = 0
    for seed in range(20):
        seen = views(sample, np.random.default_rng(seed))
        for picture, cells in zip(seen["images"], seen["masks"], strict=True):
            large = cells.astype(np.uint8).repeat(32, 0).repeat(32, 1)
            votes = np.rint(picture[..., 0] / 60)
            for part in np.unique(cells):  # most pixels of a cell are of its part
                assert (votes[large == part] == part).mean() > 0.4
            crossed += cells.min() != cells.max()
    assert crossed > 10


def test_views_without_a_note_show_a_grid(birds):
    views = build(size=96).views(96)
    seen = views(birds[0], np.random.default_rng(0))
    assert len(np.unique(seen["masks"])) > 4
    assert seen["weight"] == 1


def test_drawn_parts_are_shown_by_both_views(birds):
    """Defect 7."""
    method = build(num_samples=10)
    batch = batch_of(method, [noted(birds[i], halves()) for i in range(8)])
    for masks, ids in zip(batch["masks"], batch["ids"], strict=True):
        common = np.intersect1d(masks[0], masks[1])
        if len(common):
            assert set(ids.flatten().tolist()) <= set(common.tolist())


# --------------------------------------------------------------------------- networks


def test_the_teacher_keeps_its_own_statistics(birds):
    """Defect 8."""
    method = build()
    teacher, student = (copy.deepcopy(dict(m.named_buffers())) for m in (method.teacher, method))
    method(batch_of(method, [noted(birds[i], halves()) for i in range(4)]))
    for key, value in method.teacher.named_buffers():
        assert torch.equal(value, teacher[key]), key
    moved = [k for k, v in method.named_buffers() if not torch.equal(v, student[k])]
    assert any(key.startswith("backbone.") for key in moved)


@pytest.mark.parametrize(("values", "end"), [("ours", 1.0), ("release", 0.9)])
def test_the_teacher_follows_ever_more_slowly_or_as_released(values, end):
    method = build(values=values, momentum=0.9, momentum_end=end)
    student, teacher = method.projector[0].weight, method.teacher[1][0].weight
    with torch.no_grad():
        student.add_(1)
    for progress in (0.5, 1.0):
        before = teacher.clone()
        method.on_step_end(progress)
        momentum = end + (0.9 - end) * (1 + math.cos(math.pi * progress)) / 2
        torch.testing.assert_close(teacher, before.lerp(student, 1 - momentum))
    assert not any(p.requires_grad for p in method.teacher.parameters())


def test_heads_have_layer_norm_and_so_no_row_depends_on_the_others():
    method = build().train()
    for head in (method.projector, method.predictor):
        x = torch.randn(5, head[0].in_features)
        torch.testing.assert_close(head(x)[:2], head(x[:2]))
        assert isinstance(head[1], nn.LayerNorm)


@pytest.mark.parametrize(("backbone", "rate"), [("test_resnet", 1.0), ("test_vit", 0.01)])
def test_the_backbone_of_a_vit_learns_slowly_and_small_parameters_do_not_decay(backbone, rate):
    groups = create_optimizer(
        build(backbone), Train(optimizer="adamw", lr=1e-3, weight_decay=0.4)
    ).param_groups
    assert {group["lr_scale"] for group in groups if group["backbone"]} == {rate}
    assert {group.get("lr_scale", 1.0) for group in groups if not group["backbone"]} == {1.0}
    for group in groups:
        decays = all(p.ndim > 1 for p in group["params"])
        assert group["weight_decay"] == (0.4 if decays else 0.0)


@pytest.mark.parametrize("distillation", [True, False])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_what_requires_a_gradient_gets_one(birds, backbone, distillation):
    method = build(backbone, distillation=distillation)
    method(batch_of(method, [noted(birds[i], halves()) for i in range(4)])).loss.backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


# --------------------------------------------------------------------------- options


def options_of(backbone, **options):
    size = 64 if backbone.startswith("test") else 224
    return create_method("particle", create_backbone(backbone, image_size=size), **options)


def test_what_is_not_given_depends_on_the_network():
    cnn, vit = (options_of(name, hidden_size=8) for name in ("test_resnet", "test_vit"))
    assert cnn.discovery == Discovery(num_parts=15)
    assert vit.discovery == Discovery(num_parts=5, foreground=True)
    assert (cnn.num_samples, vit.num_samples) == (10, 6)
    assert (cnn.distils, vit.distils) == (False, True)
    assert not hasattr(cnn, "head")


@pytest.mark.parametrize("word", ["values", "preset"])
def test_the_release_has_its_values_where_nothing_is_given(word):
    cnn = options_of("test_resnet", hidden_size=8, **{word: "release"})
    layers = ("layer3", "layer2", "layer1", "maxpool")
    assert cnn.discovery == Discovery(15, "image", layers, restarts=10)
    assert cnn.augmentations == PAPER
    assert all(view.grayscale == 0 for view in PAPER)
    assert cnn.momentum_end == 0.996
    vit = options_of("test_vit", hidden_size=8, num_parts=3, prototypes=9, **{word: "release"})
    assert vit.discovery == Discovery(3, foreground=True, stride=8, heads=(0, 2, 4, 5), restarts=10)
    assert (vit.momentum_end, vit.backbone_rate) == (1.0, 1.0)
    assert vit.head.prototypes.out_features == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_parts": 5, "discovery": {"size": 2}}, "num_parts: 5 parts on maps of 2 x 2 pixels"),
        ({"discovery": {"sise": 2}}, "discovery.sise: unknown key; did you mean size"),
        ({"discovery": {"smooth": 2}}, "smooth: 2 is not an odd number"),
        ({"scope": "chunk"}, "scope: should be 'image' or 'dataset'"),
        ({"values": "released"}, "values: should be 'ours' or 'release'"),
        ({"preset": "papers"}, "preset: unknown 'papers'; did you mean paper"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_parts_on_the_attention_of_a_cnn_are_refused(birds):
    with pytest.raises(ValueError, match="foreground: test_resnet has no attention"):
        build(foreground=True).annotate(birds, Accelerator(cpu=True))


def test_the_figures_name_who_measured_them():
    lines = Particle.reported({})
    assert "35.4 -> 42.0 % on CUB" in lines[0]
    assert "2309.13822" in lines[0]
    assert all("README of cvl-umass/PARTICLE" in line for line in lines[1:])


# --------------------------------------------------------------------------- runs


def one_step(path, images):
    """Notes, and loss and gradients of eight images, of which this process sees its share."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    method = build().eval()  # what norms do over processes is tested elsewhere
    notes = method.annotate(images, accelerator)
    rows = range(8 * rank() // world_size(), 8 * (rank() + 1) // world_size())
    views = method.views(64)
    seen = [views(noted(images[i], notes["regions"][i]), np.random.default_rng(i)) for i in rows]
    loss = method(collate([{**each, "corrupt": []} for each in seen])).loss
    loss.backward()
    values = [p.grad for p in method.parameters() if p.grad is not None]
    if world_size() > 1:
        for value in (loss.data, *values):
            torch.distributed.all_reduce(value)
            value /= world_size()
    torch.save([notes["regions"], loss.detach(), values], path / f"{world_size()}_{rank()}.pt")


@pytest.mark.slow
def test_two_processes_give_notes_loss_and_gradient_of_one(tmp_path):
    birds = DrawnBirds(20, num_classes=4, image_size=64, seed=0)  # two blocks of discovery
    one_step(tmp_path, birds)
    notes, loss, gradients = torch.load(tmp_path / "1_0.pt")
    launch(one_step, tmp_path, birds)
    for r in (0, 1):
        shared = torch.load(tmp_path / f"2_{r}.pt")
        assert torch.equal(shared[0], notes)
        torch.testing.assert_close(shared[1], loss)
        torch.testing.assert_close(shared[2], gradients, rtol=1e-3, atol=1e-5)


def train_a_run(path, images):
    settings = Train(steps=2, batch_size=8, optimizer="momentum", lr=0.1, warmup=0)
    go_on(path, images, lambda: build("test_vit"), settings)


@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tmp_path, birds):
    train_a_run(tmp_path / "one", birds)
    launch(train_a_run, tmp_path / "two", birds)
    one, two = end_of(tmp_path / "one"), end_of(tmp_path / "two")
    assert two.keys() == one.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-4, msg=key)
