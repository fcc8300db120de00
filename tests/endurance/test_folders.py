"""Folders of strangers that do not fit together, and what a killed export leaves."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.hub.export import export


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=64"])
    rows = [{"name": name, "init": "scratch", "knn_top1": 0.5} for name in ("untrained", "trained")]
    results = {"rows": rows, "seed": 0, "commit": "0123abc", "papers": []}
    return export(create_backbone("test_resnet", image_size=64), folder, recipe, results)


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "model")


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(("change", "key"), [
    (lambda state: state.update(other=state.pop("conv1.0.weight")), "conv1.0.weight"),
    (lambda state: state.update({"bn1.weight": torch.ones(3)}), "bn1.weight"),
    (lambda state: state.update(more=torch.ones(3)), "more"),
    (lambda state: state.clear(), "conv1"),
])  # fmt: skip
def test_tensors_of_another_network_are_one_line_with_the_key(folder, change, key):
    rewrite(folder, change)
    with pytest.raises(ValueError, match="its weights do not fit its config") as refused:
        open_backbone(f"local-dir:{folder}")
    assert key in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("arguments", [{"in_chans": "three"}, {"layers": "deep"}, {"width": 3}])
def test_arguments_that_fit_no_network_are_one_line_with_the_key(folder, arguments):
    reconfigure(folder, model_args=arguments)
    with pytest.raises(ValueError, match=next(iter(arguments))) as refused:
        open_backbone(f"local-dir:{folder}")
    assert "\n" not in str(refused.value)


NO_NUMBERS = ["many", [], {}, -1, 1.5, True, ["a", "b", "c"], [[[[[1]]]]], {"a": {"b": 1}}]


@pytest.mark.parametrize(("place", "values"), [
    ("num_classes", NO_NUMBERS),
    ("num_features", NO_NUMBERS),
    ("model_args", [None, "", "many", [], 0, 1.5, ["a"]]),
    ("model_args.in_chans", [None, 0, *NO_NUMBERS]),
    ("pretrained_cfg", [None, "", "many", [], 0, 1.5, ["a"]]),
    ("pretrained_cfg.input_size", ["many", {}, [3, 64, "x"], [3, 64], [[[3]]]]),
    ("pretrained_cfg.mean", ["many", {}, ["a", "b", "c"]]),
    ("pretrained_cfg.crop_pct", ["many", -1, [1]]),
    ("pretrained_cfg.fixed_input_size", ["many", 2, [True]]),
    ("pretrained_cfg.first_conv", [0, 1.5, {}, [1, 2]]),
    ("pretrained_cfg.hf_hub_filename", [1, ["a"], {"a": 1}]),
])  # fmt: skip
def test_values_of_other_kinds_are_one_line_with_the_key(folder, place, values):
    outer, _, key = place.rpartition(".")
    config = json.loads((folder / "config.json").read_text())
    for value in values:
        inside = {**config[outer], key: value} if outer else value
        reconfigure(folder, **{outer or key: inside})
        with pytest.raises(ValueError, match="is no timm config") as refused:
            open_backbone(f"local-dir:{folder}")
        assert key in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("depth", [10, 900, 100_000])
def test_deep_json_is_one_line(folder, depth):
    content = '{"architecture": "test_resnet", "model_args": {"layers": %s}}'
    (folder / "config.json").write_text(content % ("[" * depth + "]" * depth))
    with pytest.raises(ValueError, match="is no timm config"):
        open_backbone(f"local-dir:{folder}")


def test_the_next_export_removes_what_a_killed_one_left(good, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = os.getpid()  # a container gives the same numbers again
    left = [f".model.{pid}{end}" for pid in (ended.pid, own) for end in ("", ".old")]
    for name in (*left, ".model.1", ".model.mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    shutil.copytree(good, tmp_path / "model")
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=64"])
    results = json.loads((good / "results.json").read_text())
    export(create_backbone("test_resnet", image_size=64), tmp_path / "model", recipe, results)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.1", ".model.mine", "model"]
