"""The imports that a training begins with leave Python's collector as they found it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("before", "is_on", "frozen"),
    [("", True, False), ("gc.disable()", False, False), ("gc.freeze()", True, True)],
)
def test_the_collector_is_as_before(before, is_on, frozen):
    program = (
        f"import gc\n{before}\nimport fg_ssl_zoo.quick_imports\n"
        f"assert gc.isenabled() is {is_on}\nassert bool(gc.get_freeze_count()) is {frozen}\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


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
