"""Scripts of the repository as modules, so that a test calls their functions."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent


@contextmanager
def imported(script: str) -> Iterator[ModuleType]:
    """The module of a script such as `benchmarks/step.py`, until the block ends."""
    spec = importlib.util.spec_from_file_location(script.replace("/", "_"), ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]
