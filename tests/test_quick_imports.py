"""The imports that a training begins with leave Python's collector as they found it."""

import gc
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import fg_ssl_zoo

FILE = str(Path(fg_ssl_zoo.__file__).parent / "quick_imports.py")


@pytest.fixture
def collector():
    """Python's garbage collector, on and with nothing frozen before and after the test."""
    gc.unfreeze()
    yield gc
    gc.unfreeze()
    gc.enable()


def test_a_collector_that_is_on_is_on_again(collector):
    runpy.run_path(FILE)
    assert collector.isenabled()
    assert not collector.get_freeze_count()


def test_a_collector_that_is_off_stays_off(collector):
    collector.disable()
    runpy.run_path(FILE)
    assert not collector.isenabled()


def test_what_the_caller_has_frozen_stays_frozen(collector):
    collector.freeze()
    runpy.run_path(FILE)
    assert collector.get_freeze_count()


@pytest.mark.slow  # a new process, without any of the libraries
def test_a_training_begins_with_them():
    program = (
        "import gc, sys\n"
        "seen = []\n"
        "gc.callbacks.append(lambda phase, about: seen.append((about['generation'], 'timm' in "
        "sys.modules and 'fg_ssl_zoo.data' not in sys.modules)))\n"
        "import fg_ssl_zoo.pretrain\n"
        "assert (2, True) not in seen, seen\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
