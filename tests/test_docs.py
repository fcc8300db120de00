"""What the documentation shows is what there is."""

import inspect
import json
import re
import runpy
import shlex
from pathlib import Path

import cv2
import pytest
import torch
import yaml

from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Data, load_recipe, parse_recipe, recipe_of
from fg_ssl_zoo.data import tensor_cache
from fg_ssl_zoo.data.views import PRESETS
from fg_ssl_zoo.evaluation.protocols import PROTOCOLS
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.hub.pretraining import Pretraining
from fg_ssl_zoo.methods import METHODS, create_method, method_class
from fg_ssl_zoo.pretrain.choice import Machine, Pictures, Start, choose, describe
from tests.pictures import write_photos

ROOT = Path(__file__).parent.parent
EVALUATIONS = sorted((ROOT / "benchmarks" / "results" / "evaluation").glob("*.json"))
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def test_the_readmes_table_is_made_from_the_results_files():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables["table"](tables["load"]()) in text


def test_the_tables_of_steps_and_peers_are_made_from_their_files():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert tables["steps"]() in text
    assert tables["peers"]() in text


def test_the_tables_of_released_models_and_of_particle_are_made_from_their_files():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert tables["models"](whole=True) in page
    assert tables["when_particle"]() in page
    assert tables["models"](whole=False) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_evaluations_are_made_from_their_files():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    assert tables["evaluations"]() in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_comparisons_are_made_from_their_files():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    folders = sorted((ROOT / "benchmarks" / "results" / "comparisons").iterdir())
    assert folders
    for folder in folders:
        assert tables["comparison"](folder) in text


@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_an_evaluation_names_no_machine_and_has_untrained_rows(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert any(row["name"].endswith(", untrained") for row in results["rows"])
    assert not any(row["words"].startswith("/") for row in results["rows"])
    assert results["commit"]


@pytest.mark.slow
def test_the_python_of_the_evaluation_page_runs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tensor_cache, "cached_assets_path", lambda *_, **__: tmp_path)
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(shown, "evaluation.md", "exec"), {})
    assert "| test_resnet, untrained | 160 |" in capsys.readouterr().out


def test_the_tables_of_protocols_options_and_keys_are_made_from_the_code():
    tables = runpy.run_path(str(ROOT / "docs" / "option_tables.py"))
    for page, contents in tables["pages"]().items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name, content in contents.items():
            assert f"<!-- {name} -->\n{content}\n<!-- end of {name} -->" in text, name
    assert re.findall(r"^\| `(\w+)` \| `", tables["protocols"](), re.MULTILINE) == list(PROTOCOLS)


def test_a_table_of_options_has_names_defaults_and_choices():
    tables = runpy.run_path(str(ROOT / "docs" / "option_tables.py"))
    moco, pmg = tables["method_options"]("moco"), tables["method_options"]("pmg")
    assert "| `momentum_end` | 0.999 | Momentum of the teacher at the last step" in moco
    assert "| `queue_size` | by the data |" in moco
    assert "| `hidden_size` | - |" in moco
    assert "| `preset`" not in moco
    assert "`preset: paper` means `moco_v2`." in moco
    assert "| `grids` | [8,4,2] |" in pmg
    assert "preset" not in pmg
    assert tables["with_choices"]("Source.", ("a", "b")) == "Source. One of `a`, `b`."
    assert tables["with_choices"]("`a` or `b`.", ("a", "b")) == "`a` or `b`."
    keys = tables["recipe_keys"]()
    assert "| `stages.0.train.lr_scaling` | linear |" in keys
    assert "| `data.path` | - |" in keys
    assert "| `stages.0.train` |" not in keys


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_results_file_holds_a_recipe_and_the_row_before_training(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    recipe = parse_recipe(results["recipe"])
    assert recipe.name == results["name"]
    assert results["rows"][0]["name"] == ("untrained" if recipe.init == "scratch" else "start")
    assert results["rows"][0]["knn_top1"] == results["curve"][0]["eval/knn_top1"]
    assert results["rows"][-1]["knn_top1"] == results["curve"][-1]["eval/knn_top1"]


def test_the_recipes_of_the_documentation_are_valid():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    whole, hybrid = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    recipe, lines = yaml.safe_load(whole), yaml.safe_load(hybrid)
    parse_recipe({"name": "shown", **recipe})
    parse_recipe({"name": "shown", **recipe, **lines})
    backbone = create_backbone(lines["backbone"], image_size=64, **lines["backbone_options"])
    assert (backbone.patch_size, backbone.num_features) == (16, 192)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_section_that_names_its_options(name):
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    (section,) = [s for s in text.split("\n## ")[1:] if f"`{name}`" in s.splitlines()[0]]
    parameters = inspect.signature(method_class(name).__init__).parameters
    for option in parameters.keys() - {"self", "backbone"}:
        assert f"`{option}`" in section, option


def test_the_line_that_converts_a_pickle_runs_and_its_file_is_a_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = create_backbone("test_resnet").model.state_dict()
    moco = {f"module.encoder_q.{key}": value for key, value in state.items()}
    moco |= {"module.queue": torch.zeros(2, 4).T}
    torch.save({"epoch": 200, "state_dict": moco}, "FILE.pth")
    with pytest.raises(ValueError, match="Start weights in docs/recipes") as refused:
        create_backbone("test_resnet", init="FILE.pth")
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^```sh\n(python -c .*)\n```$", text, re.MULTILINE)
    code = shlex.split(line)[2]
    assert code.replace("'FILE.safetensors'", "'weights.safetensors'") in str(refused.value)
    exec(code, {})
    found = create_backbone("test_resnet", init="FILE.safetensors").model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_stands_in_the_table_with_its_crops(preset):
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{preset}` \| ([\d.]+)-([\d.]+) \|", text, re.MULTILINE)
    assert tuple(map(float, row)) == PRESETS[preset][0].crop_scale


def snippets(page):
    """Language and text of each code block of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_page(page, command):
    """Run the Python of a page and give each line of its shells to `command`; names it has set."""
    names = {}
    for language, code in snippets(page):
        if language == "python":
            exec(compile(code, page, "exec"), names)
            continue
        for line in code.splitlines():
            command(*shlex.split(line, comments=True))
    return names


def test_every_snippet_about_features_runs_in_its_order(tmp_path, monkeypatch, capsys, birds):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=48"])
    export(create_backbone("test_resnet", image_size=48), "runs/x/export", recipe, {"rows": []})
    write_photos(
        tmp_path / "photos", birds, classes=True, split_of=lambda i: "test" if i >= 12 else "train"
    )
    cv2.imwrite("query.jpg", birds[3]["image"][..., ::-1])
    names = run_page("embed.md", lambda command, *words: cli.main(list(words)))
    assert names["about"]["result"] == {"rows": 16, "skipped": 0}
    assert names["features"].shape == (16, names["about"]["num_features"])
    assert (tmp_path / "nearest.png").is_file()
    assert (tmp_path / "pairs.csv").is_file()
    assert "0 of 4" in capsys.readouterr().out


def test_the_page_about_other_uses_shows_what_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    method = create_method("simclr", create_backbone("test_resnet", image_size=64), hidden_size=8)
    state = Pretraining("simclr", {"hidden_size": 8}, method.state_dict())
    export(method.backbone, "runs/birds/export", load_recipe(), {"rows": []}, state)
    written = []
    monkeypatch.setattr("fg_ssl_zoo.cli.export_onnx._export", written.append)  # has its own test

    def run(command, *words):
        if command == "fgssl":
            cli.main(list(words))
        elif command == "python":  # the examples have tests of their own
            assert (ROOT / words[0]).is_file(), words
        else:
            assert recipe_of(list(words[2:])).stages[0].inherit, words

    names = run_page("downstream.md", run)
    assert [Path(chosen.model).is_dir() for chosen in written] == [True]
    assert len(names["backbone"].channels) == 3
    assert type(names["model"].method).__name__ == "SimCLR"


def test_the_page_from_labels_to_a_colleague_runs_in_its_order(
    tmp_path, monkeypatch, capsys, birds
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensor_cache, "cached_assets_path", lambda *_, **__: tmp_path / "cache")
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=48"])
    export(
        create_backbone("test_resnet", image_size=48), "runs/garden/export", recipe, {"rows": []}
    )
    write_photos(tmp_path / "photos", birds, classes=True)
    write_photos(tmp_path / "new", birds)
    monkeypatch.setattr("fg_ssl_zoo.hub.classifier_folder.export_onnx", lambda *_, **__: False)
    names = run_page("classifier.md", lambda command, *words: cli.main(list(words)))
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 17
    assert names["probabilities"].shape == (1, 4)
    assert capsys.readouterr().out.rstrip().splitlines()[-1] in birds.classes


def test_the_ten_lines_of_own_pictures_are_those_that_a_run_prints():
    facts = Pictures(Data(name="photos", path="photos"), 96, 24, 12, 160)
    machine = Machine(cores=2)
    said = describe(choose(facts, machine, Start()), facts, machine)
    assert said in (ROOT / "docs" / "own_pictures.md").read_text(encoding="utf-8")


def test_what_troubleshooting_quotes_is_said_somewhere():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "fg_ssl_zoo").rglob("*.py")]
    code = re.sub(r'"\s+f?"', "", "\n".join(sources))  # strings that go on in the next line
    for quoted in set(rows) - {"CUDA out of memory"}:
        fixed = re.escape(quoted.replace("fgssl_...", "")).replace("64", ".*").replace("40", ".*")
        assert re.search(fixed, code), quoted


def test_every_page_stands_in_the_navigation_of_the_site():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    shown = re.findall(r"^ +- .*: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(pages)


def test_links_out_of_the_pages_lead_to_the_repository():
    change = runpy.run_path(str(ROOT / "docs" / "site_links.py"))["on_page_markdown"]
    found = change("[a](../README.md) [b](x.md) [c](cards/y/z.md)", {"repo_url": "R"})
    assert found == "[a](R/blob/main/README.md) [b](x.md) [c](R/blob/main/docs/cards/y/z.md)"


def test_runs_that_differ_in_the_seed_are_averaged():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    values = {"a.moco": 0.2, "a.moco_seed1": 0.4, "a.moco_seed2": 0.6, "a.detcon": 0.9}
    rows = [{"name": name, "scores": {"knn": {"value": x}}} for name, x in values.items()]
    *_, last = tables["over_seeds"](rows, ["knn"]).splitlines()
    assert last == "| moco | 3 | 40.0% +- 20.0 |"
    assert tables["over_seeds"](rows[2:], ["knn"]) == ""


def test_runs_that_differ_in_seed_and_threads_are_one_row_of_the_readme():
    tables = runpy.run_path(str(ROOT / "docs" / "make_tables.py"))
    one = json.loads(RESULTS[0].read_text(encoding="utf-8"))
    one["hardware"] = "cpu, bf16, 1 threads"
    two = json.loads(json.dumps(one))
    two["seed"] = two["recipe"]["seed"] = 7
    two["hardware"] = "cpu, bf16, 2 threads"
    one["rows"][1]["knn_top1"], two["rows"][1]["knn_top1"] = 0.2, 0.4
    *_, row = tables["table"]([one, two]).splitlines()
    assert "| seeds 0, 7; 1 and 2 threads |" in row
    assert "**30.0% +- 14.1**" in row
    two["recipe"]["data"]["image_size"] = 48
    assert len(tables["table"]([one, two]).splitlines()) == 4
