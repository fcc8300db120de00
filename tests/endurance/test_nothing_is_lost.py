"""Files of a run that are cut, damaged or gone; two runs in one folder; a stop at any time."""

import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.config import Data, disk_error, load_recipe, set_aside, to_yaml, write_whole
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.engine import checkpoint, loop
from fg_ssl_zoo.engine.checkpoint import CheckpointError, Position
from fg_ssl_zoo.engine.log import drop_from
from fg_ssl_zoo.engine.loop import TooManyCorruptImages, fit
from fg_ssl_zoo.engine.run_folder import RunFolder, RunFolderTaken
from fg_ssl_zoo.engine.signals import AGREE_WITHIN, Interrupted, Signals, ending_at_once
from fg_ssl_zoo.evaluation import table
from fg_ssl_zoo.evaluation.evaluate import evaluate
from fg_ssl_zoo.evaluation.protocols import PROTOCOLS
from fg_ssl_zoo.pretrain import main
from tests.endurance.processes import end, start, wait_until
from tests.engine.test_loop import assert_equal, job_in, method_for, trained
from tests.pictures import write_photos
from tests.runs import launch

STATE = {"method": {"weight": torch.arange(64.0)}, "record": {"images_seen": 8}}


# --------------------------------------------------------------------------- files


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


# --------------------------------------------------------------------------- checkpoints


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


# --------------------------------------------------------------------------- the folder


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


# --------------------------------------------------------------------------- pictures


class Unreadable:
    """Birds of which some cannot be read."""

    def __init__(self, birds, bad):
        self.birds, self.bad = birds, bad
        self.name, self.classes, self.labels = birds.name, birds.classes, birds.labels

    def __len__(self):
        return len(self.birds)

    def __getitem__(self, index):
        if index in self.bad:
            raise CorruptImage(f"picture {index}.jpg is gone")
        return self.birds[index]


def train_with_bad_pictures(path, birds, share):
    loop.MOST_CORRUPT = share
    try:
        trained(path, Unreadable(birds, {3, 11}), train={"steps": 4})
    except TooManyCorruptImages as error:
        (path / f"refused{os.getpid()}").write_text(str(error))


def test_unreadable_pictures_of_both_processes_are_counted_once_in_one_file(tmp_path, birds):
    launch(train_with_bad_pictures, tmp_path / "some", birds, 0.5)
    lines = (tmp_path / "some" / "corrupt_images.txt").read_text().splitlines()
    assert sorted(lines) == ["picture 11.jpg is gone", "picture 3.jpg is gone"]
    launch(train_with_bad_pictures, tmp_path / "many", birds, 0.1)  # each saw one: 0.0625
    refused = list((tmp_path / "many").glob("refused*"))
    assert len(refused) == 2
    assert all(path.read_text().startswith("2 of 16 images cannot be decoded") for path in refused)


def test_a_picture_that_is_deleted_in_a_run_is_skipped_and_named(tmp_path, birds, monkeypatch):
    write_photos(tmp_path / "photos", birds)
    save = checkpoint.save

    def save_and_delete(*arguments):
        (tmp_path / "photos" / "3.png").unlink(missing_ok=True)
        return save(*arguments)

    monkeypatch.setattr(loop, "MOST_CORRUPT", 0.1)
    monkeypatch.setattr(checkpoint, "save", save_and_delete)
    run = tmp_path / "run"
    words = [
        "backbone=test_resnet", f"data={{path: {tmp_path / 'photos'}, image_size: 64}}",
        "stages[0].options={hidden_size: 16, projection_size: 8}", f"output={run}",
        "stages[0].train={steps: 6, batch_size: 8, optimizer: sgd}", "monitor={every: 9, k: 3}",
    ]  # fmt: skip
    main(words)
    assert "3.png" in (run / "corrupt_images.txt").read_text()
    results = json.loads((run / "export" / "results.json").read_text())
    assert results["data"]["num_unreadable"] == 1


# --------------------------------------------------------------------------- stops


def test_a_stop_in_a_measurement_keeps_the_step_and_measures_when_it_goes_on(tmp_path, birds):
    method = method_for()
    job = job_in(tmp_path / "cut", birds, method, measure_every=1)
    measures = []

    def measure():
        measures.append(len(list(job.folder.checkpoints.glob("*.pt"))))
        if len(measures) == 2:
            signal.raise_signal(signal.SIGTERM)
        return {"eval/x": float(len(measures))}

    job.measure = measure
    with pytest.raises(Interrupted) as stopped:
        fit(method, job)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 2 of 6; checkpoint" in stopped.value.message
    assert measures == [0, 1]  # the checkpoint was there before the measurement
    again = method_for()
    found, state = checkpoint.newest(tmp_path / "cut" / "checkpoints")
    assert found == Position(step=2)
    job = job_in(tmp_path / "cut", birds, again, measure_every=1, measure=lambda: {"eval/x": 7.0})
    job.record.measurements = state["record"]["measurements"]
    fit(again, job)
    assert [m["step"] for m in job.record.measurements] == [0, 2, 4, 6]
    whole = trained(tmp_path / "whole", birds, measure=lambda: {"eval/x": 0.0}, measure_every=1)
    assert_equal(again.state_dict(), whole)


def test_a_stop_before_the_first_step_says_so(tmp_path, birds):
    method = method_for()
    job = job_in(tmp_path, birds, method)
    job.measure = lambda: signal.raise_signal(signal.SIGHUP)
    with pytest.raises(Interrupted) as stopped:
        fit(method, job)
    assert stopped.value.message.startswith("stopped by SIGHUP before a step. Run the same command")


def test_outside_of_training_a_signal_unwinds():
    with pytest.raises(Interrupted) as stopped, ending_at_once("go on"):
        signal.raise_signal(signal.SIGTERM)
    assert (stopped.value.message, stopped.value.code) == ("stopped by SIGTERM; go on", 143)


class Two(Accelerator):
    """An accelerator of two processes, of which the other one takes `seconds` for a step."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, seconds, number=0):
        self.other = torch.tensor([[float(number), seconds, 1.0]])

    def gather(self, mine):
        return torch.cat([mine.float(), self.other])


@pytest.mark.parametrize(("seconds", "between"), [(2**-10, 4096), (0.5, 8), (3.0, 1), (60.0, 1)])
def test_processes_agree_after_seconds_and_not_after_steps(seconds, between):
    signals = Signals(Two(seconds, signal.SIGTERM))
    with signals:
        assert signals.due(1)
        assert signals.agreed(1, 0.0001, news=2) == (signal.SIGTERM, 3)
    asked = next(done for done in range(2, 9999) if signals.due(done))
    assert asked == 1 + between
    assert between == 1 or between * seconds <= AGREE_WITHIN


def test_the_end_of_the_launcher_stops_the_run(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with Signals(Accelerator(cpu=True)) as signals:
        assert signals.agreed(1, 1.0) == (0, 0)
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert signals.agreed(2, 1.0) == (signal.SIGTERM, 0)
        assert signals.name == "the end of its launcher"


def test_the_end_of_a_shell_does_not(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with Signals(Accelerator(cpu=True)) as signals:
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert signals.agreed(1, 1.0) == (0, 0)


# --------------------------------------------------------------------------- evaluation


def scored(tmp_path):
    return evaluate(
        ["test_resnet@scratch"],
        Data(name="drawn", num_images=24, num_classes=4, image_size=48),
        Accelerator(cpu=True),
        protocols=["knn", "retrieval"],
        cache=tmp_path / "cache",
        unfinished=tmp_path / "unfinished",
    )


def test_a_stopped_evaluation_goes_on_from_the_scores_it_has(tmp_path, monkeypatch):
    def stop(task, *options):
        raise KeyboardInterrupt

    retrieval, knn = PROTOCOLS["retrieval"], PROTOCOLS["knn"]
    monkeypatch.setitem(PROTOCOLS, "retrieval", replace(retrieval, run=stop))
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "retrieval", retrieval)
    monkeypatch.setitem(PROTOCOLS, "knn", replace(knn, run=stop))
    again = scored(tmp_path)
    monkeypatch.setitem(PROTOCOLS, "knn", knn)
    for path in (tmp_path / "unfinished").iterdir():
        path.write_text("[")  # set aside and scored again
    whole = scored(tmp_path)
    assert table.as_plain(again)["rows"] == table.as_plain(whole)["rows"]
    assert len(list((tmp_path / "unfinished").glob("*.unreadable"))) == 2
