"""A stop at any time: in a step, in a measurement, in an evaluation, of one process of two."""

import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.engine import checkpoint, hardware, loop, signals
from fg_ssl_zoo.engine.checkpoint import Position
from fg_ssl_zoo.engine.loop import fit
from fg_ssl_zoo.engine.signals import AGREE_WITHIN, Interrupted, Signals, ending_at_once
from fg_ssl_zoo.evaluation import table
from fg_ssl_zoo.evaluation.evaluate import evaluate
from fg_ssl_zoo.evaluation.protocols import PROTOCOLS
from fg_ssl_zoo.pretrain import main, run
from tests.engine.test_loop import assert_equal, job_in, method_for, trained
from tests.runs import Measures


@pytest.mark.slow
def test_a_stop_in_a_measurement_keeps_the_step_and_measures_when_it_goes_on(tmp_path, birds):
    method = method_for()
    job = job_in(tmp_path / "cut", birds, method)
    measures = []

    def measure():
        measures.append(len(list(job.folder.checkpoints.glob("*.pt"))))
        if len(measures) == 2:
            signal.raise_signal(signal.SIGTERM)
        return {"eval/x": float(len(measures))}

    job.measuring = Measures(measure, every=1)
    with pytest.raises(Interrupted) as stopped:
        fit(method, job)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 2 of 6; checkpoint" in stopped.value.message
    assert measures == [0, 1]  # the checkpoint was there before the measurement
    again = method_for()
    found, state = checkpoint.newest(tmp_path / "cut" / "checkpoints")
    assert found == Position(step=2)
    job = job_in(
        tmp_path / "cut", birds, again, measuring=Measures(lambda: {"eval/x": 7.0}, every=1)
    )
    job.record.measurements = state["record"]["measurements"]
    fit(again, job)
    assert [m["step"] for m in job.record.measurements] == [0, 2, 4, 6]
    whole = trained(tmp_path / "whole", birds, measuring=Measures(lambda: {"eval/x": 0.0}, every=1))
    assert_equal(again.state_dict(), whole)


def test_a_stop_before_the_first_step_says_so(tmp_path, birds):
    method = method_for()
    job = job_in(tmp_path, birds, method)
    job.measuring = Measures(lambda: signal.raise_signal(signal.SIGTERM))  # nohup ignores SIGHUP
    with pytest.raises(Interrupted) as stopped:
        fit(method, job)
    assert stopped.value.message.startswith(
        "stopped by SIGTERM before a step. Run the same command"
    )


def twice(tmp_path, birds, monkeypatch):
    """Training to which SIGTERM comes twice in its second step."""
    seed_step = loop.seed_step

    def seed_and_stop(seed, position, step, rank):
        for _ in range(2 * (step == 1)):
            signal.raise_signal(signal.SIGTERM)
        seed_step(seed, position, step, rank)

    monkeypatch.setattr(loop, "seed_step", seed_and_stop)
    method = method_for()
    fit(method, job_in(tmp_path, birds, method))


def test_a_signal_to_process_and_group_counts_once(tmp_path, birds, monkeypatch):
    with pytest.raises(Interrupted, match="143"):
        twice(tmp_path, birds, monkeypatch)
    assert checkpoint.newest(tmp_path / "checkpoints")[0] == Position(step=2)


def test_a_second_signal_after_a_while_stops_at_once(tmp_path, birds, monkeypatch):
    monkeypatch.setattr(signals, "AT_ONCE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        twice(tmp_path, birds, monkeypatch)


def tidy_up(done):
    with ending_at_once("go on"):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            done.append(True)


def test_a_repeated_signal_does_not_disturb_what_is_tidied_up():
    done = []
    with pytest.raises(Interrupted):
        tidy_up(done)
    assert done


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
        monkeypatch.setattr(os, "getppid", lambda: -1)
        assert signals.agreed(2, 1.0) == (signal.SIGTERM, 0)
        assert signals.name == "the end of its launcher"


def test_the_end_of_a_shell_does_not(monkeypatch):
    for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with Signals(Accelerator(cpu=True)) as signals:
        monkeypatch.setattr(os, "getppid", lambda: -1)
        assert signals.agreed(1, 1.0) == (0, 0)


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


# --------------------------------------------------------------------------- other code, processes


def stopped(tmp_path, monkeypatch, at_step=2):
    """A run that SIGTERM stops after a step; the words that go on with it."""
    words = [
        "backbone=test_resnet", f"output={tmp_path / 'run'}", "monitor={every: 9, k: 3}",
        "data={name: drawn, image_size: 64, num_images: 16, num_classes: 4, num_workers: 0}",
        "stages[0].options={hidden_size: 16, projection_size: 8}",
        "stages[0].train={steps: 4, batch_size: 8, optimizer: sgd}",
    ]  # fmt: skip
    seed_step = loop.seed_step

    def seed_and_stop(seed, position, step, rank):
        if step == at_step - 1:
            signal.raise_signal(signal.SIGTERM)
        seed_step(seed, position, step, rank)

    monkeypatch.setattr(loop, "seed_step", seed_and_stop)
    with pytest.raises(Interrupted):
        main(words)
    monkeypatch.setattr(loop, "seed_step", seed_step)
    return words


@pytest.mark.slow
def test_results_name_the_commits_and_processes_of_all_parts_of_a_run(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(run, "commit", lambda: "aaaaaaaaaaaa")
    monkeypatch.setattr(run.Run, "processes", "2 processes")
    words = stopped(tmp_path, monkeypatch)
    monkeypatch.setattr(run, "commit", lambda: "bbbbbbbbbbbb-dirty")
    monkeypatch.setattr(run.Run, "processes", "1 process")
    capsys.readouterr()
    main(words)
    said = capsys.readouterr().out
    assert "# other code than before: aaaaaaaaaaaa then, bbbbbbbbbbbb-dirty now." in said
    assert re.search(r"# other hardware than before: 2 processes; .* then, 1 process; .* now", said)
    assert said.count("Weights may differ from those of an uninterrupted run in their last") == 2
    for folder in (tmp_path / "run", tmp_path / "run" / "export"):
        results = json.loads((folder / "results.json").read_text())
        assert results["commits"] == ["aaaaaaaaaaaa", "bbbbbbbbbbbb-dirty"]
        assert re.search(r"2 processes; cpu, .* then 1 process; cpu, ", results["hardware"])


def test_another_precision_is_refused_when_a_run_goes_on(tmp_path, monkeypatch, capsys):
    words = stopped(tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main([*words, "speed.precision=bf16"])
    assert ended.value.code == 2
    assert "differs in speed.precision (auto there, bf16 here)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_chosen_precision_that_another_machine_has_not_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: True)
    words = stopped(tmp_path, monkeypatch)
    monkeypatch.setattr(hardware, "has_native_bf16", lambda device: False)
    main(words)
    assert re.search(
        r"other hardware .* cpu, bf16, .* then, .* cpu, fp32, ", capsys.readouterr().out
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert re.search(r"cpu, bf16, .* then 1 process; cpu, fp32, ", results["hardware"])
