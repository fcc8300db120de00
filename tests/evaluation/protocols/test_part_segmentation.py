"""Few-shot part segmentation: scores at known masks, lists that all models share, and runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data, parse_words
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.evaluation.evaluate import evaluate, make_task
from fg_ssl_zoo.evaluation.parts import segmenter_training
from fg_ssl_zoo.evaluation.parts.segmenter import (
    PartSegmentation,
    Segmenter,
    last_keys,
    map_pictures,
)
from fg_ssl_zoo.evaluation.parts.segmenter_scores import map_counts, picture_counts, set_counts
from fg_ssl_zoo.evaluation.parts.segmenter_training import Few, learn, read_few, turned
from fg_ssl_zoo.evaluation.parts.truth import (
    PartView,
    iou,
    labelled_box,
    mean_iou_values,
    merged,
    mirrored,
    overlaps,
    planes,
    usable,
)
from fg_ssl_zoo.evaluation.protocols.part_segmentation import (
    best_checkpoint,
    chosen_by_folds,
    few_shot_list,
    part_segmentation,
)
from fg_ssl_zoo.evaluation.statistics import bootstrap_interval, influence_values
from fg_ssl_zoo.layers.decoder import UpDecoder
from fg_ssl_zoo.ops.distributed import rank
from tests.engine.test_processes import launch
from tests.evaluation.test_evaluate import DATA
from tests.pictures import SomeCorrupt

CARPARTS = Path(__file__).parents[3] / "shared" / "data" / "carparts"
QUICK = PartSegmentation(shots=(2,), steps=2, checkpoints=1)


class Overlapping:
    """Images whose two parts overlap: the left two thirds, and the right two thirds."""

    name, classes, labels, parts = "overlapping", [], None, ["wing", "body"]

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index):
        image = np.full((24, 24, 3), 40 * index, np.uint8)
        maps = np.zeros((2, 24, 24), dtype=bool)
        maps[0, :, :16] = maps[1, :, 8:] = True
        return {"image": image, "index": index, "part_maps": maps}


class Masks:
    """Drawn birds with their masks changed by a function."""

    def __init__(self, birds, change) -> None:
        self.birds, self.change = birds, change
        self.name, self.classes, self.labels = birds.name, birds.classes, birds.labels
        self.parts = birds.parts

    def __len__(self) -> int:
        return len(self.birds)

    def __getitem__(self, index):
        sample = self.birds[index]
        return {**sample, "part_mask": self.change(sample["part_mask"], index)}


def task_of(train, test=None, name="test_resnet", size=32, cache=None):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=size).eval()
    return make_task(backbone, train, test or train, Accelerator(cpu=True), cache=cache)


# --------------------------------------------------------------------------- the score


def test_perfect_logits_score_one_with_and_without_background(birds):
    counts = []
    for sample in (birds[index] for index in range(6)):
        mask = sample["part_mask"]
        logits = 9 * planes(torch.from_numpy(mask).long(), 12).float()[None]
        counts.append(picture_counts(logits, mask, exclusive=True))
    for skip in (0, 1):
        values = mean_iou_values(torch.stack(counts), skip=skip)
        assert values.mean() == pytest.approx(1)


def test_a_known_confusion_has_a_known_iou():
    truth = torch.tensor([[0, 0, 0, 0], [1, 1, 2, 2]])
    found = torch.tensor([[0, 0, 0, 1], [1, 0, 2, 2]])
    counts = overlaps(planes(found, 4), planes(truth, 4))[None]
    # background 3 of 5, part 1 one of 3, part 2 two of 2; part 3 is nowhere and does not count
    torch.testing.assert_close(
        iou(counts[0].double())[:3], torch.tensor([3 / 5, 1 / 3, 1]).double()
    )
    assert mean_iou_values(counts).mean() == pytest.approx((3 / 5 + 1 / 3 + 1) / 3)
    assert mean_iou_values(counts, skip=1).mean() == pytest.approx((1 / 3 + 1) / 2)


def test_pixels_are_summed_over_the_set_before_they_are_divided():
    both, predicted, true = torch.tensor([[1, 30], [10, 30], [2, 40]])  # two images, one part
    counts = torch.stack([both, predicted, true], dim=1)[..., None]
    values = mean_iou_values(counts)
    assert values.mean() == pytest.approx(31 / (40 + 42 - 31))
    assert values.mean() != pytest.approx((1 / 11 + 30 / 40) / 2)


def test_an_interval_from_the_values_is_that_of_resampled_pictures():
    generator = np.random.default_rng(0)
    true = generator.integers(20, 200, (80, 1, 3))
    predicted = generator.integers(20, 200, (80, 1, 3))
    both = np.minimum(true, predicted) * generator.uniform(0.3, 1, (80, 1, 3))
    counts = np.concatenate([both.astype(int), predicted, true], axis=1)
    values = mean_iou_values(torch.from_numpy(counts))
    scores = []
    for _ in range(2000):
        i, p, t = counts[generator.integers(80, size=80)].sum(axis=0)
        scores.append((i / (p + t - i)).mean())
    interval = np.quantile(scores, [0.025, 0.975])
    np.testing.assert_allclose(bootstrap_interval(values), interval, atol=0.004)


def test_the_values_of_a_mean_are_the_pictures_own():
    counts = torch.tensor([[1.0], [4.0], [7.0]])
    values = influence_values(lambda total: total[0] / 3, counts)
    np.testing.assert_allclose(values, [1, 4, 7])


def test_two_overlapping_parts_have_an_iou_of_one_with_perfect_logits():
    truth = Overlapping()[0]["part_maps"].astype(np.uint8)
    logits = torch.from_numpy(np.where(truth, 3.0, -3.0)).float()[None]
    logits[:, 0] *= 2  # the largest logit alone would never find the second part where they overlap
    counts = picture_counts(logits, truth, exclusive=False)
    assert iou(counts.double()).tolist() == [1, 1]
    as_exclusive = planes(logits[0].argmax(dim=0), 2)
    assert iou(overlaps(as_exclusive, torch.from_numpy(truth) > 0).double())[1] < 1


# --------------------------------------------------------------------------- the decoder


@pytest.mark.parametrize(("deep", "side"), [(False, 14), (True, 7)])
def test_logits_have_the_size_of_the_labels(deep, side):
    # The released CNN decoder gives 112 pixels for labels of 224.
    decoder = UpDecoder(6, 5, deep=deep).eval()
    maps = torch.randn(1, 6, side, side)
    assert decoder(maps).shape == (1, 5, 8 * side, 8 * side)
    assert decoder(maps, (224, 224)).shape == (1, 5, 224, 224)
    assert decoder(maps, (37, 50)).shape == (1, 5, 37, 50)


def test_enlarging_after_a_1x1_convolution_is_enlarging_before_it():
    (block, *_) = UpDecoder(6, 5).blocks
    convolution, up, norm, act = block
    maps = torch.randn(2, 6, 5, 5)
    paper = act(norm.eval()(convolution(up(maps))))
    torch.testing.assert_close(block.eval()(maps), paper)


@pytest.mark.parametrize(("name", "side"), [("test_resnet", 4), ("test_vit", 4)])
def test_a_resnets_last_map_has_twice_the_side(name, side):
    backbone = create_backbone(name, image_size=64)
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    as_is = Segmenter(backbone, 3, PartSegmentation(last_stage="as_is"))
    assert as_is.map_side == (2 if name == "test_resnet" else 4)
    assert Segmenter(backbone, 3, PartSegmentation()).map_side == side
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, weights[key])


def test_keys_are_the_second_third_of_the_last_projection():
    backbone = create_backbone("test_vit", image_size=64).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        keys, first = last_keys(backbone, x), last_keys(backbone, x, first_head=True)
        before = backbone.model.patch_embed(x)
        before = backbone.model.norm_pre(
            backbone.model.patch_drop(backbone.model._pos_embed(before))
        )
        for block in backbone.model.blocks[:-1]:
            before = block(before)
        last = backbone.model.blocks[-1]
        weight, bias = (p.chunk(3)[1] for p in (last.attn.qkv.weight, last.attn.qkv.bias))
        tokens = F.linear(last.norm1(before), weight, bias)[:, 1:]
    assert keys.shape == (2, backbone.num_features, 4, 4)
    torch.testing.assert_close(keys, tokens.transpose(1, 2).reshape(keys.shape))
    torch.testing.assert_close(first, keys[:, : keys.shape[1] // last.attn.num_heads])
    with pytest.raises(ValueError, match="the keys of test_resnet cannot be read; use features"):
        last_keys(create_backbone("test_resnet"), x)


@pytest.mark.parametrize("backbone", ["frozen", "finetuned"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_frozen_backbone_rests_and_another_learns(name, backbone, birds):
    how = PartSegmentation(steps=2, checkpoints=1, backbone=backbone, lr=0.1, backbone_rate=1.0)
    task = task_of(birds, name=name)
    segmenter = Segmenter(task.backbone, 12, how)
    before = {key: value.clone() for key, value in segmenter.state_dict().items()}
    few = read_few(birds, [0, 1, 2], PartView(32, tuple(range(12))))
    assert len(list(learn(segmenter, few, list(range(12)), how, task.accelerator, 0))) == 1
    moved = {k for k, v in segmenter.state_dict().items() if not torch.equal(v, before[k])}
    assert {k for k in before if k.startswith("decoder.")} <= moved | {"decoder.last.bias"}
    assert any(key.startswith("backbone.") for key in moved) == (backbone == "finetuned")
    assert set(segmenter.trained_state()) >= moved


# --------------------------------------------------------------------------- names and views


def test_names_are_merged_and_mirrored():
    names = ["hood", "front_left_door", "front_right_door", "left_mirror", "right_mirror", "left"]
    assert mirrored(names) == [0, 1, 3, 2, 5, 4, 6]
    assert merged(names, ["left", "right", "front"]) == (
        ["hood", "door", "mirror", "left"],
        [0, 1, 2, 2, 3, 3, 4],
    )
    assert merged(names, []) == (names, [0, 1, 2, 3, 4, 5, 6])


def test_left_is_right_in_the_mirror():
    truth = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    assert turned(truth, [0, 2, 1, 3], exclusive=True).tolist() == [[[3, 1, 2, 0]]]
    maps = torch.tensor([[[[1, 0]], [[1, 1]]]], dtype=torch.uint8)
    assert turned(maps, [0, 2, 1], exclusive=False).tolist() == [[[[1, 1]], [[0, 1]]]]


def test_picture_and_truth_share_what_is_cut(birds):
    sample = birds[0]
    marked = {**sample, "image": np.repeat(sample["part_mask"][..., None] * 20, 3, axis=2)}
    table = tuple(range(12))
    for how in ({}, {"box": True}, {"cut_bottom": 9}, {"box": True, "cut_bottom": 5}):
        _, truth = PartView(64, table, **how)(marked)
        shape = truth.shape
        image, again = PartView(min(shape), table, **how)(marked)
        if shape[0] == shape[1]:
            np.testing.assert_array_equal(image[..., 0], again * 20)
        small = PartView(64, table, **how).square(truth)
        assert small.shape == (64, 64)
    rows, columns = labelled_box(sample["part_mask"], 0)
    box = sample["part_mask"][rows, columns]
    assert (box > 0).sum() == (sample["part_mask"] > 0).sum()
    assert all(side.any() for side in (box[0], box[-1], box[:, 0], box[:, -1]))
    assert labelled_box(np.zeros((4, 4), np.uint8), 2) == (slice(None), slice(None))


def test_independent_parts_of_exclusive_masks_and_merged_maps(birds):
    mask = birds[0]["part_mask"]
    _, maps = PartView(32, tuple(range(12)), exclusive=False)(birds[0])
    np.testing.assert_array_equal(maps[2], mask == 3)
    _, one = PartView(24, (0, 1, 1), exclusive=False)(Overlapping()[0])
    assert one.shape == (1, 24, 24)
    assert one.all()
    with pytest.raises(ValueError, match="labels: these parts overlap; use independent"):
        PartView(24, (0, 1, 2))(Overlapping()[0])


def test_something_must_be_left_of_a_picture():
    with pytest.raises(
        ValueError, match="cut_bottom: 24 rows cannot be cut off an image of 24 rows"
    ):
        PartView(24, (0, 1, 1), exclusive=False, cut_bottom=24)(Overlapping()[0])


# --------------------------------------------------------------------------- the lists


def test_lists_are_nested_and_follow_the_seed_alone(birds):
    long = few_shot_list(birds, (1, 5, 10), seed=3)
    assert few_shot_list(birds, (1,), seed=3)[:1] == long[:1]
    assert few_shot_list(birds, (5,), seed=3)[:5] == long[:5]
    assert len(set(long)) == len(long) >= 10
    assert few_shot_list(birds, (10,), seed=4)[:10] != long[:10]


@pytest.mark.slow
def test_every_model_learns_from_the_same_pictures(birds, tmp_path):
    how = replace(QUICK, shots=(1, 3), steps=1, draws=2)
    lists = []
    for name in ("test_resnet", "test_vit"):
        task = task_of(birds, name=name, cache=tmp_path)
        found = {o.metric: o.settings["pictures"] for o in part_segmentation(task, options=how)}
        assert [p[:1] for p in found["part_miou_3"]] == found["part_miou_1"]
        lists.append(found)
    assert lists[0] == lists[1]
    assert len(lists[0]["part_miou_3"]) == 2


# --------------------------------------------------------------------------- the protocol


def test_two_runs_agree(birds, tmp_path):
    task = task_of(birds, cache=tmp_path)
    for how in (replace(QUICK, shots=(5,)), replace(QUICK, backbone="finetuned", shots=(3,))):
        first, second = (part_segmentation(task, options=how) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a.values, b.values)
            assert a.settings == b.settings


@pytest.mark.slow
def test_a_frozen_backbone_sees_every_picture_once_whatever_the_sizes(birds, tmp_path):
    task = task_of(birds, cache=tmp_path)
    alone = part_segmentation(task, options=replace(QUICK, shots=(6,)))
    seen, layer = [], Backbone.feature_maps

    def counted(self, images, indices):
        seen.append(len(images))
        return layer(self, images, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "feature_maps", counted)
        both = part_segmentation(task, options=replace(QUICK, shots=(1, 2, 6), checkpoints=2))
    probes = 3  # each decoder asks for the shape of a map
    assert sum(seen) == 6 + 6 + 16 + probes  # the longest list, its mirror images, the test
    for a, b in zip(alone, both[-2:], strict=True):
        np.testing.assert_allclose(a.values, b.values)


def test_a_loss_over_rows_is_the_loss_over_maps():
    logits, truth = torch.randn(2, 5, 4, 6, dtype=torch.float64), torch.randint(5, (2, 4, 6))
    found = segmenter_training._loss(logits, truth.to(torch.uint8), exclusive=True)
    torch.testing.assert_close(found, F.cross_entropy(logits, truth))


@pytest.mark.slow
def test_a_decoder_on_drawn_birds_beats_background_everywhere(tmp_path):
    train = DrawnBirds(24, num_classes=4, image_size=64, seed=0)
    test = DrawnBirds(12, num_classes=4, image_size=64, seed=1)
    task = task_of(train, test, size=64, cache=tmp_path)
    before = {key: value.clone() for key, value in task.backbone.state_dict().items()}
    how = PartSegmentation(
        shots=(16,), steps=45, lr=3e-3, backbone="finetuned", backbone_rate=1.0, protocol="last"
    )
    whole, parts = part_segmentation(task, options=how)
    assert [whole.metric, parts.metric] == ["part_miou_16", "part_miou_16_fg"]
    floor = whole.settings["background_only"]
    share = np.mean([(test[i]["part_mask"] == 0).mean() for i in range(12)])
    assert floor == pytest.approx(share / 12)
    assert whole.value > 1.3 * floor
    assert parts.value > 0.02
    assert whole.values.shape == (12,)
    known = [value for value in whole.settings["iou"].values() if value is not None]
    assert np.mean(known) == pytest.approx(whole.value)
    for key, value in task.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert task.backbone.model.layer4[0].conv1.stride == (2, 2)


def test_the_checkpoint_that_is_best_on_the_held_out_fifth_is_scored(birds, tmp_path):
    task = task_of(birds, cache=tmp_path)
    how = PartSegmentation(shots=(1, 10), steps=6, checkpoints=3)
    one, _, ten, _ = part_segmentation(task, options=how)
    assert (one.settings["held_out"], one.settings["checkpoint"]) == (0, [0])
    assert ten.settings["held_out"] == 2
    assert ten.settings["checkpoint"][0] in (1, 2, 3)


def test_each_fold_picks_for_the_other_four():
    def counts(right):  # an image has 10 pixels of one part, `right` of which are found
        return torch.stack([torch.stack([r, r, torch.tensor(10)]) for r in right])[..., None]

    half = torch.arange(20) < 10
    passes = [counts(torch.where(half, 9, 1)), counts(torch.where(half, 1, 9))]
    found = chosen_by_folds(passes, seed=0)
    assert len(found) == 5
    assert sum((~scored).astype(int) for scored, _ in found).tolist() == [1] * 20  # one fold each
    for scored, chosen in found:
        inside = torch.from_numpy(~scored)
        best = max(float(mean_iou_values(p[inside]).mean()) for p in passes)
        assert mean_iou_values(chosen[inside]).mean() == best
    with pytest.raises(
        ValueError, match="particle splits the test images into 5 folds; there are 9"
    ):
        chosen_by_folds([p[:9] for p in passes], seed=0)


def test_the_best_checkpoint_is_the_latest_of_equals_and_none_without_a_part():
    assert best_checkpoint([0.1, 0.4, 0.4, 0.2]) == 2
    assert best_checkpoint([float("nan"), 0.0]) == 1
    assert best_checkpoint([float("nan"), float("nan")]) == 1


def test_the_papers_rule_averages_over_the_folds(birds, tmp_path):
    task = task_of(birds, cache=tmp_path)
    how = PartSegmentation(shots=(4,), steps=4, checkpoints=2, protocol="particle")
    outcome, _ = part_segmentation(task, options=how)
    assert np.isfinite(outcome.values).all()
    assert outcome.settings["std_over_folds"] > 0


@pytest.mark.slow
def test_overlapping_parts_are_learnt_independently(tmp_path):
    task = task_of(Overlapping(), cache=tmp_path)
    how = PartSegmentation(
        shots=(4,), steps=40, lr=1e-2, labels="independent", backbone="finetuned", protocol="last"
    )
    (outcome,) = part_segmentation(task, options=how)
    assert outcome.metric == "part_miou_4_fg"
    assert outcome.settings["iou"].keys() == {"wing", "body"}
    assert outcome.value > 0.55  # all of the image would be two thirds, nothing 0


def scored(folder):
    """Values and drawn images of a small evaluation, fine-tuning included."""
    found = []
    for backbone in ("frozen", "finetuned"):
        how = PartSegmentation(shots=(6,), steps=3, checkpoints=2, backbone=backbone)
        evaluation = evaluate(
            ["test_vit@scratch"], DATA, Accelerator(cpu=True), image_size=32, cache=folder,
            protocols=["part_segmentation"], options={"part_segmentation": how},
        )  # fmt: skip
        found += [outcome.values for outcome in evaluation.rows[0].outcomes.values()]
    return np.stack(found)


def score_a_share(path):
    found = scored(path / "two")
    np.save(path / f"{rank()}.npy", found)


@pytest.mark.slow
def test_two_processes_score_parts_as_one(tmp_path):
    launch(score_a_share, tmp_path)
    alone = scored(tmp_path / "one")
    for process in (0, 1):
        np.testing.assert_allclose(np.load(tmp_path / f"{process}.npy"), alone, atol=1e-9)


def test_square_pictures_are_counted_as_test_pictures_are(birds, tmp_path):
    task = task_of(birds, size=64, cache=tmp_path)
    network = Segmenter(task.backbone, 12, QUICK).eval()
    view = PartView(64, tuple(range(12)))
    few = read_few(birds, [0, 1, 2], view)
    assert isinstance(few[1:], Few)
    maps = map_pictures(network, few.images, task.accelerator)
    torch.testing.assert_close(
        map_counts(network.decoder, maps, list(few.truth.numpy()), task.accelerator, True),
        set_counts(network, [network.decoder], birds, [0, 1, 2], view, task.accelerator)[0],
    )


# --------------------------------------------------------------------------- refusals


def test_pictures_without_masks_are_refused_before_anything_runs(birds):
    with pytest.raises(ValueError, match=r"drawn has no part masks; drawn, PASCUB, OID"):
        usable(SomeCorrupt(birds), [0])


def test_wrong_masks_are_refused_with_counts(birds, tmp_path):
    def shorter(mask, index):
        return mask[:-2] if index in (3, 5) else mask

    with pytest.raises(ValueError, match=r"2 part masks do not fit their images: image 3 of"):
        usable(Masks(birds, shorter), range(16))

    def unknown(mask, index):
        return np.where(mask == 0, 37 if index < 2 else 255, mask) if index < 5 else mask

    with pytest.raises(
        ValueError, match=r"without a name: 37 in 2 images, 255 in 3 images; its parts are 1"
    ):
        usable(Masks(birds, unknown), range(16))
    task = task_of(birds, Masks(birds, unknown), cache=tmp_path)
    with pytest.raises(ValueError, match="37 in 2 images"):
        part_segmentation(task, options=QUICK)


def test_masks_of_nothing_but_background_are_refused_before_anything_is_learnt(birds, tmp_path):
    task = task_of(birds, Masks(birds, lambda mask, _: 0 * mask), cache=tmp_path)
    with pytest.raises(ValueError, match="drawn: its part masks contain background only"):
        part_segmentation(task, options=QUICK)


def test_held_out_pictures_without_any_part_leave_the_last_checkpoint(birds, tmp_path):
    order = few_shot_list(birds, (5,), seed=0)
    empty = Masks(birds, lambda mask, index: 0 * mask if index == order[0] else mask)
    how = replace(QUICK, shots=(5,), labels="independent", steps=4, checkpoints=2)
    (outcome,) = part_segmentation(task_of(empty, birds, cache=tmp_path), options=how)
    assert outcome.settings["held_out"] == 1
    assert outcome.settings["checkpoint"] == [2]
    assert np.isfinite(outcome.values).all()


def test_pictures_that_cannot_be_read_are_left_out(birds, tmp_path):
    class Broken(Masks):
        def __getitem__(self, index):
            if index == 4:
                raise CorruptImage("4.jpg is truncated")
            return super().__getitem__(index)

    broken = Broken(birds, lambda mask, index: mask)
    assert 4 not in usable(broken, range(16))
    outcome, _ = part_segmentation(task_of(broken, cache=tmp_path), options=QUICK)
    assert outcome.values.shape == (15,)


def test_more_shots_than_pictures_are_refused(birds, tmp_path):
    task = task_of(birds, cache=tmp_path)
    with pytest.raises(ValueError, match=r"shots: 50 is more than the 16 training images"):
        part_segmentation(task, options=replace(QUICK, shots=(50,)))
    sizes = {
        o.settings["shots"] for o in part_segmentation(task, options=replace(QUICK, shots=(2, 50)))
    }
    assert sizes == {2}


def test_options_are_typed():
    words = ["shots=[1,2]", "labels=independent", "drop_words=[left,right]", "lr=1e-2"]
    how = parse_words(PartSegmentation, words, "part_segmentation")
    assert (how.shots, how.labels, how.drop_words) == ((1, 2), "independent", ("left", "right"))
    with pytest.raises(ValueError, match=r"part_segmentation\.labels"):
        parse_words(PartSegmentation, ["labels=both"], "part_segmentation")


@pytest.mark.slow
def test_models_are_compared_and_the_untrained_one_has_its_row(tmp_path):
    evaluation = evaluate(
        ["test_vit@scratch", "test_resnet@scratch"], DATA, Accelerator(cpu=True),
        protocols=["knn", "part_segmentation"], options={"part_segmentation": QUICK},
        image_size=32, cache=tmp_path,
    )  # fmt: skip
    metrics = {"knn_top1", "knn_200_top1", "part_miou_2", "part_miou_2_fg"}
    assert set(evaluation.rows[0].outcomes) | {"knn_200_top1"} == metrics
    assert len(evaluation.p_values["part_miou_2"]) == 1


def test_a_single_feature_map_is_no_backbone_for_parts(tmp_path):
    with pytest.raises(
        ValueError, match="#2: a single feature map is not enough for part_segmentation"
    ):
        evaluate(
            ["test_vit@scratch#2"], Data(name="drawn", num_images=8, num_classes=2, image_size=32),
            Accelerator(cpu=True), protocols=["part_segmentation"], image_size=32, cache=tmp_path,
        )  # fmt: skip


def test_a_file_that_lacks_weights_is_refused_before_it_is_scored(tmp_path):
    # The released evaluation loads with strict=False and scores what stayed random.
    weights = create_backbone("test_resnet", image_size=32).model.state_dict()
    few = {key: value for key, value in weights.items() if not key.startswith("layer4")}
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(ValueError, match=r"holds 60 of the backbone's 75 weights; it lacks layer4"):
        evaluate(
            [f"test_resnet@{tmp_path}/few.safetensors"], DATA, Accelerator(cpu=True),
            protocols=["part_segmentation"], image_size=32, cache=tmp_path,
        )  # fmt: skip


def test_a_decoder_goes_back_to_exactly_what_was_trained():
    segmenter = Segmenter(create_backbone("test_vit", image_size=32), 3, PartSegmentation())
    state = segmenter.trained_state()
    assert all(key.startswith("decoder.") for key in state)
    segmenter.restore(state)
    with pytest.raises(AssertionError):
        segmenter.restore(dict(list(state.items())[1:]))
    with pytest.raises(AssertionError):
        segmenter.restore({**state, "fc.weight": torch.zeros(1)})


# --------------------------------------------------------------------------- real cars


@pytest.mark.long
@pytest.mark.skipif(not CARPARTS.is_dir(), reason="needs the images of carparts")
def test_the_command_scores_real_cars_without_labels(tmp_path, capsys):
    words = [
        *["eval", "test_resnet@scratch", "--data", str(CARPARTS), "--image-size", "96"],
        *["--protocols", "part_segmentation", "--cache", str(tmp_path), "--out", str(tmp_path)],
        *["--part-segmentation", "shots=[1,10]", "steps=40", "drop_words=[left,right,front,back]"],
    ]
    main(words)
    results = json.loads((tmp_path / "results.json").read_text())
    scores = results["rows"][0]["scores"]
    assert set(scores) == {f"part_miou_{n}{kind}" for n in (1, 10) for kind in ("", "_fg")}
    assert len(scores["part_miou_10"]["settings"]["iou"]) == 10
    assert results["data"]["num_scored"] == 100
    assert "carparts: 400 training and 100 test images without classes." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words[:5], "96", "--protocols", "knn"])
    assert "carparts has no labels" in capsys.readouterr().err
