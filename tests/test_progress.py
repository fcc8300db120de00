"""A bar on a terminal, nothing elsewhere."""

import io
import os
import pty
import subprocess
import sys
import termios

import pytest
import torch
from accelerate import Accelerator

from fg_ssl_zoo import progress
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.features.extract import extract
from fg_ssl_zoo.progress import shown
from tests.pictures import Drawings


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error a terminal; to be called in the test, as pytest sets it before that."""

    def start():
        monkeypatch.setattr(progress, "DELAY", 0.0)
        monkeypatch.setattr(progress, "INTERVAL", 0.0)
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return start


def test_a_bar_counts_pictures_to_their_number_and_passes_the_batches_on(terminal):
    screen = terminal()
    assert list(shown(["a", "b", "c"], 130, "features", size=64)) == ["a", "b", "c"]
    said = screen.getvalue()
    for text in ("features", "64/130", "128/130", "130/130", "<"):
        assert text in said
    assert said.endswith("\r")  # removed at the end


@pytest.mark.parametrize("number", ["0", "1"])
def test_there_is_no_bar_without_a_terminal_and_in_further_processes(number, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    if number == "1":
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setenv("RANK", number)
    assert list(shown(range(3), 3, "features")) == [0, 1, 2]
    said = sys.stderr.getvalue() if number == "1" else capsys.readouterr().err
    assert said == ""


def test_features_have_a_bar(terminal, birds):
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", image_size=32)
    pictures = Drawings(*(birds[i]["image"] for i in range(6)))
    screen = terminal()
    extract(backbone, pictures, Accelerator(cpu=True), batch_size=4)
    assert "features" in screen.getvalue()
    assert "6/6" in screen.getvalue()


SLOW = (
    "import time, sys; from fg_ssl_zoo.progress import shown\n"
    "for _ in shown(range({count}), {count}, 'slow'): time.sleep(0.3)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "has_bar"), [(9, True), (2, False)])
def test_a_real_terminal_shows_a_bar_for_what_takes_more_than_two_seconds(count, has_bar):
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (24, 80))  # a bar on a terminal without columns has no room
    code = SLOW.format(count=count)
    subprocess.run([sys.executable, "-c", code], stderr=there, check=True, timeout=60)
    os.close(there)
    said = b""
    while True:
        try:
            piece = os.read(here, 4096)
        except OSError:  # Linux says so when all has been read
            break
        if not piece:
            break
        said += piece
    os.close(here)
    assert (b"slow" in said) == has_bar


@pytest.mark.slow
def test_a_pipe_stays_empty():
    code = SLOW.format(count=9)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
