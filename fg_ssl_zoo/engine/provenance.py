"""Where a result comes from: commit, versions, hardware."""

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fg_ssl_zoo.engine.hardware import CPU_INFO

_PACKAGES = (
    "fg-ssl-zoo",
    "torch",
    "timm",
    "accelerate",
    "transformers",
    "numpy",
    "opencv-python-headless",
)


def commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` with changes; `None` if installed."""
    folder = Path(__file__).parent.parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def versions() -> dict[str, str]:
    """Python and the packages that a number could depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder, or another build of the same library
        return "not installed under this name"


def describe_hardware() -> str:
    """The accelerator, or the processor; its threads are a switch of the run."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return _processor()


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", CPU_INFO.read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()
