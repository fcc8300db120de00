"""The commands of docs/reliability.md: short forms in every run, long ones are marked `long`."""

import mmap
import os
import re
import threading

import pytest

from tests.endurance.__main__ import exports, images, kills, line
from tests.endurance.faults import all_faults
from tests.endurance.runs import say
from tests.endurance.steady import FLAT, Samples, growth, steady


def check(rows):
    bad = [line(row) for row in rows if row.is_bad]
    assert not bad, "\n".join(bad)


def test_damaged_pictures_are_decoded_or_refused():
    check([images(60, seed=0)])


def test_damaged_exports_open_or_are_refused_in_one_line(tmp_path):
    check([exports(tmp_path, 25, seed=0)])


def test_what_grows_is_named():
    flat = (100.0, 200.0, 40, 12)
    assert growth([flat, flat, (101.0, 201.0, 40, 12)]) == FLAT
    grown = [(0.0, 0.0, 0, 0), flat, (110.0, 200.0, 41, 13)]
    assert growth(grown) == "10 MB of the main process, 1 open files, 1 threads"


def test_samples_see_memory_files_and_threads(tmp_path):
    before, after, end = Samples(), Samples(), threading.Event()
    before.take(os.getpid(), [])
    with (tmp_path / "open").open("w"):
        threading.Thread(target=end.wait, daemon=True).start()
        kept = mmap.mmap(-1, 32_000_000)  # of the kernel: an allocator may have freed memory left
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
        after.take(os.getpid(), [])
    end.set()
    found = growth([before.row(), before.row(), after.row()])
    assert re.fullmatch(r"3\d(\.\d)? MB of the main process, 1 open files, 1 threads", found)
    kept.close()


@pytest.mark.slow
def test_files_and_threads_of_a_short_run_stay(tmp_path):
    row, windows = steady(tmp_path, 80, count=4)
    assert (row.hung, row.tracebacks) == (0, 0)
    assert len(windows.splitlines()) == 2 + 4, windows
    assert "open files" not in row.message
    assert "threads" not in row.message


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_memory_files_and_threads_of_a_long_run_stay(tmp_path):
    row, windows = steady(tmp_path, 1600)
    assert not row.is_bad, windows


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_as_others(tmp_path, processes):
    check([kills(tmp_path, 6, processes, seed=0)])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_fault_loses_anything(tmp_path):
    check(all_faults(tmp_path, say=lambda row: say(line(row))))
