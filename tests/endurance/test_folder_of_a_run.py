"""The folder of a run: damaged records of it, and two runs in one."""

import os
import signal
import time

import pytest
import torch

from fg_ssl_zoo.config import load_recipe, to_yaml
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.run_folder import RunFolder, RunFolderTaken
from tests.endurance.processes import end, start, wait_until

STATE = {"method": {"weight": torch.arange(64.0)}, "record": {"images_seen": 8}}


def claimed(path, *words):
    folder = RunFolder(path)
    folder.claim(load_recipe(overrides=[f"output={path}", *words]), {})
    return folder


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"backbone: ["])
def test_a_damaged_recipe_is_set_aside_and_its_copy_is_compared(tmp_path, damage):
    claimed(tmp_path).lock.release()
    recipe = tmp_path / "recipe.yaml"
    before = recipe.read_bytes()
    recipe.write_bytes(damage)
    with pytest.raises(RunFolderTaken, match=r"another run, which differs in seed \(0 there, 1"):
        claimed(tmp_path, "seed=1")
    claimed(tmp_path).lock.release()
    assert recipe.read_bytes() == before
    assert (tmp_path / "recipe.yaml.unreadable").read_bytes() == damage
    claimed(tmp_path, "overwrite=true").lock.release()
    assert not (tmp_path / "recipe.yaml.unreadable").exists()


def test_a_run_without_a_readable_recipe_is_refused_and_can_be_overwritten(tmp_path):
    folder = claimed(tmp_path)
    folder.lock.release()
    checkpoint.save(folder.checkpoints, Position(step=1), STATE)
    for path in (folder.recipe, folder.recipe_copy):
        path.write_bytes(b"")
    with pytest.raises(RunFolderTaken, match=r"recipe\.yaml of the run .* cannot be read; restore"):
        claimed(tmp_path)
    claimed(tmp_path, "overwrite=true").lock.release()
    assert folder.recipe.read_text() == to_yaml(load_recipe(overrides=[f"output={tmp_path}"]))


def test_a_damaged_list_of_pictures_is_set_aside(tmp_path):
    folder = claimed(tmp_path)
    folder.lock.release()
    checkpoint.save(folder.checkpoints, Position(step=1), STATE)
    folder.data.write_bytes(b"{")
    claimed(tmp_path).lock.release()
    assert (tmp_path / "data.json.unreadable").read_bytes() == b"{"


def hold(path):
    folder = claimed(path)
    time.sleep(600)
    folder.lock.release()


def test_a_second_live_run_is_refused_and_a_killed_one_leaves_the_folder_free(tmp_path):
    log = tmp_path / "log"
    process = start(hold, tmp_path / "run", log=log)
    wait_until((tmp_path / "run" / "data.json").is_file)
    for words in ([], ["overwrite=true"]):
        with pytest.raises(RunFolderTaken, match=f"is in use by process {process.pid} on "):
            claimed(tmp_path / "run", *words)
    assert (tmp_path / "run" / "recipe.yaml").is_file()
    os.kill(process.pid, signal.SIGKILL)
    end(process, log)
    claimed(tmp_path / "run").lock.release()
    claimed(tmp_path / "run", "overwrite=true").lock.release()


def test_a_refused_run_leaves_the_folder_free(tmp_path):
    claimed(tmp_path).lock.release()
    with pytest.raises(RunFolderTaken, match="another run"):
        claimed(tmp_path, "seed=1")
    claimed(tmp_path).lock.release()
