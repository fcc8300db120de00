"""Every example runs, on drawn images and small untrained networks."""

import json
import runpy
from pathlib import Path

import cv2
import pytest
import timm
import torch
from transformers import AutoModelForPreTraining

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.hub.pretraining import Pretraining
from fg_ssl_zoo.methods import create_method

EXAMPLES = Path(__file__).parent.parent / "examples"
BYOL = {"hidden_size": 32, "projection_size": 16}
CHANCE = 0.25


def main_of(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A backbone that was never trained, with its method."""
    torch.manual_seed(0)
    method = create_method("byol", create_backbone("test_resnet", image_size=64), **BYOL)
    found = Pretraining("byol", BYOL, method.state_dict())
    recipe = load_recipe(overrides=["data.image_size=64"])
    place = tmp_path_factory.mktemp("model") / "export"
    return export(method.backbone, place, recipe, {"rows": []}, found)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of drawn birds; the images to be scored are among those to learn from."""
    place = tmp_path_factory.mktemp("photos")
    birds = DrawnBirds(32, num_classes=4, image_size=64, seed=3)
    for index in range(32):
        for split in ("train", "test") if index < 12 else ("train",):
            path = place / split / birds.classes[birds.labels[index]] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), birds[index]["image"][..., ::-1])
    return place


@pytest.fixture(scope="module")
def unsplit(tmp_path_factory):
    """The README's other layout: class folders alone."""
    place = tmp_path_factory.mktemp("unsplit")
    birds = DrawnBirds(40, num_classes=4, image_size=64, seed=3)
    for index in range(40):
        path = place / birds.classes[birds.labels[index]] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), birds[index]["image"][..., ::-1])
    return place


@pytest.mark.parametrize("name", ["timm", "trainer", "datasets"])
def test_class_folders_alone_and_a_number_of_epochs_do(
    name, folder, unsplit, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    words = [str(folder) if name == "trainer" else f"local-dir:{folder}", str(unsplit)]
    monkeypatch.setattr("sys.argv", ["example", *words, "--epochs", "1"])
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    runpy.run_path(str(EXAMPLES / f"finetune_with_{name}.py"), run_name="__main__")
    assert "test images are right" in capsys.readouterr().out


@pytest.mark.slow
def test_few_labels_beat_chance_on_features_that_were_never_trained(folder):
    assert main_of("classify_with_few_labels.py")(str(folder), shots=3) > 0.05


def test_few_labels_of_own_class_folders_beat_chance(folder, unsplit, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["example", str(folder), str(unsplit), "--shots", "5"])
    runpy.run_path(str(EXAMPLES / "classify_with_few_labels.py"), run_name="__main__")
    assert "5 labels a class: " in (said := capsys.readouterr().out)
    assert "(chance 25.0%)" in said


@pytest.mark.slow
def test_timm_fine_tunes(folder, photos):
    torch.manual_seed(0)
    main = main_of("finetune_with_timm.py")
    assert main(f"local-dir:{folder}", str(photos), epochs=10, lr=1e-2, batch_size=16) > CHANCE


@pytest.mark.slow
def test_the_trainer_fine_tunes_and_timm_opens_the_result(folder, photos, tmp_path):
    accuracy = main_of("finetune_with_trainer.py")(
        str(folder), str(photos), str(tmp_path), num_train_epochs=10, learning_rate=1e-2,
        per_device_train_batch_size=16, eval_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    assert accuracy > CHANCE
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == sorted(path.name for path in (photos / "train").iterdir())
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert model.num_classes == 4


@pytest.mark.slow
def test_datasets_feed_a_fine_tuning(folder, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    torch.manual_seed(0)
    main = main_of("finetune_with_datasets.py")
    assert main(f"local-dir:{folder}", str(photos), epochs=10, lr=1e-2, batch_size=16) > CHANCE


@pytest.mark.slow
def test_a_published_training_goes_on(folder, photos, tmp_path):
    losses = main_of("continue_pretraining.py")(
        str(folder), str(photos), steps=3, batch_size=8, out=str(tmp_path), disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    assert len(losses) == 3
    before = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining").method
    after = AutoModelForPreTraining.from_pretrained(tmp_path).method
    for part in ("backbone", "projector", "predictor", "teacher"):
        states = getattr(before, part).state_dict(), getattr(after, part).state_dict()
        assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0]), part
    found = create_backbone("test_resnet", init=str(tmp_path / "backbone.safetensors"))
    torch.testing.assert_close(found.model.state_dict(), after.backbone.model.state_dict())


@pytest.mark.slow
def test_a_published_training_goes_on_for_some_epochs(folder, unsplit, tmp_path):
    losses = main_of("continue_pretraining.py")(
        str(folder), str(unsplit), epochs=2, out=str(tmp_path), disable_tqdm=True, use_cpu=True
    )
    assert len(losses) == 2  # of 32 images, which are one batch


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 4)
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # none that would grow old
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert names["features"].shape == (1, 96)
    assert "exported to" in capsys.readouterr().out
