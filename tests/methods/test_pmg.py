import copy
import json
import math

import cv2
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Monitor, load_recipe
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.loader import ViewDataset, step_loader
from fg_ssl_zoo.data.order import Order
from fg_ssl_zoo.evaluation.monitor import OnlineMonitor
from fg_ssl_zoo.layers.modes import evaluating
from fg_ssl_zoo.methods import complete_options, create_method
from fg_ssl_zoo.methods.pmg import CROP, PMG, LabelledPuzzle, shuffle_tiles
from fg_ssl_zoo.ops.permutations import join_tiles, split_tiles
from fg_ssl_zoo.pretrain import main, pretrain
from tests.pictures import write_photos

SMALL = {"num_classes": 4, "hidden_size": 8, "embedding_size": 12}
RECIPE = """
backbone: test_resnet
data: {name: drawn, image_size: 64, num_images: 16, num_classes: 4}
stages:
  - method: pmg
    options: {hidden_size: 8, embedding_size: 8, updates: in_turn}
    train: {steps: 5, batch_size: 8, optimizer: sgd, lr: 0.01}
monitor: {every: 5, k: 3}
"""


def build(backbone="test_resnet", size=64, **options):
    torch.manual_seed(0)
    shape = create_backbone(backbone, image_size=size)
    method = create_method("pmg", shape, **{**SMALL, **options})
    assert isinstance(method, PMG)
    return method


def batch_of(method, birds, count=8):
    dataset = ViewDataset(birds, method.views(64), seed=0)
    return next(iter(step_loader(dataset, Order(len(birds), count, 0), range(1), num_workers=0)))


def exact(method, monkeypatch):
    """The method in double precision and evaluation mode."""
    method.double().eval()
    monkeypatch.setattr(
        method.backbone, "normalize", lambda x: Backbone.normalize(method.backbone, x).double()
    )
    return method


# --------------------------------------------------------------------------- the jigsaw


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_shuffled_tiles_are_those_of_numpy_and_keep_every_pixel(n):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    orders = np.stack([generator.permutation(n * n) for _ in images])
    found = shuffle_tiles(torch.from_numpy(images), torch.from_numpy(orders)).numpy()
    for image, order, shuffled in zip(images, orders, found, strict=True):
        np.testing.assert_array_equal(shuffled, join_tiles(split_tiles(image, n)[order]))
        np.testing.assert_array_equal(
            np.sort(shuffled.reshape(-1, 3), axis=0), np.sort(image.reshape(-1, 3), axis=0)
        )


def test_every_picture_has_its_own_order_unless_the_batch_shares_one(birds):
    own, shared = build().eval(), build(per_sample=False).eval()
    batch = batch_of(own, birds)
    for n in (8, 4, 2):
        assert len({tuple(order.tolist()) for order in batch[f"order_{n}"]}) > 1
        assert all(sorted(order.tolist()) == list(range(n * n)) for order in batch[f"order_{n}"])
    assert not torch.equal(own(batch).loss, shared(batch).loss)
    firsts = {
        key: batch[key][:1].expand_as(batch[key]) for key in ("order_8", "order_4", "order_2")
    }
    torch.testing.assert_close(shared(batch).loss, own({**batch, **firsts}).loss)


def test_a_crop_is_a_square_of_the_picture_and_every_other_one_is_mirrored():
    place = np.stack(np.meshgrid(np.arange(110), np.arange(165)), axis=-1)  # x, y of every pixel
    image = np.concatenate([place, np.zeros((165, 110, 1))], axis=-1).astype(np.uint8)
    side = round(110 * CROP)
    corners, mirrored = set(), 0
    for draw in range(60):
        seen = LabelledPuzzle(side, (1,))(
            {"image": image, "index": 0, "label": 3}, np.random.default_rng(draw)
        )
        crop, flipped = seen["image"], seen["image"][0, 0, 0] > seen["image"][0, -1, 0]
        crop = cv2.flip(crop, 1) if flipped else crop
        x, y = (int(v) for v in crop[0, 0, :2])
        np.testing.assert_array_equal(crop, image[y : y + side, x : x + side])
        corners.add((x, y))
        mirrored += int(flipped)
        assert seen["label"] == 3
    assert len(corners) > 50
    assert 15 < mirrored < 45


# --------------------------------------------------------------------------- the losses


def cross_entropy(logits, labels):
    rows = [
        math.log(sum(math.exp(v) for v in row)) - row[int(label)]
        for row, label in zip(logits.tolist(), labels, strict=True)
    ]
    return sum(rows) / len(rows)


def test_the_loss_is_the_papers_sum_over_stages_and_the_whole_picture(birds, monkeypatch):
    method = exact(build(), monkeypatch)
    batch = batch_of(method, birds, 4)
    model = method.backbone.model

    def stages(images):
        x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        x3 = model.layer2(model.layer1(x))
        x4 = model.layer3(x3)
        x5 = model.layer4(x4)
        return [
            block(x).flatten(2).max(dim=2).values
            for block, x in zip(method.blocks, (x3, x4, x5), strict=True)
        ]

    expected = 0.0
    with torch.no_grad():
        for k, n in enumerate((8, 4, 2)):
            pictures = zip(batch["image"].numpy(), batch[f"order_{n}"].numpy(), strict=True)
            jigsaws = np.stack([join_tiles(split_tiles(i, n)[order]) for i, order in pictures])
            embedding = stages(method.backbone.normalize(torch.from_numpy(jigsaws)))[k]
            expected += cross_entropy(method.classifiers[k](embedding), batch["label"])
        parts = stages(method.backbone.normalize(batch["image"]))
        whole = method.classifiers[3](torch.cat(parts, dim=1))
        expected += 2 * cross_entropy(whole, batch["label"])
        output = method(batch)
        assert output.loss.item() == pytest.approx(expected, rel=1e-12)
        singles = [method.classifiers[k](part) for k, part in enumerate(parts)]
        torch.testing.assert_close(
            method.classify(method.backbone.normalize(batch["image"])), sum(singles) + whole
        )
    right = (whole.argmax(dim=1) == batch["label"]).double().mean().item()
    assert output.metrics["train/accuracy"].item() == pytest.approx(right)


def test_an_even_guess_costs_five_logarithms_of_the_classes(birds):
    method = build().eval()
    for head in method.classifiers:
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    assert method(batch_of(method, birds)).loss.item() == pytest.approx(5 * math.log(4), rel=1e-5)


def test_four_turns_add_up_to_the_four_granularities_together(birds, monkeypatch):
    together = exact(build(), monkeypatch)
    in_turn = exact(build(updates="in_turn"), monkeypatch)
    batch = batch_of(together, birds, 4)
    loss = together(batch).loss
    loss.backward()
    terms, seen = [], []
    for step in range(4):
        output = in_turn(batch)
        before = {key: p.grad.clone() for key, p in in_turn.named_parameters() if step}
        output.loss.backward()
        moved = {
            key.split(".")[1]
            for key, p in in_turn.named_parameters()
            if key.startswith("classifiers.") and not torch.equal(p.grad, before.get(key, 0 * p))
        }
        assert moved == {str(step)}
        terms.append(output.loss.detach())
        seen += [key for key in output.metrics if key.startswith("loss/")]
        in_turn.on_step_end(0.0)
    assert seen == ["loss/grid_8", "loss/grid_4", "loss/grid_2", "loss/whole"]
    torch.testing.assert_close(torch.stack(terms).sum(), loss.detach())
    for (key, mine), other in zip(in_turn.named_parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=key)
    assert int(in_turn.turn) == 0


def test_the_turn_is_part_of_the_state():
    method, other = build(updates="in_turn"), build(updates="in_turn")
    method.on_step_end(0.1)
    other.load_state_dict(method.state_dict())
    assert int(other.turn) == 1


@pytest.mark.slow
def test_it_names_new_pictures_of_the_species_it_has_learned():
    birds = DrawnBirds(72, num_classes=2, image_size=64, seed=0)
    method = build(num_classes=2)
    dataset = ViewDataset(birds, method.views(64), seed=0)
    seen = list(step_loader(dataset, Order(32, 16, 0), range(2), num_workers=0))  # the first 32
    optimizer = torch.optim.AdamW(method.param_groups(), lr=5e-3)
    for batch in seen * 12:
        method(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    method.eval()
    pictures = torch.from_numpy(np.stack([birds[index]["image"] for index in range(32, 72)]))
    with torch.no_grad():
        named = method.classify(method.backbone.normalize(pictures)).argmax(dim=1)
    right = (named.numpy() == birds.labels[32:]).mean()
    assert right > 0.6  # chance is a half; seeds give 0.72 to 0.85


# --------------------------------------------------------------------------- the backbone


def test_the_backbone_learns_at_a_tenth_and_a_vits_norm_not_at_all():
    method = build("test_vit")
    assert method.stages == [1, 3, 5]
    backbone, heads = method.param_groups()
    assert backbone["lr_scale"] == 0.1
    assert "lr_scale" not in heads
    frozen = {key for key, p in method.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.model.norm.weight", "backbone.model.norm.bias"}
    count = len(list(method.parameters()))
    assert len(backbone["params"]) + len(heads["params"]) + len(frozen) == count


def test_the_stages_are_the_last_three_of_a_cnn_or_those_asked_for():
    assert build().stages == [2, 3, 4]
    assert build(grids=[4, 2], stages=[1, -1]).stages == [1, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": [3, 4]}, r"stages: 2 feature maps for 3 grids; give one for each grid"),
        ({"stages": [3, 4, 9]}, r"stages: test_resnet has 5 feature maps; there is no \[3, 4, 9\]"),
        ({"stages": [4, 3, 2]}, r"stages: \[4, 3, 2\] is not in rising order; \[2, 3, 4\] is"),
        ({"updates": "four"}, r"options.updates: .*'together' or 'in_turn'"),
        ({"num_classes": 1}, r"options.num_classes"),
    ],
)
def test_options_that_do_not_fit_say_what_would(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(("size", "fitting"), [(60, 64), (450, 448), (4, 8)])
def test_a_size_that_the_tiles_do_not_divide_names_one_that_they_do(size, fitting):
    with pytest.raises(ValueError, match=f"image_size: {size} is not .* 8 tiles .* use {fitting}$"):
        build().views(size)
    build().views(fitting)


# --------------------------------------------------------------------------- labels


def test_the_number_of_classes_comes_from_the_data(birds):
    assert complete_options("pmg", {"grids": [2]}, birds) == {"grids": [2], "num_classes": 4}
    assert complete_options("pmg", {"num_classes": 4}, birds) == {"num_classes": 4}
    assert complete_options("simclr", {}, birds) == {}
    with pytest.raises(
        ValueError, match=r"stages\[1\].options.num_classes: drawn has 4 .* not 200"
    ):
        complete_options("pmg", {"num_classes": 200}, birds, where="stages[1].options")


def test_pictures_without_labels_are_refused_before_anything_is_trained(
    recipe, tmp_path, birds, capsys
):
    write_photos(tmp_path / "photos", birds)
    with pytest.raises(SystemExit):
        main([str(recipe), "data.path=photos", "data.name=garden", "data.num_images=null"])
    error = capsys.readouterr().err
    assert "pmg is trained on labels and garden has none; put each class into a folder" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_one_class_alone_is_refused(birds):
    alike = copy.copy(birds)
    alike.classes = ["robin"]
    with pytest.raises(ValueError, match="pmg needs 2 classes or more and drawn has 1"):
        complete_options("pmg", {}, alike)


def test_a_class_with_one_picture_is_refused(birds):
    lonely = copy.copy(birds)
    lonely.classes = [*birds.classes, "dodo"]
    lonely.labels = np.where(np.arange(len(birds)) == 5, len(birds.classes), birds.labels)
    with pytest.raises(ValueError, match=r"1 of 5 have one training image \(dodo\); add images"):
        complete_options("pmg", {}, lonely)


def test_its_own_accuracy_is_the_share_of_pictures_it_names(birds):
    method = build(num_classes=4)
    monitor = OnlineMonitor(birds, birds, Monitor(), crop_pct=1.0)
    measured = monitor.own_accuracy(method, Accelerator(cpu=True))
    assert method.training
    with evaluating(method), torch.no_grad():
        pixels = torch.stack([torch.from_numpy(birds[i]["image"]) for i in range(len(birds))])
        named = method.classify(method.backbone.normalize(pixels)).argmax(dim=1)
    right = (named == torch.from_numpy(birds.labels)).double().mean().item()
    assert measured == {"eval/own_top1": right}


@pytest.mark.slow
def test_a_run_says_that_it_saw_labels(recipe, tmp_path):
    pretrain(load_recipe(recipe, ["output=run"]))
    card = (tmp_path / "run/export/README.md").read_text()
    assert "trained with\nlabels by pmg" in card
    assert "top-1 of its own classifier" in card
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["with_labels"]
    assert all(0 <= row["own_top1"] <= 1 for row in results["rows"])
