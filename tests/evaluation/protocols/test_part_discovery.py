"""Part discovery as a protocol: what it says is what the same steps say by hand."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.data.datasets import Subset
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.evaluation.evaluate import make_task
from fg_ssl_zoo.evaluation.parts.scores import part_scores
from fg_ssl_zoo.evaluation.protocols.part_discovery import PartDiscovery, by_place, part_discovery
from fg_ssl_zoo.parts import discover_parts, discovery_for
from tests.pictures import SomeCorrupt


@pytest.fixture(autouse=True)
def part_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(
        "fg_ssl_zoo.data.tensor_cache.cached_assets_path", lambda *_, **__: tmp_path
    )


def task_of(name, train, test):
    torch.manual_seed(0)
    backbone = create_backbone(name, image_size=64)
    return make_task(backbone, train, test, Accelerator(cpu=True))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.slow
def test_scores_are_the_means_of_discoveries_in_both_splits(tmp_path, name):
    train = DrawnBirds(12, num_classes=4, image_size=64, seed=0)
    test = DrawnBirds(10, num_classes=4, image_size=64, seed=1)
    task = task_of(name, train, test)
    found = part_discovery(task, options=PartDiscovery(pictures=6, draws=2, num_parts=3))

    some = [Subset(images, np.array(rows)) for images, rows in
            ((train, [0, 2, 4, 7, 9, 11]), (test, [0, 2, 4, 5, 7, 9]))]  # fmt: skip
    draws = []
    for seed in (0, 1):
        how = discovery_for(task.backbone, {"num_parts": 3, "seed": seed})
        first, second = (
            discover_parts(task.backbone, images, task.accelerator, how,
                           learn_from=some[0], cache=tmp_path / "own")
            .long() + (name == "test_resnet")
            for images in some
        )  # fmt: skip
        draws.append({o.metric: o for o in part_scores(first, some[0], second, some[1])})
    if name == "test_resnet":  # every part is one: nothing is background
        del draws[0]["parts_fg_iou"]
    assert [outcome.metric for outcome in found] == list(draws[0])
    for outcome in found:
        one, other = (draw[outcome.metric] for draw in draws)
        assert outcome.values.shape == (10,)
        assert np.isnan(outcome.values[[1, 3, 6, 8]]).all()
        mean = (one.values + other.values) / 2
        np.testing.assert_allclose(outcome.values[[0, 2, 4, 5, 7, 9]], mean, rtol=1e-12)
        spread = abs(one.value - other.value) / 2
        assert outcome.settings["std_over_draws"] == pytest.approx(spread)
        assert outcome.settings["test_pictures"] == 6
        assert np.isfinite(outcome.settings["by_place"])


def test_pieces_of_the_frame_find_parts_that_are_always_in_one_place():
    class Quarters(DrawnBirds):
        """Four true parts, a quarter of the frame each."""

        def __getitem__(self, index):
            mask = np.repeat(np.repeat([[1, 2], [3, 4]], 16, 0), 16, 1).astype(np.uint8)
            return {**super().__getitem__(index), "part_mask": mask}

    pictures = Quarters(4, num_classes=2, image_size=32)
    floors = by_place(4, pictures, pictures)
    assert floors["parts_nmi"] == pytest.approx(1)
    assert floors["parts_fg_iou"] == pytest.approx(1)
    assert floors["parts_keypoint_nmi"] < 0.9  # birds stand where they like


@pytest.mark.slow
def test_pictures_that_cannot_be_read_are_not_looked_at():
    birds = DrawnBirds(12, num_classes=4, image_size=64, seed=0)

    class Broken(SomeCorrupt):
        parts, keypoints = birds.parts, birds.keypoints

    task = task_of("test_resnet", birds, Broken(birds, [3]))
    for outcome in part_discovery(task, options=PartDiscovery(num_parts=3)):
        assert outcome.values.shape == (11,)
        assert np.isfinite(outcome.values).all()


@pytest.mark.slow
def test_on_the_command_line(tmp_path, capsys):
    words = ["eval", "test_resnet@scratch", "--data", "drawn", "num_images=20", "image_size=32",
             "--image-size", "32", "--protocols", "part_discovery", "--no-untrained",
             "--part-discovery", "pictures=8", "num_parts=3"]  # fmt: skip
    main([*words, "--out", str(tmp_path / "out")])
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    scores = row["scores"]
    assert 0 <= scores["parts_nmi"]["value"] <= 1
    assert "parts_keypoint_error" in scores
    with pytest.raises(SystemExit):
        main([*words, "scope=image"])
    assert "part_discovery" in capsys.readouterr().err


def test_pictures_without_known_parts_are_refused(tmp_path):
    for split in ("train", "test"):
        for label in ("a", "b"):
            folder = tmp_path / "birds" / split / label
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "1.png")
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "test_resnet@scratch", "--data", str(tmp_path / "birds"), "--protocols",
              "part_discovery"])  # fmt: skip
