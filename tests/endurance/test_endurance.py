"""The commands of docs/reliability.md: short forms in every run, long ones among the slow tests."""

import pytest

from tests.endurance.__main__ import exports, images, kills, line
from tests.endurance.faults import all_faults
from tests.endurance.runs import say


def check(rows):
    bad = [line(row) for row in rows if row.is_bad]
    assert not bad, "\n".join(bad)


def test_damaged_pictures_are_decoded_or_refused():
    check([images(60, seed=0)])


def test_damaged_exports_open_or_are_refused_in_one_line(tmp_path):
    check([exports(tmp_path, 25, seed=0)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_end_as_others(tmp_path, processes):
    check([kills(tmp_path, 6, processes, seed=0)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_fault_loses_anything(tmp_path):
    check(all_faults(tmp_path, say=lambda row: say(line(row))))
