"""Faults of other kinds: foreign checkpoints, links, closed pipes, processes that differ."""

import itertools
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time

import pytest
import torch

from fg_ssl_zoo.engine import checkpoint, log, loop
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.run_folder import RunFolderTaken
from fg_ssl_zoo.pretrain import main
from tests.endurance.processes import end, start, wait_until
from tests.endurance.runs import WORDS, Run
from tests.endurance.test_folder_of_a_run import claimed, hold
from tests.pictures import write_photos

SHORT = [*WORDS, "stages[0].train.steps=2", "monitor.every=9"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run") / "run"
    main([*SHORT, f"output={folder}"])
    return folder


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([*SHORT, *words])
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


# --------------------------------------------------------------------------- checkpoints


def rewrite(folder, change, at=Position(step=2)):  # noqa: B008
    _, state = checkpoint.newest(folder / "checkpoints")
    change(state)
    checkpoint.save(folder / "checkpoints", at, state, keep=9)


@pytest.mark.parametrize(("change", "message"), [
    (lambda state: state["method"].popitem(), "(method: Error(s) in loading state_dict"),
    (lambda state: state["method"].update({"backbone.model.bn1.weight": torch.ones(3)}), "(method"),
    (lambda state: state["optimizer"]["param_groups"].pop(), "(optimizer: "),
    (lambda state: state["record"].update(later=1), "(it holds later, of a newer version)"),
    (lambda state: state.pop("record"), "(the recipe has no such step)"),
])  # fmt: skip
def test_a_checkpoint_of_another_network_is_one_line(run, capsys, change, message):
    rewrite(run, change)
    line = refused(capsys, f"output={run}")
    assert "stage0_round0_step00000002.pt is not a checkpoint of this run" in line
    assert message in line
    assert "remove it" in line


@pytest.mark.parametrize("at", [Position(step=3), Position(stage=1), Position(round=1)])
def test_a_checkpoint_beyond_the_recipe_is_one_line(run, capsys, at):
    rewrite(run, lambda state: None, at)
    line = refused(capsys, f"output={run}")
    assert f"{at.file_name} is not a checkpoint of this run (the recipe has no such step)" in line


def test_a_folder_with_the_name_of_a_checkpoint_is_none(run):
    (run / "checkpoints" / Position(step=9).file_name).mkdir()
    main([*SHORT, f"output={run}"])
    assert max(checkpoint.positions(run / "checkpoints")) == Position(step=2)


# --------------------------------------------------------------------------- folders


@pytest.mark.slow
def test_other_words_for_the_same_folder_go_on_in_it(run, tmp_path, monkeypatch):
    before = (run / "export" / "model.safetensors").read_bytes()
    (tmp_path / "link").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for words in ("run/", "./link", "~/run", "link/../run", str(tmp_path / "link")):
        main([*SHORT, f"output={words}"])
        assert (run / "export" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


def test_a_link_to_the_folder_of_a_live_run_is_refused(tmp_path):
    process = start(hold, tmp_path / "run", log=tmp_path / "log")
    wait_until((tmp_path / "run" / "data.json").is_file)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(RunFolderTaken, match=f"is in use by process {process.pid} on "):
        claimed(tmp_path / "link", "overwrite=true")
    os.kill(process.pid, signal.SIGKILL)
    end(process, tmp_path / "log")


@pytest.mark.parametrize("owner", ["", "{", "[]", '{"pid": "x"}', '{"pid": null}', '{"pid": 1.5}'])
def test_a_damaged_note_of_the_owner_is_no_error_of_ours(tmp_path, monkeypatch, owner):
    process = start(hold, tmp_path / "run", log=tmp_path / "log")
    wait_until((tmp_path / "run" / "data.json").is_file)
    if owner.startswith('{"'):
        owner = json.dumps({**json.loads(owner), "host": socket.gethostname()})
    (tmp_path / "run" / "run.owner.json").write_text(owner)
    monkeypatch.setattr("fg_ssl_zoo.engine.run_lock.LOCKED_BY_WORKERS", 0.1)
    with pytest.raises(RunFolderTaken, match="is in use by"):
        claimed(tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    end(process, tmp_path / "log")


def test_what_a_kill_between_the_two_renames_of_an_export_left_is_replaced(run):
    (run / "export").rename(run / f".export.{os.getpid()}.old")
    shutil.copytree(run / f".export.{os.getpid()}.old", run / f".export.{os.getpid()}")
    main([*SHORT, f"output={run}"])
    assert (run / "export" / "model.safetensors").is_file()
    assert not list(run.glob(".export*"))


@pytest.mark.slow
def test_what_a_killed_command_left_in_an_export_is_no_foreign_file(run):
    for words in ([], ["overwrite=true"]):
        for name in ("results.json.partial", "README.md.123.partial"):
            (run / "export" / name).touch()
        main([*SHORT, f"output={run}", *words])
        assert not list((run / "export").glob("*.partial"))


# --------------------------------------------------------------------------- output and memory


def unread(words):
    """Train with an output whose reader ends after the third step."""
    read, write = os.pipe()
    os.dup2(write, 1)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    seed_step, init = loop.seed_step, log.Progress.__init__

    def close_and_seed(seed, position, step, rank):
        if step == 3:
            os.close(read)
        seed_step(seed, position, step, rank)

    loop.seed_step = close_and_seed
    log.Progress.__init__ = lambda self, *a, **b: init(self, *a, **{**b, "every": 0})
    main(words)


@pytest.mark.slow
def test_a_run_whose_output_nobody_reads_stops_with_a_checkpoint(tmp_path):
    words = [*WORDS, "monitor.every=99", f"output={tmp_path / 'run'}"]
    ended = end(start(unread, words, log=tmp_path / "log"), tmp_path / "log")
    assert ended.code == 128 + signal.SIGHUP
    (line,) = ended.text.splitlines()[-1:]
    assert line.startswith("stopped by SIGHUP after step 11 of 24; checkpoint ")
    assert max(checkpoint.positions(tmp_path / "run" / "checkpoints")).step == 11


def test_the_thread_of_tensorboard_prints_no_traceback_of_a_disk(monkeypatch):
    heard = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    log.quiet_writer.__wrapped__()
    for module, error, told in (
        ("tensorboard.summary.writer", OSError(2, "gone"), 0),
        ("tensorboard.summary.writer", ValueError(), 1),
        ("mine", OSError(), 2),
    ):
        thread = type("Writer", (threading.Thread,), {"__module__": module})()
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, thread)))
        assert len(heard) == told


def test_without_a_run_a_closed_pipe_is_an_error(monkeypatch):
    monkeypatch.setattr("builtins.print", lambda *a, **k: (_ for _ in ()).throw(BrokenPipeError))
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)
    with pytest.raises(BrokenPipeError):
        log.tell("a line")


def test_a_clock_that_is_set_back_changes_no_weight(whole, tmp_path, monkeypatch):
    clock = itertools.count(2e9, -3600)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    main([*SHORT, f"output={tmp_path / 'run'}"])
    one, two = (folder / "export" / "model.safetensors" for folder in (whole, tmp_path / "run"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: 1"),
])  # fmt: skip
def test_no_memory_is_one_line(tmp_path, monkeypatch, capsys, error):
    def step(*arguments):
        raise error

    monkeypatch.setattr(loop, "seed_step", step)
    line = refused(capsys, f"output={tmp_path / 'run'}")
    assert line.startswith("error: not enough memory (")
    assert "train.accumulate" in line


# --------------------------------------------------------------------------- two processes


def ranks_that_differ(tmp_path, first, second):
    """Last lines of two processes, of which the second has other words; both have to be refused."""
    run = Run(tmp_path / "run", *SHORT[len(WORDS) :], *first, processes=2, second=second)
    ended = run.end(300)
    assert [process.code for process in ended] == [2, 2]
    assert not any(process.orphans or "Traceback" in process.text for process in ended)
    return [process.text.splitlines()[-2] for process in ended]  # then the note on the launcher


def test_processes_with_other_recipes_do_not_train(tmp_path):
    for line in ranks_that_differ(tmp_path, [], ["data.num_images=15"]):
        assert line == "error: process 1 and process 0 need the same recipe"


def test_processes_that_see_other_pictures_do_not_train(tmp_path, birds):
    for name in ("one", "two"):
        write_photos(tmp_path / name, birds)
    (tmp_path / "two" / "3.png").unlink()
    words = [[f"data.path={tmp_path / name}", "data.name=birds"] for name in ("one", "two")]
    for line in ranks_that_differ(tmp_path, *words):
        assert line.startswith("error: process 1 and process 0 need the same images: bring the")


def test_a_process_whose_pictures_are_gone_ends_both(tmp_path):
    first, second = ranks_that_differ(tmp_path, [], [f"data.path={tmp_path / 'gone'}"])
    assert "another process of this run has ended" in first
    assert str(tmp_path / "gone") in second


def test_a_process_that_does_not_see_the_checkpoints_ends_both(run, tmp_path):
    for line in ranks_that_differ(tmp_path, [], [f"output={tmp_path / 'other'}"]):
        assert "/checkpoints on a disk that all machines share" in line
