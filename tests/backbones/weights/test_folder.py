"""A stranger's folder: nothing of it is built, loaded or opened before it was looked at."""

import json
import pickle
import shutil

import pytest
import torch

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.weights import folder as published
from fg_ssl_zoo.backbones.weights.config import check_config, read_config
from fg_ssl_zoo.backbones.weights.folder import weight_files, whole
from fg_ssl_zoo.hub.release import release
from tests.endurance.faults import no_space
from tests.endurance.processes import end, start
from tests.hub_server import Hub, point_client_at
from tests.tiny_zoo import exported

GOOD = {"architecture": "test_resnet", "num_classes": 0, "pretrained_cfg": {}}


def test_weights_that_the_disk_refuses_are_an_error_of_the_disk(tmp_path):
    with no_space(1000), pytest.raises(OSError, match=r"model\.safetensors"):
        published.write_state({"x": torch.zeros(1000)}, tmp_path / "model.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "export"
    exported(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "hf-hub:stranger/model"}, "timm knows no"),
        ({"architecture": ["test_resnet"]}, "timm knows no"),
        ({"num_classes": 10**9}, "larger than in any network"),
        ({"num_classes": float("nan")}, "larger than in any network"),
        ({"model_args": {"depth": 10**7}}, "depth: 10000000 is larger"),
        ({"model_args": {"img_size": 100_000}}, "img_size: 100000 is larger"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "is not an argument of a network"),
        ({"model_args": {"pretrained_cfg": {}}}, "is not an argument of a network"),
        ({"model_args": {"__class__": 1}}, "is not an argument of a network"),
        (
            {"model_args": {"trunk_options": {"pretrained": True}}},
            "'pretrained' is not",
        ),
        ({"model_args": {"trunk_options": {"a": {"b": 1}}}}, r"a: .* neither a number"),
        ({"model_args": {"act_layer": {"a": 1}}}, "neither a number, a short text nor a list"),
        ({"model_args": {"layers": [[[[[1]]]]]}}, "neither a number"),
        ({"pretrained_cfg": {"url": "http://x/y.pth"}}, "weights lie beside config.json"),
        ({"pretrained_cfg": {"file": "/tmp/y.pth"}}, "weights lie beside config.json"),
        ({"pretrained_cfg": {"custom_load": True}}, "weights lie beside config.json"),
        ({"pretrained_cfg": {"hf_hub_filename": "../x.safetensors"}}, "is not a weight file"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 64]}}, "is not an image size"),
        ({"pretrained_cfg": {"mean": "0.5"}}, "is not a list of numbers"),
        ({"pretrained_cfg": {"std": [0.2, 0, 0.2]}}, "must be above 0"),
        ({"pretrained_cfg": {"crop_pct": -1}}, "is not a share of an image"),
    ],
)
def test_a_configuration_is_checked_before_a_network_is_built_of_it(changes, message):
    check_config(GOOD)
    with pytest.raises(ValueError, match=message):
        check_config({**GOOD, **changes})


@pytest.mark.parametrize("text", ["[]", "{", '{"architecture": {}}', "[" * 9999, "3", "{}"])
def test_what_is_no_configuration_is_one_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config.json is no timm config"):
        read_config(tmp_path)


def test_a_hostile_folder_is_refused_before_timm_builds_it(good, tmp_path, monkeypatch):
    folder = shutil.copytree(good, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {"channels": [10**9] * 4}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("timm.create_model", lambda *args, **keys: pytest.fail("it was built"))
    for words in (str(folder), f"local-dir:{folder}"):
        with pytest.raises(ValueError, match="larger than in any network"):
            open_backbone(words)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "weights.ckpt"])
def test_a_pickle_is_never_opened_wherever_it_lies(good, tmp_path, monkeypatch, name):
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copy(good / "config.json", folder)
    (folder / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=rf"but {name}. Only safetensors are opened.*convert it"):
        open_backbone(str(folder))
    with Hub() as hub:
        hub.publish("stranger/model", folder)
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        with pytest.raises(ValueError, match=r"stranger/model has no model.safetensors. Only safe"):
            open_backbone("hf-hub:stranger/model")
        assert not any(path.endswith(name) for _, path in hub.log)


def test_a_strangers_safetensors_open_and_a_revision_of_them_too(good, tmp_path, monkeypatch):
    with Hub() as hub:
        first = hub.publish("stranger/model", good)
        other = shutil.copytree(good, tmp_path / "other")
        config = (other / "config.json").read_text()
        (other / "config.json").write_text(config.replace("0.875", "1.0"))
        hub.publish("stranger/model", other)
        point_client_at(hub.url, tmp_path / "cache", monkeypatch)
        crops = [
            open_backbone(words).model.pretrained_cfg["crop_pct"]
            for words in ("hf-hub:stranger/model", f"hf-hub:stranger/model@{first}")
        ]
    assert crops == [1.0, 0.875]


def test_parts_outside_of_the_folder_are_not_read(good, tmp_path):
    folder = release(good, tmp_path, largest_file=300_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in ("../secret.safetensors", "/etc/passwd", "model-1-of-2.bin", 3):
        index["weight_map"][next(iter(index["weight_map"]))] = name
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="which is not a weight file"):
            weight_files(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="is not an index of weight files"):
        weight_files(folder)


def test_a_folder_in_parts_opens_as_any_other(good, tmp_path, monkeypatch):
    monkeypatch.setattr(
        published, "cached_assets_path", lambda *names: made(tmp_path / "assets" / names[-1])
    )
    folder = release(good, tmp_path, largest_file=300_000)
    assert open_backbone(str(folder)).num_features == 96
    joined = whole(folder)
    assert (joined / "model.safetensors").is_file()
    assert joined == whole(folder)
    monkeypatch.setattr(published, "cached_assets_path", unwritable)
    assert open_backbone(str(folder)).num_features == 96


def join_often(folder, assets):
    published.cached_assets_path = lambda *names: made(assets / names[-1])
    for _ in range(40):
        assert read_config(whole(folder))["architecture"]


def test_two_processes_join_the_same_parts(good, tmp_path):
    folder, assets = release(good, tmp_path, largest_file=300_000), tmp_path / "assets"
    logs = [tmp_path / name for name in ("one", "two")]
    both = [start(join_often, folder, assets, log=log) for log in logs]
    assert [end(process, log).code for process, log in zip(both, logs, strict=True)] == [0, 0]
    (joined,) = assets.iterdir()
    assert sorted(path.name for path in joined.iterdir()) == ["config.json", "model.safetensors"]


def made(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def unwritable(*names):
    raise PermissionError("read-only")
