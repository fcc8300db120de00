"""Files of a run and checkpoints that are cut, damaged or cannot be written."""

import json
import os
import random

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.config import disk_error, set_aside, write_whole
from fg_ssl_zoo.data.tensor_cache import load_tensors, read_tensors, write_tensors
from fg_ssl_zoo.engine import checkpoint
from fg_ssl_zoo.engine.checkpoint import CheckpointError, Position
from fg_ssl_zoo.engine.log import JsonlTracker, drop_from
from fg_ssl_zoo.engine.run_folder import RunFolder, RunFolderTaken
from fg_ssl_zoo.pretrain import start_weights
from fg_ssl_zoo.pretrain.run import Run
from tests.endurance.faults import no_space
from tests.endurance.processes import end, start

STATE = {"method": {"weight": torch.arange(64.0)}, "record": {"images_seen": 8}}


def test_a_file_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    write_whole(path, "old")
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_set_aside_get_names_of_their_own(tmp_path, caplog):
    path = tmp_path / "a.json"
    for content in "12":
        path.write_text(content)
        set_aside(path, "no JSON")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json.unreadable", "a.json.unreadable2"]
    assert "a.json cannot be read (no JSON); it is kept as a.json.unreadable" in caplog.text


def test_a_disk_error_names_the_path_and_what_to_do():
    error = OSError(30, "Read-only file system", "/data/run")
    assert disk_error(error).startswith("/data/run: Read-only file system; the disk is read-only")
    assert disk_error(OSError(2, "No such file", b"/data")).startswith("/data: No such file; check")
    assert disk_error(OSError("says all")) == "says all"


def records(*steps):
    return "".join(f'{{"step": {step}}}\n' for step in steps)


@pytest.mark.parametrize(("content", "kept"), [
    (records(0, 10), records(0, 10)),
    (records(0, 10, 20, 30), records(0, 10)),
    (records(0, 10) + '{"step": 2', records(0, 10)),
    (records(0) + '{"step": 10}', records(0, 10)),
    ("", ""),
])  # fmt: skip
def test_a_log_keeps_the_steps_before_and_drops_a_torn_line(tmp_path, content, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    drop_from(path, first_step=20, measured=10)
    assert path.read_text() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_measurement_that_no_checkpoint_has_is_dropped_and_made_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    train, kept = '{"step": 20, "train/loss": 1.0}\n', '{"step": 10, "eval/knn_top1": 0.5}\n'
    path.write_text(kept + train + '{"step": 20, "eval/knn_top1": 0.5}\n')
    drop_from(path, first_step=21, measured=10)
    assert path.read_text() == kept + train


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"no record\n", b"[1]\n", b'{"step": "ten"}\n'])
def test_a_damaged_log_is_kept_aside_and_its_other_lines_go_on(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    content = records(0).encode() + damage + records(10).encode()
    path.write_bytes(content)
    drop_from(path, first_step=20, measured=10)
    assert path.read_text() == records(0, 10)
    assert (tmp_path / "metrics.jsonl.unreadable").read_bytes() == content


def test_every_damaged_byte_of_a_checkpoint_is_noticed(tmp_path):
    path = checkpoint.save(tmp_path, Position(step=1), STATE)
    content, draw = path.read_bytes(), random.Random(0)
    assert torch.equal(torch.load(path)["method"]["weight"], STATE["method"]["weight"])
    places = [draw.randrange(len(content)) for _ in range(150)] + [*range(-75, 0)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            checkpoint.load(path)
    for length in (0, 1, 70, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)
    path.write_bytes(content)
    assert checkpoint.load(path)["record"] == STATE["record"]


def test_a_checkpoint_that_is_older_than_hashes_has_its_checksums_compared(tmp_path):
    path = tmp_path / Position(step=1).file_name
    torch.save(STATE, path)
    assert torch.equal(checkpoint.load(path)["method"]["weight"], STATE["method"]["weight"])
    content = bytearray(path.read_bytes())
    content[content.index(STATE["method"]["weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="another checksum than when it was written"):
        checkpoint.load(path)


def test_a_bad_newest_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, caplog):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, Position(step=step), STATE, keep=3)
    newest = tmp_path / Position(step=3).file_name
    newest.write_bytes(newest.read_bytes()[:-100])
    assert checkpoint.newest(tmp_path)[0] == Position(step=2)
    assert f"{newest} cannot be read" in caplog.text
    assert (tmp_path / f"{newest.name}.unreadable").is_file()
    for step in (1, 2):
        (tmp_path / Position(step=step).file_name).write_bytes(b"")
    assert checkpoint.newest(tmp_path) == (Position(), None)


def measured(folder, *steps):
    lines = [json.dumps({"step": step, "eval/knn_top1": 0.5}) + "\n" for step in steps]
    folder.metrics.write_text("".join(lines))
    return folder


def test_a_run_whose_checkpoints_are_gone_does_not_start_again(tmp_path):
    folder = RunFolder(tmp_path)
    measured(folder, 0).refuse_lost_checkpoints()  # it was never further
    with pytest.raises(RunFolderTaken, match=r"are gone; .* at step 20\. Restore .*overwrite=true"):
        measured(folder, 0, 20).refuse_lost_checkpoints()
    folder.metrics.unlink()
    folder.checkpoints.mkdir()
    (folder.checkpoints / "stage0_round0_step00000002.pt.unreadable").touch()
    with pytest.raises(RunFolderTaken, match=r"cannot be read \(stage0_round0_step00000002"):
        folder.refuse_lost_checkpoints()


# --------------------------------------------------------------------------- a full disk


def test_a_checkpoint_that_does_not_fit_is_one_line_of_ours(tmp_path):
    state = {"method": {"weight": torch.zeros(100_000)}}
    older = checkpoint.save(tmp_path, Position(step=1), STATE)
    for kept, folder in ((f"the last good checkpoint is {older}", tmp_path),
                         ("there is no earlier checkpoint", tmp_path / "new")):  # fmt: skip
        with pytest.raises(CheckpointError) as refused, no_space(200_000):
            checkpoint.save(folder, Position(step=2), state)
        assert str(refused.value) == (
            f"could not write checkpoint {folder / Position(step=2).file_name}: File too large; "
            "the disk or a limit (ulimit -f) takes no file of this size: raise it, or name another "
            f"place; {kept}. Run the same command again to continue"
        )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [older]


def test_parts_of_checkpoints_of_killed_runs_are_removed(tmp_path):
    older = checkpoint.save(tmp_path, Position(step=1), STATE)
    for name in ("stage0_round0_step00000007.partial", "stage0_round0_step00000007.pt.1.partial"):
        (tmp_path / name).touch()
    newer = checkpoint.save(tmp_path, Position(step=2), STATE)
    assert sorted(tmp_path.iterdir()) == [older, newer]


def test_every_file_of_a_run_that_does_not_fit_is_named(tmp_path):
    def log(path):
        JsonlTracker(path).log({"train/loss": 1.0}, step=1)

    def whole(path):
        write_whole(path, "1" * 100)

    for write in (log, whole, lambda path: write_tensors(path, STATE["method"])):
        with pytest.raises(OSError, match="File too large") as refused, no_space(10):
            write(tmp_path / "file")
        assert disk_error(refused.value).startswith(
            f"{tmp_path / 'file'}: File too large; the disk"
        )
        (tmp_path / "file").unlink(missing_ok=True)  # a torn line of the log
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- tensors


def test_damaged_tensors_are_noticed(tmp_path):
    path, tensors = tmp_path / "notes.safetensors", {"maps": torch.arange(300).view(3, 100)}
    write_tensors(path, tensors, {"about": "a test"})
    content, draw, refused = path.read_bytes(), random.Random(0), 0
    for place in [draw.randrange(len(content)) for _ in range(200)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            assert torch.equal(load_tensors(path)["maps"], tensors["maps"])
        except ValueError:
            refused += 1
            assert read_tensors(path) is None
    assert refused > 150


def write_often(path):
    for _ in range(60):
        write_tensors(path, {"number": torch.arange(1000)})


def test_two_processes_write_the_same_file_of_a_cache(tmp_path):
    path = tmp_path / "cache" / "features.safetensors"
    logs = [tmp_path / name for name in ("one", "two")]
    both = [start(write_often, path, log=log) for log in logs]
    assert [end(process, log).code for process, log in zip(both, logs, strict=True)] == [0, 0]
    assert torch.equal(load_tensors(path)["number"], torch.arange(1000))
    assert list(path.parent.iterdir()) == [path]


def test_a_stage_that_has_begun_needs_the_weights_it_started_from(tmp_path):
    run = object.__new__(Run)
    run.__dict__.update(folder=RunFolder(tmp_path), accelerator=Accelerator(cpu=True))
    weights = create_backbone("test_resnet", image_size=32)
    path = tmp_path / "notes" / "stage1_start.safetensors"
    with pytest.raises(ValueError, match=r"stage1_start.safetensors is gone; it cannot be .*over"):
        start_weights.keep_start(run, weights, 1, at_start=False)
    start_weights.keep_start(run, weights, 1, at_start=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"stage1_start.safetensors cannot be read .*restore"):
        start_weights.start_weights(run, 1)
