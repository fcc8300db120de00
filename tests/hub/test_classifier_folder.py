"""A folder of labelled images -> a classifier that timm, transformers and onnxruntime open."""

import csv
import json
import re

import cv2
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.linear_model import LogisticRegression

from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.weights.config import read_config
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.evaluation.finetuned import fine_tuned
from fg_ssl_zoo.evaluation.head import Head, fit_head
from fg_ssl_zoo.hub import classifier_folder
from fg_ssl_zoo.hub.classifier_folder import write_classifier
from fg_ssl_zoo.hub.export import export
from fg_ssl_zoo.hub.onnx_file import run_onnx
from tests.pictures import write_photos


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_head_gives_the_probabilities_of_scikit_learn(num_classes):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 5, generator=generator)
    labels = torch.arange(30) % num_classes
    head = fit_head(features, labels, ["a", "b", "c"][:num_classes])
    fit = LogisticRegression(C=1.0, max_iter=10_000).fit(features.numpy(), labels.numpy())
    found = head.probabilities(features).numpy()
    np.testing.assert_allclose(found, fit.predict_proba(features.numpy()), atol=1e-5)


def test_a_class_without_labels_is_left_out_and_one_class_refused():
    features, labels = torch.randn(9, 4), torch.tensor([0, 2] * 4 + [0])
    assert fit_head(features, labels, ["a", "b", "c"]).classes == ("a", "c")
    with pytest.raises(ValueError, match="the labelled images have one"):
        fit_head(features, torch.zeros(9, dtype=torch.int64), ["a"])


@pytest.fixture
def photos(tmp_path, monkeypatch, birds):
    monkeypatch.chdir(tmp_path)
    write_photos(
        tmp_path / "photos", birds, classes=True, split_of=lambda i: "test" if i >= 12 else "train"
    )
    return tmp_path / "photos"


@pytest.fixture
def without_onnx(monkeypatch):
    """Writing ONNX takes seconds; one test does."""
    monkeypatch.setattr(classifier_folder, "export_onnx", lambda *_, **__: False)


def fit(*words):
    cli.main(["classifier", "test_resnet@scratch", "--data", "photos", "--image-size", "64",
              "--out", "model", "--cache", "cache", *words])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("head", ["linear", "finetune"])
def test_five_labels_become_a_classifier_that_a_colleague_runs(head, photos, birds, capsys):
    fit("--shots", "3", "--head", head, *(["--epochs", "2"] if head == "finetune" else []))
    printed = capsys.readouterr().out
    assert "4 classes, 12 labelled images" in printed
    folder = photos.parent / "model"
    names = json.loads((folder / "config.json").read_text())["label_names"]
    assert sorted(names) == sorted(birds.classes)
    card = (folder / "README.md").read_text(encoding="utf-8")
    accuracy = re.search(r"Accuracy on 4 other images: ([\d.]+) %", card)[1]
    when = " after 2 passes of fine-tuning" if head == "finetune" else ""
    assert f"accuracy on 4 other images{when}: {float(accuracy):.1f}%" in printed
    assert ("fine-tuned together for 2 passes over 12" in card) == (head == "finetune")

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert model.pretrained_cfg["label_names"] == names
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    files = sorted((photos / "test").rglob("*.png"))
    pixels = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        wanted = model(pixels).softmax(dim=1)

    cli.main(["predict", "model", "photos/test", "--out", "predictions.csv"])
    with open("predictions.csv", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    for file, row in zip(files, wanted, strict=True):
        found = rows[str(file.relative_to(photos.parent))]
        assert found["class"] == names[int(row.argmax())]
        np.testing.assert_allclose([float(found[n]) for n in names], row.numpy(), atol=0.01)

    from transformers import pipeline

    classify = pipeline("image-classification", model=str(folder), device="cpu")
    for file, row in zip(files, wanted, strict=True):
        best = classify(str(file))[0]
        assert best["label"] == names[int(row.argmax())]
        assert best["score"] == pytest.approx(float(row.max()), abs=0.01)

    logits = run_onnx(folder / "model.onnx", pixels.numpy())
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(1), wanted, atol=1e-3)
    import onnx

    about = {prop.key: prop.value for prop in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(about["labels"]) == names

    score = accuracy_of(names, rows)
    assert score == pytest.approx(float(accuracy) / 100)


@pytest.mark.slow
def test_a_fine_tuned_head_starts_as_the_linear_one_and_the_backbone_is_left_alone(birds):
    backbone = create_backbone("test_resnet", image_size=32).eval()
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    labels = torch.from_numpy(birds.labels)
    present = labels.unique()
    weight = torch.randn(len(present), backbone.num_features)
    head = Head(weight, torch.zeros(len(present)), tuple(birds.classes[c] for c in present))
    accelerator = Accelerator(cpu=True)

    tuned, same = fine_tuned(backbone, head, birds, accelerator, epochs=1e-9)  # one step, rate 0
    torch.testing.assert_close(same.weight, weight, atol=1e-4, rtol=1e-3)
    assert same.classes == head.classes

    tuned, moved = fine_tuned(backbone, head, birds, accelerator, epochs=4)
    torch.testing.assert_close(backbone.model.state_dict(), before, rtol=0, atol=0)
    assert not torch.equal(moved.weight, weight)
    after = tuned.model.state_dict()
    statistics = [key for key in before if "running" in key]
    assert statistics
    for key in statistics:  # few images would replace them by their own
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)
    assert any(not torch.equal(after[key], before[key]) for key in before)
    assert not tuned.training


def accuracy_of(names, rows):
    return float(np.mean([f"/{row['class']}/" in row["file"] for row in rows.values()]))


def test_an_earlier_classifier_is_replaced_and_anything_else_is_not(
    photos, tmp_path, capsys, without_onnx
):
    backbone = create_backbone("test_vit", image_size=64)
    for bias in (0.0, 1.0):
        folder = write_classifier(
            backbone, torch.zeros(2, backbone.num_features), torch.tensor([bias, 0.0]),
            ["a", "b"], tmp_path / "x", num_labelled=2,
        )  # fmt: skip
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.get_classifier().bias.tolist() == [1.0, 0.0]
    (tmp_path / "x" / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit):
        fit("--out", "x")
    assert "x holds thesis.tex, which is not part of a classifier" in capsys.readouterr().err


@pytest.mark.parametrize("label_names", [None, ["jay", "crow"]])
def test_a_backbone_with_the_files_of_a_classifier_is_not_replaced(
    label_names, photos, tmp_path, capsys
):
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=64"])
    start = export(create_backbone("test_resnet", image_size=64), tmp_path / "x", recipe, {})
    for name in ("recipe.yaml", "results.json", "README.md"):
        (start / name).unlink()
    config = json.loads((start / "config.json").read_text()) | {"label_names": label_names}
    (start / "config.json").write_text(json.dumps(config))
    before = (start / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        fit("--out", "x")
    assert "x holds config.json, model.safetensors, which fgssl" in capsys.readouterr().err
    assert (start / "model.safetensors").read_bytes() == before


def test_a_class_of_any_name_is_on_the_card(tmp_path, without_onnx):
    backbone = create_backbone("test_resnet", image_size=64)
    folder = write_classifier(
        backbone, torch.zeros(2, backbone.num_features), torch.zeros(2),
        ["caf\udce9", "grey\njay"], tmp_path / "x", num_labelled=2,
    )  # fmt: skip
    assert "2 classes: caf\\xe9, grey\\njay\n" in (folder / "README.md").read_text()
    assert read_config(folder)["label_names"] == ["caf\udce9", "grey\njay"]


def test_pictures_that_cannot_be_read_are_counted(photos, capsys, birds, without_onnx):
    fit()
    capsys.readouterr()
    (photos / "broken.jpg").write_bytes(b"no image")
    cv2.imwrite(str(photos / "one.png"), birds[0]["image"])
    words = ["predict", "model", "photos/broken.jpg", "photos/one.png", "--out", "p.csv"]
    cli.main(words)
    assert "p.csv: 1 images\n1 images cannot be read and are left out: photos/broken.jpg: " in (
        capsys.readouterr().out
    )
    with pytest.raises(SystemExit):
        cli.main(["predict", "model", "photos/broken.jpg", "--out", "q.csv"])
    assert "none of the 1 images can be read" in capsys.readouterr().err
    assert not (photos.parent / "q.csv").exists()


def test_pictures_of_zero_bytes_are_named_and_no_picture_is_an_error(photos, capsys, without_onnx):
    first, *others = sorted((photos / "train").rglob("*.png"))
    first.write_bytes(b"")
    fit()
    assert "1 images cannot be read and are not used: " in (said := capsys.readouterr().out)
    assert f"{first.name}: the file is empty" in said
    for path in others:
        path.write_bytes(b"")
    with pytest.raises(SystemExit):
        fit("--out", "y")
    assert "none of the 12 images of photos can be read" in capsys.readouterr().err


FINETUNE = "classifier x --data photos --out m --head finetune"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "photos", "photos", "--out", "x.csv"], "holds a config.json"),
        (["predict", "photos", "photos", "--out", "x.txt"], "the suffix is .csv"),
        (["classifier", "x", "--data", "photos", "--out", "m", "--shots", "0"], "--shots: 0"),
        (
            ["classifier", "x", "--data", "photos", "--out", "m", "--epochs", "3"],
            "only --head fine",
        ),
        (f"{FINETUNE} --epochs 0".split(), "--epochs: 0 is not a number above 0"),
        (f"{FINETUNE} --epochs inf".split(), "--epochs: inf is not a number above 0"),
        (["classifier", "x", "--data", "photos/train/", "--out", "photos"], "photos holds test"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words, message, photos, capsys):
    with pytest.raises(SystemExit):
        cli.main(words)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
