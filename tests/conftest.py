"""Settings and small images that all tests share; nothing here touches a network."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

if "FG_SSL_ZOO_TEST_ASSETS" not in os.environ:  # processes that a test starts share its caches
    os.environ["FG_SSL_ZOO_TEST_ASSETS"] = tempfile.mkdtemp(prefix="fg_ssl_zoo-assets-")
    atexit.register(shutil.rmtree, os.environ["FG_SSL_ZOO_TEST_ASSETS"], ignore_errors=True)
os.environ["HF_ASSETS_CACHE"] = os.environ["FG_SSL_ZOO_TEST_ASSETS"]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import pytest
import timm.layers.config
import torch
from accelerate.state import AcceleratorState

from fg_ssl_zoo.data.drawn import DrawnBirds

FUSED_ATTENTION = timm.layers.config._USE_FUSED_ATTN

torch.set_num_threads(1)
cv2.setNumThreads(0)

# Torch's first backward pass of a process starts a thread for each device but the CPU, and a fork
# of a process with such threads refuses every backward pass. There is none without a GPU, until a
# FakeTensorMode (ONNX export) makes the process believe in one. So the first pass comes here.
torch.ones((), requires_grad=True).backward()


@pytest.fixture(scope="session")
def birds() -> DrawnBirds:
    """Sixteen drawn birds of four species, 64 px."""
    return DrawnBirds(16, num_classes=4, image_size=64, seed=0)


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of the test's module, as a file: `RECIPE`, named after `METHOD` or simclr.

    Runs land beside it.
    """
    monkeypatch.chdir(tmp_path)
    method = getattr(request.module, "METHOD", "simclr")
    path = tmp_path / f"fgssl_test_resnet_drawn.{method}.yaml"
    path.write_text(request.module.RECIPE)
    return path


@pytest.fixture(autouse=True)
def own_precision() -> None:
    """Accelerate would keep the precision of the first test of the process for all others."""
    AcceleratorState._reset_state()


@pytest.fixture(autouse=True)
def own_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command switches fused attention for its process; the next test has timm's own again."""
    monkeypatch.setattr(timm.layers.config, "_USE_FUSED_ATTN", FUSED_ATTENTION)
