"""Card: every number and setting comes from results and recipe, and the Hub reads its header."""

import functools

import jinja2
import pytest
from huggingface_hub import ModelCard

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Recipe, of_package, parse_recipe
from fg_ssl_zoo.hub.card import _duration, render_card, results_table, trained_scores, usage_by_name

RESULTS = {
    "name": "fgssl_test_resnet_cub.simclr",
    "seed": 3,
    "commit": "0123abc",
    "versions": {"torch": "2.13.0", "timm": "1.0.31"},
    "hardware": "2 cores of a test",
    "data": {"name": "cub", "num_train": 5994, "num_test": 5794, "fingerprint": "f1n9e2"},
    "protocol": {"knn": {"k": 20, "temperature": 0.07}},
    "rows": [
        {"name": "untrained", "init": "scratch", "knn_top1": 0.1084, "rankme": 31.2},
        {"name": "trained", "init": "scratch", "knn_top1": 0.2549, "feature_std": 0.4},
    ],
    "train": {"steps": 180, "images_seen": 11520, "seconds": 71.6},
}


def recipe_of(**keys: object) -> Recipe:
    train = {"epochs": 100, "batch_size": 64, "optimizer": "lars", "lr": 0.3}
    content = {
        "name": "fgssl_test_resnet_cub.simclr",
        "backbone": "test_resnet",
        "seed": 3,
        "data": {"name": "cub", "hub_id": "owner/cub", "image_size": 96},
        "stages": [{"method": "simclr", "options": {"temperature": 0.2}, "train": train}],
        "hub": {"license": "cc-by-nc-4.0", "tags": ["birds"]},
    }
    return parse_recipe({**content, **keys})


@pytest.fixture(scope="module")
def backbone():
    return create_backbone("test_resnet", image_size=96)


def test_the_header_is_what_the_hub_reads(backbone):
    data = ModelCard(render_card(backbone, recipe_of(init="r160_in1k"), RESULTS)).data
    assert (data.license, data.library_name) == ("cc-by-nc-4.0", "timm")
    assert data.pipeline_tag == "image-feature-extraction"
    assert {"timm", "transformers", "simclr", "cub", "birds"} <= set(data.tags)
    assert (data.datasets, data.base_model) == (["owner/cub"], "timm/test_resnet.r160_in1k")
    assert data.model_name == "fgssl_test_resnet_cub.simclr"
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.2549)
    assert (result.dataset_type, result.dataset_split) == ("owner/cub", "test")
    assert result.metric_args == {"k": 20, "temperature": 0.07}


def test_the_table_has_the_untrained_row_and_a_column_for_each_metric_found():
    assert results_table(RESULTS["rows"]).splitlines() == [
        "|  | kNN top-1 | RankMe | feature std |",
        "| --- | ---: | ---: | ---: |",
        "| untrained | 10.8% | 31.2 |  |",
        "| trained | 25.5% |  | 0.400 |",
    ]
    assert results_table([{"name": "trained", "new_metric": 0.123456}]).endswith("| 0.1235 |")
    assert results_table([]) == ""


def test_every_setting_is_told(backbone):
    card = render_card(backbone, recipe_of(), RESULTS)
    for told in (
        "A test_resnet",
        "random weights",
        "cub images of 96 px",
        "| init | scratch |",
        "5994 images, fingerprint `f1n9e2`",
        "| steps | 180, 11520 images seen |",
        "| time | 72 seconds |",
        "simclr (temperature 0.2)",
        "100 epochs",
        "| batch size | 64 |",
        "lars, learning rate 0.3",
        "| seed | 3 |",
        "`0123abc`",
        "torch 2.13.0, timm 1.0.31",
        "2 cores of a test",
        "20 neighbours",
        "exp(similarity / 0.07)",
        "under `cc-by-nc-4.0`",
        'timm.create_model("hf-hub:fg-ssl-zoo/fgssl_test_resnet_cub.simclr", pretrained=True)',
        'fg_ssl_zoo.load("hf-hub:fg-ssl-zoo/fgssl_test_resnet_cub.simclr")',
        "At commit `0123abc` of fg_ssl_zoo, this repeats the run",
        "&& accelerate launch train.py recipe.yaml",
        "- **Bias:**",
        "@software{fg_ssl_zoo",
        "## Intended use and limits",
        "## Citation",
    ):
        assert told in card, told


def test_the_card_says_which_pictures_were_seen(backbone):
    card = render_card(backbone, recipe_of(), RESULTS)
    assert "the 5994 of split `train` of cub" in card
    assert "split `test` (5794 images), which pretraining did not read" in card
    assert "no other images, such as ImageNet, influenced" in card
    card = render_card(backbone, recipe_of(init="r160_in1k"), RESULTS)
    assert "the training images of `r160_in1k`" in card
    assert "overlap with the test images" in card
    same = recipe_of(data={"name": "cub", "test_split": "train"})
    assert "on the **same** images" in render_card(backbone, same, RESULTS)


def test_the_card_says_what_training_and_test_pictures_have_in_common(backbone):
    card = render_card(backbone, recipe_of(), RESULTS)
    assert "\n- Near-duplicates between pretraining and test images: not checked.\n" in card
    found = {**RESULTS, "overlap": {"summary": "Near-duplicates: 4 of 1620; exact: 0", "near": 4}}
    card = render_card(backbone, recipe_of(), found)
    assert "\n- Near-duplicates: 4 of 1620; exact: 0.\n" in card
    assert "not checked" not in card


def test_what_is_missing_is_left_out(backbone):
    card = render_card(backbone, recipe_of(), {"name": "x"})
    assert "None were measured" in card
    for word in ("kNN:", "commit", "hardware", "images seen", "| steps", "model-index", "None |"):
        assert word not in card
    unlabelled = {**RESULTS, "rows": [{"name": "trained", "rankme": 31.2}]}
    card = render_card(backbone, recipe_of(), unlabelled)
    assert "| trained | 31.2 |" in card
    assert "neighbours" not in card
    assert ModelCard(card).data.eval_results is None


def test_what_fgssl_eval_measured_stands_in_a_table_of_its_own(backbone):
    rows = [
        {
            "name": name,
            "image_size": 96,
            "scores": {"knn_top1": {"value": value}, "retrieval_rank5": {"value": 0.9}},
        }
        for name, value in (("ours", 0.512), ("its start", 0.25))
    ]
    data = {"name": "garden", "num_train": 60, "num_test": 40, "num_classes": 12}
    evaluation = {"data": data, "rows": rows, "seed": 5, "commit": "abc12"}
    results = {"name": "x", "evaluations": {"garden": evaluation}, "about": "Twelve gardens."}
    card = render_card(backbone, recipe_of(), results)
    assert (
        "|  | kNN top-1 |\n| --- | ---: |\n| ours, 96 px | 51.2% |\n| its start, 96 px | 25.0%"
        in card
    )
    assert "### Measured on garden" in card
    assert "60 training and 40 test images of 12 classes" in card
    assert "cub images of 96 px. Twelve gardens.\nIt started" in card
    assert "None were measured" not in card


def test_a_score_of_a_sample_is_told_and_gives_way_to_that_of_all_images(backbone):
    knn = {"k": 20, "temperature": 0.07, "max_images": 500}
    results = {**RESULTS, "protocol": {"knn": knn}}
    card = render_card(backbone, recipe_of(), results)
    assert "on `test`. Of each split, only 500 images at most were used." in " ".join(card.split())
    assert ModelCard(card).data.eval_results[0].metric_args == knn
    scores = {
        "knn_top1": {"value": 0.5, "settings": {"k": 20}},
        "linear_top1": {"value": 0.75, "settings": {"c": 1.0}},
    }
    row = {"name": "ours", "image_size": 96, "scores": scores}
    for sampled, name, wanted in (
        (True, "cub", 0.5), (True, "garden", 0.2549), (False, "cub", 0.2549)
    ):  # fmt: skip
        data = {"name": name, "num_train": 60, "num_test": 40, "num_classes": 12}
        evaluation = {"data": data, "rows": [row], "seed": 5, "commit": "abc12"}
        found = {**(results if sampled else RESULTS), "evaluations": {name: evaluation}}
        first, second = ModelCard(render_card(backbone, recipe_of(), found)).data.eval_results
        assert first.metric_value == wanted
        assert first.dataset_split == (None if wanted == 0.5 else "test")
        assert (second.metric_value, second.dataset_name) == (0.75, name)
        assert trained_scores(found)["knn_top1"].value == wanted


@pytest.mark.parametrize(("scored", "wanted"), [("a1", 0.5), ("b2", 0.2549), (None, 0.2549)])
def test_test_images_are_known_under_another_name(scored, wanted):
    own = {"name": "cub", "test_fingerprint": "a1" if scored else None}
    row = {"scores": {"knn_top1": {"value": 0.5, "settings": {"k": 20}}}}
    data = {"name": "cub100", "test_fingerprint": scored}
    knn = {"k": 20, "temperature": 0.07, "max_images": 500}
    found = {**RESULTS, "data": own, "protocol": {"knn": knn}}
    found["evaluations"] = {"cub100": {"data": data, "rows": [row]}}
    assert trained_scores(found)["knn_top1"].value == wanted


@pytest.mark.parametrize(
    "broken",
    [
        {"data": None}, {"data": {}}, {"rows": []}, {"rows": [{}]},
        {"rows": [{"scores": {"knn_top1": {"value": None, "settings": None}}}]},
    ],
)  # fmt: skip
def test_an_incomplete_evaluation_hides_no_score_of_the_run(broken):
    scores = {"knn_top1": {"value": 0.5, "settings": None}}
    evaluation = {"data": {"name": "garden"}, "rows": [{"scores": scores}], **broken}
    found = {**RESULTS, "evaluations": {"garden": evaluation}}
    assert trained_scores(found)["knn_top1"].value == 0.2549


def test_the_row_before_training_is_told_by_its_weights(backbone):
    card = render_card(backbone, recipe_of(), RESULTS)
    assert (
        "The untrained row is the same network before the first step, with random weights. kNN"
        in card
    )
    rows = [{**RESULTS["rows"][0], "name": "start"}, RESULTS["rows"][1]]
    card = render_card(backbone, recipe_of(init="runs/a"), {**RESULTS, "rows": rows})
    assert (
        "The start row is the same network before the first step, with the weights of `runs/a`."
        in card
    )
    assert "The start row shows the scores of the start weights alone." in card
    card = render_card(backbone, recipe_of(init="runs/a"), {**RESULTS, "rows": rows[1:]})
    assert "before the first step" not in card
    assert "start weights alone" not in card


def test_a_model_of_ours_that_training_continued_from_is_linked(backbone):
    recipe = recipe_of(init="fgssl_resnet50_cub.simclr")
    header = ModelCard(render_card(backbone, recipe, RESULTS)).data
    assert header.base_model == "fg-ssl-zoo/fgssl_resnet50_cub.simclr"


def test_stages_are_told_one_by_one(backbone):
    stages = [{"method": "simclr"}, {"method": "simclr", "rounds": 3, "train": {"steps": 7}}]
    card = render_card(backbone, recipe_of(stages=stages), RESULTS)
    assert "| stage 1: length | 100 epochs |" in card
    assert "| stage 2: length | 7 steps, 3 rounds |" in card


def test_a_network_that_learned_from_labels_is_not_called_self_supervised(backbone):
    without = render_card(backbone, recipe_of(), RESULTS)
    card = render_card(backbone, recipe_of(), {**RESULTS, "with_labels": True})
    assert "trained without\nlabels" in without
    assert "self-supervised" in ModelCard(without).data.tags
    assert "trained with\nlabels" in card
    assert "self-supervised" not in ModelCard(card).data.tags
    assert "supervised" in ModelCard(card).data.tags


def test_the_template_knows_every_name_it_uses(backbone, monkeypatch):
    strict = functools.partial(jinja2.Template, undefined=jinja2.StrictUndefined)
    monkeypatch.setattr(jinja2, "Template", strict)
    data = {**RESULTS["data"], "terms": "research only", "num_unreadable": 3}
    card = render_card(backbone, recipe_of(), {**RESULTS, "data": data, "papers": ["A paper."]})
    assert "Terms of the images: research only" in card
    assert "the 5991 of split" in card
    assert "- A paper.\n" in card
    assert of_package("MODEL_CARD.md").is_file()


def test_what_papers_report_stands_beside_our_numbers(backbone):
    assert "Figures reported in papers" not in render_card(backbone, recipe_of(), RESULTS)
    lines = ["73 % on leaves", "68 % on others"]
    card = render_card(backbone, recipe_of(), {**RESULTS, "reported": lines})
    begin = "Figures reported in papers, with other data and other training budgets: "
    assert f"{begin}73 % on leaves; 68 % on" in card


def test_a_name_of_timm_is_loaded_by_it_and_from_elsewhere_with_the_repository():
    name = "fgssl_resnet18_drawn.simclr"
    assert usage_by_name(name, f"fg-ssl-zoo/{name}") == (
        f'timm.create_model("{name}", pretrained=True)'
    )
    assert usage_by_name(name, "me/x").endswith('pretrained_cfg_overlay=dict(hf_hub_id="me/x"))')


def test_without_a_licence_the_card_says_so(backbone):
    card = render_card(backbone, recipe_of(hub={}), RESULTS)
    assert ModelCard(card).data.license is None
    assert "No licence was chosen for the weights" in card


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(None, ""), (71.6, "72 seconds"), (876, "14.6 minutes"), (11_520, "3.2 hours")],
)
def test_a_duration_is_told_as_people_say_it(seconds, told):
    assert _duration(seconds) == told
