"""Where weights come from, in which order, and that they are what was published."""

import os
import shutil
import socket
import stat
import tempfile
import time
from pathlib import Path

import huggingface_hub.file_download as client_download
import pytest
import timm
import torch
from huggingface_hub import constants

from fg_ssl_zoo.backbones import fgssl_models
from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.fgssl_models import published_as
from fg_ssl_zoo.backbones.weights import folder as published
from fg_ssl_zoo.backbones.weights import locate as zoo
from fg_ssl_zoo.backbones.weights.folder import sha256_of
from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError
from fg_ssl_zoo.hub.release import release
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import NAME, RECIPE, exported, registered

REPO = f"fg-ssl-zoo/{NAME}"
NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def tiny_name(tmp_path_factory):
    yield from registered({NAME: RECIPE}, tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Four folders of the same name; the mean of their pixels tells them apart."""
    root = tmp_path_factory.mktemp("models")
    first = root / "first" / NAME
    exported(first)
    for number, name in enumerate(("mine", "checkout", "hub"), start=2):
        folder = shutil.copytree(first, root / name / NAME)
        config = folder / "config.json"
        config.write_text(config.read_text().replace("0.1,", f"0.{number},"))
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("FG_SSL_ZOO_DIR", raising=False)
    monkeypatch.delenv("FG_SSL_ZOO_ORG", raising=False)
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    with Hub() as server:
        point_client_at(server.url, tmp_path / "cache", monkeypatch)
        monkeypatch.setattr(client_download.time, "sleep", lambda seconds: None)
        yield server


def opened(name=NAME, **keys):
    return timm.create_model(name, pretrained=True, **keys)


def mean(model):
    return model.pretrained_cfg["mean"][0]


def released_as(sha256, monkeypatch):
    monkeypatch.setitem(fgssl_models.STOCK[NAME.partition(".")[0]].sha256, "simclr", sha256)


def checkout(models, tmp_path, monkeypatch):
    """A checkout whose published/ holds the model."""
    (tmp_path / "checkout" / "hub_configs").mkdir(parents=True)
    shutil.copytree(models / "checkout", tmp_path / "checkout" / "published")
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "checkout")
    return tmp_path / "checkout" / "published" / NAME


def test_the_order_is_overlay_own_folder_checkout_hub(models, hub, tmp_path, monkeypatch):
    hub.publish(REPO, models / "hub" / NAME)
    assert mean(opened()) == 0.4
    checkout(models, tmp_path, monkeypatch)
    asked = len(hub.log)
    assert mean(opened()) == 0.3
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(models / "mine"))
    assert mean(opened()) == 0.2
    file = {"file": str(models / "first" / NAME), "source": "local-dir"}
    assert mean(opened(pretrained_cfg_overlay=file)) not in (0.2, 0.3, 0.4)
    assert len(hub.log) == asked  # a folder makes no request
    hub.publish("someone/model", models / "first" / NAME)
    other = {"hf_hub_id": "someone/model"}
    assert mean(opened(pretrained_cfg_overlay=other)) == 0.1


def test_a_pinned_revision_comes_from_the_hub(models, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(models / "mine"))
    first = hub.publish(REPO, models / "first" / NAME)
    hub.publish(REPO, models / "hub" / NAME)
    assert mean(opened()) == 0.2
    assert mean(opened(f"{NAME}@main")) == 0.4
    assert mean(opened(f"{NAME}@{first}")) == 0.1
    assert mean(opened(pretrained_cfg_overlay={"hf_hub_id": f"{REPO}@{first}"})) == 0.1
    assert mean(open_backbone(f"{NAME}@{first}").model) == 0.1
    assert mean(open_backbone(f"hf-hub:{REPO}@{first}").model) == 0.1
    assert published_as(f"{NAME}@{first}").revision == first
    asked = len(hub.log)
    opened(f"{NAME}@{first}")  # a commit never changes: nothing is asked again
    assert len(hub.log) == asked
    with pytest.raises(PretrainedWeightsError, match=r"@nope \(RevisionNotFoundError"):
        opened(f"{NAME}@nope")


def test_a_released_model_has_the_hash_of_its_recipe(models, hub, tmp_path, monkeypatch):
    right = sha256_of(models / "first" / NAME / "model.safetensors")
    hub.publish(REPO, models / "hub" / NAME)
    released_as(right, monkeypatch)
    assert mean(opened()) == 0.4
    released_as("0" * 64, monkeypatch)
    refusal = r"model.safetensors differs from the published file: its sha256 is .*, expected 000"
    with pytest.raises(ValueError, match=refusal):
        opened()
    folder = checkout(models, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=refusal + rf".*`git checkout` of {folder}"):
        opened()
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(models / "mine"))
    assert mean(opened()) == 0.2  # yours: whatever lies there is taken
    monkeypatch.delenv("FG_SSL_ZOO_DIR")
    monkeypatch.setattr(zoo, "CHECKOUT", tmp_path / "wheel")
    monkeypatch.setenv("FG_SSL_ZOO_ORG", "someone")  # somebody else's model of that name
    hub.publish(f"someone/{NAME}", models / "first" / NAME)
    assert mean(opened()) == 0.1


def test_a_checkout_may_hold_it_in_parts(models, hub, tmp_path, monkeypatch):
    folder = checkout(models, tmp_path, monkeypatch)
    shutil.rmtree(folder)
    release(models / "first" / NAME, folder.parent, largest_file=300_000)
    whole = release(models / "first" / NAME, tmp_path / "whole")
    released_as(sha256_of(whole / "model.safetensors"), monkeypatch)
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    torch.testing.assert_close(
        opened().state_dict(), open_backbone(str(whole)).model.state_dict(), rtol=0, atol=0
    )


def test_a_download_that_breaks_goes_on_and_a_changed_one_is_refused(models, hub, monkeypatch):
    hub.publish(REPO, models / "hub" / NAME)
    hub.fail("GET", "model.safetensors", times=2)
    assert mean(opened()) == 0.4
    ranges = [
        path for verb, path in hub.log if verb == "GET" and path.endswith("model.safetensors")
    ]
    assert len(ranges) == 3
    hub.publish("other/model", models / "hub" / NAME)
    hub.corrupt.add("model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "2")
    with pytest.raises(
        ValueError, match=r"differs from the published file.*Delete .*and load again"
    ):
        opened(pretrained_cfg_overlay={"hf_hub_id": "other/model"})


def test_a_500_is_named_and_the_cache_helps_out(models, hub):
    hub.publish(REPO, models / "hub" / NAME)
    hub.fail("HEAD", "config.json", 500)
    with pytest.raises(PretrainedWeightsError, match=r"HfHubHTTPError: .*500"):
        opened()
    assert mean(opened()) == 0.4
    asked = len(hub.log)
    assert mean(opened()) == 0.4
    assert len(hub.log) == asked + 1  # one question where the newest commit is cached
    hub.fail("HEAD", "config.json", 500)
    assert mean(opened()) == 0.4
    hub.publish(REPO, models / "first" / NAME)
    assert mean(opened()) == 0.1


def test_offline_the_cache_is_enough_and_without_it_the_error_says_why(models, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PretrainedWeightsError, match=r"OfflineModeIsEnabled"):
        opened()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.publish(REPO, models / "hub" / NAME)
    opened()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.log)
    assert mean(opened()) == 0.4
    assert len(hub.log) == asked


def test_a_private_model_needs_its_token(models, hub, tmp_path, monkeypatch):
    hub.publish(REPO, models / "hub" / NAME)
    hub.repos[REPO].private = True
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PretrainedWeightsError, match="RepositoryNotFoundError") as caught:
        opened()
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    assert mean(opened()) == 0.4


def test_a_missing_file_is_named(models, hub, tmp_path):
    folder = shutil.copytree(models / "hub" / NAME, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hub.publish(REPO, folder)
    with pytest.raises(PretrainedWeightsError, match=r"RemoteEntryNotFoundError: .*Only safetenso"):
        opened()


def test_a_folder_with_a_pickle_alone_is_told_how_to_convert_it(models, hub, tmp_path, monkeypatch):
    folder = shutil.copytree(models / "mine" / NAME, tmp_path / NAME)
    (folder / "model.safetensors").rename(folder / "model.pth")
    monkeypatch.setenv("FG_SSL_ZOO_DIR", str(tmp_path))
    with pytest.raises(PretrainedWeightsError, match=r"no model.safetensors, but model.pth. Only"):
        opened()


def test_a_cache_that_cannot_be_written_is_read_and_named_when_it_is_empty(
    models, hub, monkeypatch
):
    hub.publish(REPO, models / "hub" / NAME)
    root = Path(tempfile.mkdtemp())  # pytest's own folder is closed to others
    root.chmod(0o755)
    monkeypatch.setattr(zoo, "CHECKOUT", root / "wheel")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "cache"))
    opened()
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) | 0o555)
    if os.getuid() == 0:  # permissions do not bind root
        os.seteuid(NOBODY)
    try:
        assert mean(opened()) == 0.4
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "none"))
        with pytest.raises(PretrainedWeightsError, match=r"PermissionError.*HF_HOME=FOLDER"):
            opened()
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(root)


def test_names_with_other_characters_never_reach_a_path(hub):
    for name in ("fgssl_tinier_cub.../../x", "fgssl_tinier_cub.simclr/../x", "../x", "a@../b"):
        assert published_as(name) is None or "/" not in published_as(name).name
        with pytest.raises((RuntimeError, ValueError)):
            opened(name)
    assert hub.log == []


def test_a_cached_model_costs_little_more_than_timm_alone(models, hub, monkeypatch):
    folder = models / "hub" / NAME
    released_as(sha256_of(folder / "model.safetensors"), monkeypatch)
    hub.publish(REPO, folder)
    opened()
    asked = len(hub.log)

    def seconds(*words, **keys):
        best = float("inf")
        for _ in range(3):
            published._sha256.cache_clear()  # a new process has hashed nothing yet
            start = time.process_time()  # others may share the processor
            timm.create_model(*words, pretrained=True, **keys)
            best = min(best, time.process_time() - start)
        return best

    added = seconds(NAME) - seconds(f"local-dir:{folder}", num_classes=0)
    print(f"{added * 1000:.0f} ms over timm alone")  # noqa: T201
    assert added < 0.3
    assert len(hub.log) == asked  # the released weights are known: nothing is asked


def test_a_closed_port_is_answered_at_once_where_the_cache_has_it(models, hub, monkeypatch):
    hub.publish(REPO, models / "hub" / NAME)
    opened()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    point_client_at(url, Path(constants.HF_HUB_CACHE), monkeypatch)
    assert mean(opened()) == 0.4
