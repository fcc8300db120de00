import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data import folders
from fg_ssl_zoo.evaluation.evaluate import Evaluation, Row
from fg_ssl_zoo.evaluation.report import attribution, bokeh_figures
from fg_ssl_zoo.evaluation.report.confusion import class_scores, confused_pairs
from fg_ssl_zoo.evaluation.report.curves import below_starts, colours_of, training_curves
from fg_ssl_zoo.evaluation.report.inspected_model import readable
from fg_ssl_zoo.evaluation.report.page import write_report
from fg_ssl_zoo.evaluation.report.sections import choose_queries
from fg_ssl_zoo.evaluation.report.templates import rendered
from fg_ssl_zoo.evaluation.report.tsne import plane
from fg_ssl_zoo.ops.neighbours import nearest
from tests.pages import EVIL, NASTY, Page, check_closed, save_birds

SUPERVISED = {"results", "labels", "confused", "classes"}
ALWAYS = {"glance", "map", "neighbours", "looks"}


def test_a_labelled_page_has_every_section_and_both_models(labelled):
    page = Page(labelled)
    assert page.ids >= SUPERVISED | ALWAYS
    assert "training" not in page.ids  # no run
    assert "test_resnet, untrained" in page.text
    assert "test_vit, untrained" in page.text
    assert page.text.count("taken for") > 3
    assert re.search(r"Most confused: .+ and .+ \(\d+ of 4 images\)", page.text)
    assert page.without_alt == 0


@pytest.mark.parametrize(("start", "is_below"), [(0.6, True), (0.5, False), (None, False)])
def test_a_number_below_its_start_says_so_at_the_top(start, is_below):
    number = {"title": "kNN", "meaning": "", "value": 0.5, "start": start, "before": "start"}
    line = SimpleNamespace(x=[], y=[], name="", colour="", dashed=False)
    html = rendered("page.html.jinja", {
        "title": "x", "data_name": "d", "num_models": 1, "num_seen": 2, "num_mapped": 2,
        "classes": [], "table": {"titles": [], "rows": [], "legend": "", "sizes": ""},
        "pairs": [], "bars": [], "curves": [],
        "label_lines": [line], "below": [], "neighbourhoods": [], "looks": [], "looks_note": "",
        "glance": {"numbers": [number], "chance": 0.1}, "made": {}, "script": "", "bokeh": "",
        "plots": {"labels": "", "map": ""},
    })  # fmt: skip
    assert ('<span class="below">below its start</span>' in html) == is_below


def test_a_page_is_closed(labelled, unlabelled):
    check_closed(Page(labelled))
    check_closed(Page(unlabelled))


def test_names_are_text(labelled):
    page = Page(labelled)
    assert EVIL in page.text
    assert NASTY in page.text
    assert all(script.strip() != "alert(1)" for script in page.scripts)
    assert EVIL not in labelled
    assert "Black Finch" in page.text


def test_names_cannot_leave_the_script_of_the_map():
    name = "</script><script>alert(1)</script>"
    labels = np.array([0, 1])
    plot = bokeh_figures.map_figure(
        np.zeros((2, 2)), ["data:,"] * 2, [name] * 2,
        classes=[name, "b"], labels=labels, predicted=labels[::-1].copy(),
    )  # fmt: skip
    script, places = bokeh_figures.embed({"map": plot})
    assert script.count("<script") == 1
    assert script.count("</script>") == 1
    assert places.keys() == {"map"}


def test_an_unlabelled_page_says_so_and_has_the_rest(unlabelled):
    page = Page(unlabelled)
    assert page.ids >= ALWAYS
    assert not page.ids & SUPERVISED
    assert "no labelled test images" in page.text
    assert "training" in page.ids
    assert "test_vit, untrained is below its start: RankMe 12 before the training" in page.text
    assert page.without_alt == 0


def test_a_report_lists_each_folder_once(tmp_path, monkeypatch):
    for split in ("train", "test"):
        save_birds(tmp_path / "birds" / split, ["finch", "wren", "gull", "owl"])
    listed, list_images = [], folders.list_images
    monkeypatch.setattr(
        folders,
        "list_images",
        lambda folder, *more: listed.append(folder.name) or list_images(folder, *more),
    )
    data, accelerator = Data(path=str(tmp_path / "birds")), Accelerator(cpu=True)
    with pytest.raises(ValueError, match="no model is given"):
        write_report([], data, accelerator, cache=tmp_path / "cache")
    assert listed == ["train", "test"]


def test_confused_pairs_count_both_directions():
    #                 0 as 1 twice, 1 as 0 once; 2 as 1 twice, never back; 3 as 0 once
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3])
    taken = np.array([1, 1, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0])
    first, second, third = confused_pairs(labels, taken)
    assert (first.first, first.second, first.num_confused, first.num_pictures) == (0, 1, 3, 7)
    assert (first.first_as_second, first.second_as_first) == ([0, 1], [4])
    assert (second.first, second.second) == (2, 1)  # the first is mistaken more often
    assert (second.first_as_second, second.second_as_first) == ([7, 8], [])
    assert (third.num_confused, third.num_pictures) == (1, 5)
    assert confused_pairs(labels, taken, most=1) == [first]
    assert confused_pairs(labels, labels) == []


def test_class_scores_fall():
    scores = class_scores(np.array([0, 0, 0, 2, 2, 1]), np.array([0, 1, 1, 2, 2, 0]))
    assert [(each.number, each.right, each.total) for each in scores] == [
        (2, 2, 2), (0, 1, 3), (1, 0, 1),  # totals by true class: 1 was named twice
    ]  # fmt: skip
    assert scores[1].accuracy == 1 / 3


def test_nearest_equals_one_cosine_after_another():
    torch.manual_seed(0)
    features = torch.randn(6, 5, dtype=torch.float64)
    found, similarity = nearest(features[[4, 1]], features, 9, own=torch.tensor([4, 1]))
    for row, query in enumerate((4, 1)):
        pairs = [
            (float(features[query] @ each / features[query].norm() / each.norm()), number)
            for number, each in enumerate(features)
            if number != query
        ]
        pairs.sort(reverse=True)
        assert found[row].tolist() == [number for _, number in pairs]
        np.testing.assert_allclose(similarity[row], [value for value, _ in pairs])


def test_queries_are_half_wrong_and_the_wrong_ones_come_first():
    right = np.arange(20) % 4 != 0  # five are wrong
    rows = choose_queries(right, 20, 8, seed=0)
    assert [bool(right[row]) for row in rows] == [False] * 4 + [True] * 4
    assert len(choose_queries(~right, 20, 14, seed=0)) == 14
    assert len(set(choose_queries(None, 20, 8, seed=0))) == 8
    assert rows == choose_queries(right, 20, 8, seed=0)
    assert len(choose_queries(np.ones(3, dtype=bool), 3, 8, seed=0)) == 3


class Toy(nn.Module):
    """The image itself is the feature map, its mean the feature."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Identity()
        self.num_features = 3
        self.feature_info = [{"module": "stage", "num_chs": 3}]

    def forward(self, images):
        return self.stage(images).mean(dim=(2, 3))


def test_evidence_is_the_class_activation_map_and_adds_up_to_the_score():
    torch.manual_seed(0)
    images, weights = torch.randn(2, 3, 8, 9), torch.randn(2, 3)
    found = attribution.evidence(Backbone(Toy(), "toy"), images, weights)
    assert found.shape == (2, 8, 9)
    for number in range(2):
        for y in range(8):
            for x in range(9):
                expected = sum(weights[number, d] * images[number, d, y, x] for d in range(3)) / 72
                torch.testing.assert_close(found[number, y, x], expected)
    scores = (images.mean(dim=(2, 3)) * weights).sum(dim=1)
    torch.testing.assert_close(found.sum(dim=(1, 2)), scores)


def test_one_hot_place_is_all_the_heat():
    images = torch.zeros(1, 3, 8, 8)
    images[0, 1, 2, 5] = 4.0
    backbone = Backbone(Toy(), "toy")
    heat = attribution.heat(attribution.evidence(backbone, images, torch.tensor([[0.0, 1.0, 0.0]])))
    expected = torch.zeros(1, 8, 8)
    expected[0, 2, 5] = 1.0
    torch.testing.assert_close(heat, expected)
    against = attribution.evidence(backbone, images, torch.tensor([[0.0, -1.0, 0.0]]))
    assert not attribution.heat(against).any()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_every_backbone_has_evidence_and_changes_neither_mode_nor_gradients(name):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=96).train()
    images = torch.randn(2, 3, 96, 96)
    found = attribution.evidence(backbone, images, torch.randn(2, backbone.num_features))
    assert len(found) == 2
    assert min(found.shape[1:]) >= attribution.EVIDENCE_CELLS
    assert found.std() > 0
    assert backbone.training
    assert all(parameter.grad is None for parameter in backbone.parameters())
    maps = attribution.patch_maps(backbone, images)
    assert min(maps.shape[2:]) >= attribution.COLOUR_CELLS or name == "test_vit"


def test_a_backbone_without_stages_says_so():
    toy = Toy()
    toy.feature_info = []
    with pytest.raises(ValueError, match="timm lists no stages of toy"):
        attribution.evidence(Backbone(toy, "toy"), torch.zeros(1, 3, 8, 8), torch.zeros(1, 3))


def test_patch_colours_repeat_and_ignore_a_turn_of_the_features():
    torch.manual_seed(0)
    maps = torch.randn(2, 6, 5, 4) * torch.tensor([9.0, 5, 2, 0.1, 0.1, 0.1])[:, None, None]
    colours = attribution.patch_colours(maps)
    assert colours.shape == (2, 5, 4, 3)
    assert colours.min() == 0
    assert colours.max() == 1
    np.testing.assert_array_equal(colours, attribution.patch_colours(maps.clone()))
    np.testing.assert_allclose(colours, attribution.patch_colours(maps + 7), atol=1e-4)
    red = np.corrcoef(colours[..., 0].ravel(), maps[:, 0].numpy().ravel())[0, 1]
    assert red > 0.95  # the widest feature is the first colour


def test_patch_colours_of_few_channels_leave_the_others_black():
    assert not attribution.patch_colours(torch.randn(1, 2, 4, 4))[..., 2].any()


def test_the_map_keeps_groups_together_and_takes_any_number_of_pictures():
    torch.manual_seed(0)
    centres = torch.eye(3, 8).repeat_interleave(10, dim=0)
    points = plane(centres + 0.01 * torch.randn(30, 8))
    groups = points.reshape(3, 10, 2)
    inside = np.linalg.norm(groups - groups.mean(axis=1, keepdims=True), axis=-1).max()
    between = np.linalg.norm(groups.mean(axis=1)[0] - groups.mean(axis=1)[1])
    assert between > 2 * inside
    for count in (0, 1, 2, 3, 9):
        assert plane(torch.randn(count, 8)).shape == (count, 2)
    assert plane(torch.ones(20, 8)).shape == (20, 2)


def test_curves_of_a_run_that_still_writes(tmp_path):
    lines = [
        {"step": 0, "eval/knn_top1": 0.1, "eval/rankme": 5.0},
        {"step": 10, "train/loss": 3.0},
        {"step": 20, "train/loss": float("nan")},
        {"step": 20, "eval/knn_top1": 0.4},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 30, "tra'
    (tmp_path / "metrics.jsonl").write_text(text)
    found = training_curves({"run": tmp_path}, {"run": ("#123456", False)})
    assert {key: (line.x, line.y) for key, (line,) in found.items()} == {
        "train/loss": ([10], [3.0]),
        "eval/knn_top1": ([0, 20], [0.1, 0.4]),
        "eval/rankme": ([0], [5.0]),
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"eval/knn_top1": 0.354, "eval/rankme": 9.0}, {"train/loss": 1.0},
          {"eval/knn_top1": 0.4}, {"eval/knn_top1": 0.299, "eval/rankme": 20.0}],
         "below its start: kNN accuracy 35.4 % before the training, 29.9 % after it. Try a lower"),
        ([{"eval/rankme": 12.0}, {"eval/rankme": 8.0}],
         "below its start: RankMe 12 before the training, 8 after it. Try a lower train.lr"),
        ([{"eval/knn_top1": 0.3, "eval/rankme": 20.0}, {"eval/knn_top1": 0.3, "eval/rankme": 5.0}],
         None),
        ([{"train/loss": 1.0}], None),
    ],
)  # fmt: skip
def test_a_run_that_ended_below_its_start_says_so(lines, said, tmp_path):
    text = "".join(f"{json.dumps({'step': step, **line})}\n" for step, line in enumerate(lines))
    (tmp_path / "metrics.jsonl").write_text(text)
    found = below_starts({"run": tmp_path})
    assert [name for name, _ in found] == ["run"] * (said is not None)
    assert said is None or found[0][1].startswith(said)
    assert "weak sign" in str(found) if "RankMe" in str(said) else "weak sign" not in str(found)


def test_a_start_has_the_colour_of_its_model_and_models_differ():
    names = ["resnet18, untrained", "a", "vit, untrained", "b"]
    architectures = ["resnet18", "resnet18", "vit", "resnet18"]
    rows = [
        Row(name, name, {"architecture": architecture}, {}, {})
        for name, architecture in zip(names, architectures, strict=True)
    ]
    found = colours_of(Evaluation({}, rows, np.zeros(0, dtype=np.int64), {}))
    assert found["resnet18, untrained"] == (found["a"][0], True)
    assert not found["a"][1]
    assert len({found[name] for name in ("a", "b", "vit, untrained")}) == 3


def test_class_names_are_shown_without_numbers_where_they_stay_different():
    assert readable(["001.Black_footed_Albatross", "Wren"]) == ["Black footed Albatross", "Wren"]
    assert readable(["1.a", "2.a"]) == ["1.a", "2.a"]
