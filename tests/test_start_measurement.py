"""The measurement of a run's start: a sample before the first step, all images later, once."""

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import weights_fingerprint
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import Data, Monitor, load_recipe
from fg_ssl_zoo.data import tensor_cache
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.folders import load_folder
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.log import drop_from
from fg_ssl_zoo.evaluation import monitor as monitor_module
from fg_ssl_zoo.evaluation.monitor import Collapsed, OnlineMonitor, refuse_collapse
from fg_ssl_zoo.features.extract import evenly
from fg_ssl_zoo.pretrain import main, pretrain
from fg_ssl_zoo.pretrain.measuring import RunMeasuring
from fg_ssl_zoo.progress import shown
from tests.engine.test_log import tensorboard_of
from tests.pictures import write_photos
from tests.test_pretrain import RECIPE, metrics

SAMPLED = ["monitor.start_images=3", "monitor.every=100", "resume=auto"]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A tiny recipe file, with a cache of measurements of its own."""
    monkeypatch.chdir(tmp_path)
    make = OnlineMonitor.__init__

    def in_here(self, *arguments, **options):
        make(self, *arguments, **{**options, "cache": tmp_path / "cache"})

    monkeypatch.setattr(OnlineMonitor, "__init__", in_here)
    path = tmp_path / "fgssl_test_resnet_drawn.simclr.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def measured(monkeypatch):
    """Weights of every measurement on all images, in order."""
    weights, measure = [], OnlineMonitor.__call__

    def noted(self, backbone, accelerator):
        weights.append(weights_fingerprint(backbone))
        return measure(self, backbone, accelerator)

    monkeypatch.setattr(OnlineMonitor, "__call__", noted)
    return weights


def run_of(path):
    results = json.loads((path / "results.json").read_text())
    return results["rows"], results["curve"], metrics(path)


@pytest.mark.slow
def test_a_sample_before_the_first_step_and_the_start_row_on_all_pictures(
    recipe, tmp_path, measured, capsys
):
    pretrain(load_recipe(recipe, ["output=all"]))
    assert len(measured) == 2 + 1  # the start, after epoch 1, the end
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    pretrain(load_recipe(recipe, ["output=some", *SAMPLED]))
    assert measured[3:] == [measured[0], measured[2]]  # at the end: the start, then the end
    (rows, curve, _), (expected, whole, _) = run_of(tmp_path / "some"), run_of(tmp_path / "all")
    assert rows == expected
    assert curve[0].items() >= whole[0].items()
    assert curve[0].keys() - whole[0].keys() == {"sample/rankme", "sample/feature_std"}
    lines = metrics(tmp_path / "some")
    assert [line["step"] for line in lines if "sample/rankme" in line] == [0]
    assert [line["step"] for line in lines if "eval/rankme" in line] == [0, 3]
    said = capsys.readouterr().out.split("output: some")[1]
    said = [line for line in said.splitlines() if line.startswith("simclr: ")]
    sample, start, end = (line for line in said if "loss" not in line)
    assert sample.startswith("simclr: step 0, sample/rankme ")
    assert sample.endswith(" (3 of 4 test images)")
    assert start.startswith("simclr: the start, eval/knn_top1 ")
    assert start.endswith(" (all 16 training and all 4 test images)")
    assert end.startswith("simclr: step 3, eval/knn_top1 ")
    assert not (tmp_path / "some/notes/stage0_start.safetensors").exists()


@pytest.mark.slow
def test_a_second_run_from_the_same_weights_measures_its_start_from_the_file(
    recipe, tmp_path, measured
):
    pretrain(load_recipe(recipe, ["output=one", *SAMPLED]))
    count = len(measured)
    pretrain(load_recipe(recipe, ["output=two", "stages.0.train.lr=0.1", *SAMPLED]))
    assert len(measured) == count + 1  # the end alone
    assert measured[-1] not in measured[:count]
    (one, _, _), (two, curve, lines) = run_of(tmp_path / "one"), run_of(tmp_path / "two")
    assert two[0] == one[0]
    assert "sample/rankme" not in curve[0]  # known before the first step
    assert lines[0]["step"] == 0
    assert "eval/rankme" in lines[0]
    pretrain(load_recipe(recipe, ["output=three", "seed=1", *SAMPLED]))
    assert len(measured) == count + 3  # other weights, other start


@pytest.mark.slow
def test_nothing_is_measured_before_the_first_step_where_a_recipe_says_so(
    recipe, tmp_path, monkeypatch, measured
):
    monkeypatch.setattr(OnlineMonitor, "sample", lambda *_: pytest.fail("measured"))
    pretrain(load_recipe(recipe, ["output=none", "monitor.at_start=false", "monitor.every=100"]))
    assert len(measured) == 2
    rows, curve, lines = run_of(tmp_path / "none")
    pretrain(load_recipe(recipe, ["output=all"]))
    assert rows == run_of(tmp_path / "all")[0]
    assert [line["step"] for line in curve] == [0, 3]
    assert [line["step"] for line in lines if "eval/rankme" in line] == [0, 3]


@pytest.mark.slow
def test_a_stop_between_sample_and_start_changes_nothing(recipe, tmp_path, monkeypatch, capsys):
    words = [*SAMPLED, "stages.0.train.checkpoint_every=0.5"]
    main([str(recipe), "output=whole", *words])
    (tmp_path / "cache").rename(tmp_path / "elsewhere")

    def broken(self):
        raise ValueError("cut off")

    whole_start = RunMeasuring.whole_start
    monkeypatch.setattr(RunMeasuring, "whole_start", broken)
    with pytest.raises(SystemExit):
        main([str(recipe), "output=cut", *words])
    monkeypatch.setattr(RunMeasuring, "whole_start", whole_start)
    assert (tmp_path / "cut/notes/stage0_start.safetensors").is_file()
    capsys.readouterr()
    main([str(recipe), "output=cut", *words])
    assert "resume    " in capsys.readouterr().out
    whole, cut = run_of(tmp_path / "whole"), run_of(tmp_path / "cut")
    assert cut[:2] == whole[:2]
    unclocked = [
        [{k: v for k, v in line.items() if "/" in k and k != "train/loss"} for line in lines]
        for lines in (whole[2], cut[2])
    ]
    assert unclocked[0] == unclocked[1]


@pytest.mark.slow
def test_a_run_cut_off_behind_its_first_checkpoint_has_its_start_in_tensorboard(
    recipe, tmp_path, monkeypatch
):
    words = [str(recipe), "output=cut", "resume=auto", "stages.0.train.checkpoint_every=0.5"]

    def cut_off(*arguments):
        save(*arguments)
        raise ValueError("cut off")

    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", cut_off)
    with pytest.raises(SystemExit):
        main(words)
    monkeypatch.setattr(checkpoint, "save", save)
    main(words)
    logged = tensorboard_of(tmp_path / "cut" / "tensorboard", "eval/rankme")
    assert sorted(step for step, _ in logged) == [0, 2, 3]


def test_a_start_that_is_measured_again_is_logged_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sample, start, step = (
        json.dumps(line) + "\n"
        for line in (
            {"step": 0, "sample/rankme": 1.0, "eval/part_miou": 0.5},
            {"step": 0, "eval/rankme": 2.0},
            {"step": 10, "train/loss": 1.0},
        )
    )
    path.write_text(sample + step + start)
    drop_from(path, first_step=11, measured=0)
    assert path.read_text() == sample + step + start
    drop_from(path, first_step=11, measured=0, start_left=True)
    assert path.read_text() == sample + step


def test_a_collapsed_run_stops_and_says_what_to_try(recipe, monkeypatch):
    stds = iter([0.2, 1e-5])
    monkeypatch.setattr("fg_ssl_zoo.evaluation.monitor.feature_std", lambda _: next(stds))
    said = r"have collapsed: their std is 1e-05 \(1 is evenly spread, 0.2 at the start\).* Try a"
    with pytest.raises(Collapsed, match=said):
        pretrain(load_recipe(recipe, ["output=run"]))


@pytest.mark.parametrize("few", [[], ["monitor.start_images=3"]])
@pytest.mark.slow
def test_a_start_with_equal_features_is_trained_and_said(few, recipe, monkeypatch, caplog):
    stds = itertools.count(1e-5, 1e-5)
    monkeypatch.setattr("fg_ssl_zoo.evaluation.monitor.feature_std", lambda _: next(stds))
    pretrain(load_recipe(recipe, ["output=run", *few]))
    assert "init: all images have nearly the same features before the training" in caplog.text


@pytest.mark.parametrize(
    ("start", "now", "is_collapse"),
    [
        ({"eval/feature_std": 0.2}, 0.1, False),
        ({"eval/feature_std": 0.2}, 1e-4, True),
        ({"sample/feature_std": 0.2}, 1e-4, True),
        ({"eval/feature_std": 1e-5}, 1e-4, False),
        ({"eval/feature_std": 1e-5}, 1e-5, False),  # heads alone have learned
        ({"eval/feature_std": 0.0}, 0.0, True),  # all images are the same
        ({"eval/feature_std": 1e-5}, 1e-6, True),
        ({"eval/feature_std": 1e-5, "sample/feature_std": 0.2}, 1e-4, False),
        ({}, 1e-4, True),
        ({"eval/feature_std": 0.2}, math.nan, True),
        ({"eval/feature_std": 1e-5}, math.nan, True),
    ],
)
def test_a_collapse_is_judged_by_the_start(start, now, is_collapse):
    found = {"eval/feature_std": now, "eval/rankme": 1.0}
    with pytest.raises(Collapsed) if is_collapse else contextlib.nullcontext():
        refuse_collapse(found, [{"step": 0, **start}])


def test_a_run_that_has_once_had_different_features_collapses_as_others_do():
    before = [{"step": 0, "eval/feature_std": 1e-5}, {"step": 9, "eval/feature_std": 0.3}]
    with pytest.raises(Collapsed, match=r"1e-05 at the start\).* Try a lower train\.lr"):
        refuse_collapse({"eval/feature_std": 5e-5, "eval/rankme": 1.0}, before)


@pytest.fixture
def photos(tmp_path, birds):
    write_photos(
        tmp_path / "photos", birds, classes=True, split_of=lambda i: "test" if i < 6 else "train"
    )
    return tmp_path / "photos"


def monitor_of(photos, cache, settings=None, **options):
    train, test = load_folder(Data(path=str(photos)))
    return OnlineMonitor(train, test, settings or Monitor(k=1), None, cache=cache, **options)


def test_the_kept_start_is_found_by_weights_pictures_and_protocol_alone(photos, tmp_path):
    accelerator, cache = Accelerator(cpu=True), tmp_path / "cache"
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=48)
    monitor = monitor_of(photos, cache)
    assert monitor.known_start(backbone, accelerator) is None
    found = monitor.start(backbone, accelerator)
    again = monitor_of(photos, cache)
    assert again.known_start(backbone, accelerator) == found
    assert again.used == monitor.used == {"train": 10, "test": 6}
    for settings in (Monitor(k=2), Monitor(k=1, temperature=0.1), Monitor(k=1, max_images=5)):
        assert monitor_of(photos, cache, settings).known_start(backbone, accelerator) is None
    other = Monitor(k=1, every=3, start_images=7, early=0)  # decide when, not what
    assert monitor_of(photos, cache, other).known_start(backbone, accelerator) == found
    backbone.model.fc = None
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] += 1
    assert again.known_start(backbone, accelerator) is None
    with torch.no_grad():
        next(backbone.parameters()).view(-1)[0] -= 1
    picture = next((photos / "test").rglob("*.png"))
    os.utime(picture, (1, 1))
    assert again.known_start(backbone, accelerator) is None


def test_nothing_is_hashed_where_no_start_is_kept(photos, tmp_path, monkeypatch):
    backbone, hashed = create_backbone("test_resnet", image_size=48), []
    found = monitor_module.identity
    monkeypatch.setattr(monitor_module, "identity", lambda b: hashed.append(b) or found(b))
    for cache in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert monitor_of(photos, cache).known_start(backbone, Accelerator(cpu=True)) is None
    assert not hashed
    (tmp_path / "empty" / "other.safetensors").write_bytes(b"")
    monitor = monitor_of(photos, tmp_path / "empty")
    assert monitor.known_start(backbone, Accelerator(cpu=True)) is None
    assert hashed == [backbone]


def test_measurements_with_unreadable_pictures_are_not_kept(photos, tmp_path):
    accelerator, cache = Accelerator(cpu=True), tmp_path / "cache"
    next((photos / "test").rglob("*.png")).write_bytes(b"")
    backbone = create_backbone("test_resnet", image_size=48)
    monitor = monitor_of(photos, cache)
    assert monitor.start(backbone, accelerator)
    assert monitor.used["test"] == 5
    assert monitor.known_start(backbone, accelerator) is None


def test_a_cache_that_cannot_be_written_is_said_and_costs_no_run(photos, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    backbone = create_backbone("test_resnet", image_size=48)
    assert monitor_of(photos, tmp_path / "cache").start(backbone, Accelerator(cpu=True))
    (line,) = caplog.messages
    assert line.startswith("the measurement of the start cannot be stored for other runs: ")


def test_a_cache_that_cannot_be_made_is_said_and_costs_no_run(photos, monkeypatch, caplog):
    def read_only(*names, **options):
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr(tensor_cache, "cached_assets_path", read_only)
    backbone, accelerator = create_backbone("test_resnet", image_size=48), Accelerator(cpu=True)
    monitor = monitor_of(photos, None)
    assert monitor.known_start(backbone, accelerator) is None
    assert monitor.start(backbone, accelerator)
    (line,) = caplog.messages
    assert "cannot be stored for other runs: [Errno 13] Permission denied: '/cache'" in line


def test_a_sample_is_spread_evenly_over_the_test_split(monkeypatch, tmp_path):
    train, test = (DrawnBirds(32, num_classes=4, image_size=48, seed=seed) for seed in (0, 1))
    monitor = OnlineMonitor(train, test, Monitor(start_images=5), None, cache=tmp_path)
    read, get = [], DrawnBirds.__getitem__
    monkeypatch.setattr(
        DrawnBirds, "__getitem__", lambda self, index: read.append(index) or get(self, index)
    )
    monitor.sample(create_backbone("test_resnet", image_size=48), Accelerator(cpu=True))
    assert read == evenly(32, 5)
    assert monitor.read_last() == "5 of 32 test images"


def test_progress_is_a_line_every_so_often_and_nothing_after_the_last_picture(capsys, monkeypatch):
    assert list(shown("abc", 5, "measuring", size=2, lines_every=0)) == ["a", "b", "c"]
    assert capsys.readouterr().out == "measuring: 2 of 5 images\nmeasuring: 4 of 5 images\n"
    monkeypatch.setenv("RANK", "1")
    assert list(shown("abc", 5, "measuring", size=2, lines_every=0)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_training_run_imports_no_library_of_the_evaluation():
    """They take as long as torch, in the processor time to the first step."""
    code = "import fg_ssl_zoo.pretrain, sys; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    heavy = {"sklearn", "scipy.stats", "pandas", "transformers", "datasets", "matplotlib", "bokeh"}
    assert not heavy & set(ended.stdout.split())
