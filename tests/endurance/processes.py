"""Run a function or a command in a process group of its own and see how it ends."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass

import psutil


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: Exit code, negative for a signal; `None` if it had to be killed.
        text: All it printed.
        seconds: From the start to the end.
        orphans: Processes of its group that outlived it by ten seconds.
    """

    code: int | None
    text: str
    seconds: float
    orphans: list[str]


def members(group):
    """Live processes of a process group."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getpgid(process.pid) == group:
                found.append(process)
    return found


def children(pid):
    """Processes that a process has started itself, oldest first."""
    return sorted(psutil.Process(pid).children(), key=lambda child: child.pid)


def loader_processes(pid):
    """Loader processes of a process: forked from it, so with its own command line."""
    command = psutil.Process(pid).cmdline()
    return [child for child in children(pid) if child.cmdline() == command]


def wait_until(true, seconds=60, every=0.05):
    """Poll until `true()` is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every)
    return value


def _inside(function, arguments, log):
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what `nohup` starts ignores it
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1, encoding="utf-8")
    function(*arguments)


def start(function, *arguments, log):
    """Start a function in a forked process whose output goes to a file."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_inside, args=(function, arguments, log))
    log.touch()
    process.start()
    return process


def end(process, log, seconds=120):
    """Wait for the end of a process of `start`; kill all that is left of its group."""
    began = time.monotonic()
    process.join(seconds)
    code = process.exitcode
    if code is not None:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not members(process.pid), 10)
    orphans = [] if code is None else [" ".join(p.cmdline()) for p in members(process.pid)]
    for member in members(process.pid):
        with contextlib.suppress(psutil.Error):
            member.send_signal(signal.SIGKILL)
    process.join()
    return Ended(code, log.read_text(encoding="utf-8"), time.monotonic() - began, orphans)
