"""The ONNX file gives torch's features, for any batch, and any size where the network takes it."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.hub import onnx_file
from fg_ssl_zoo.hub.onnx_file import check_onnx, run_onnx


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("test_resnet", "any batch, any size"),
        ("test_vit", "any batch, 64 px only"),
        ("tf_mobilenetv3_small_minimal_100", "any batch, 64 px only"),  # padding by the size
    ],
)
def test_the_command_writes_a_file_with_torchs_features(name, said, tmp_path, capsys):
    file = tmp_path / "deep" / "model.onnx"
    cli.main(["export-onnx", f"{name}@scratch", "--image-size", "64", "--out", str(file)])
    printed = capsys.readouterr().out
    assert said in printed
    assert "its features equal torch's" in printed
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]  # weights inside
    about = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    kept = about.get_modelmeta().custom_metadata_map
    assert json.loads(kept["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert kept["image_size"] == "64"
    (pixels,) = about.get_inputs()
    sides = (48, 80) if name == "test_resnet" else (64, 64)
    assert [isinstance(n, str) for n in pixels.shape[2:]] == [name == "test_resnet"] * 2
    features = run_onnx(file, np.zeros((5, 3, *sides), np.float32))
    assert features.shape[0] == 5
    torch.manual_seed(1)  # other weights than the command's
    with pytest.raises(ValueError, match="its features differ from torch's by"):
        check_onnx(create_backbone(name, image_size=64), file)


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, tmp_path, capsys):
    find = onnx_file.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n)
    )
    with pytest.raises(SystemExit):
        cli.main(["export-onnx", "test_resnet@scratch", "--out", str(tmp_path / "x.onnx")])
    assert "pip install 'fg-ssl-zoo[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_not_written_over(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for out, size, said in ((tmp_path / "notes.txt", "64", "the suffix is .onnx"),
                            (tmp_path / "x.onnx", "-3", "-3; a number of pixels")):  # fmt: skip
        words = ["export-onnx", "test_resnet@scratch", "--out", str(out), "--image-size", size]
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"
