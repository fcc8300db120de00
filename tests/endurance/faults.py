"""What may befall a run, each with what the same command has to do about it afterwards."""

import contextlib
import os
import resource
import shutil
import signal
import time
from dataclasses import dataclass

from tests.endurance.processes import loader_processes, wait_until
from tests.endurance.runs import Run, difference, result, say


@dataclass
class Row:
    """One line of the table.

    Attributes:
        fault: What was done.
        tried: How often.
        lost, hung, tracebacks, different: How often that happened; all have to be 0.
        message: What the process said last.
    """

    fault: str
    tried: int = 0
    lost: int = 0
    hung: int = 0
    tracebacks: int = 0
    different: int = 0
    message: str = ""

    @property
    def is_bad(self):
        return bool(self.lost or self.hung or self.tracebacks or self.different or not self.tried)

    def take(self, ended):
        """Count how processes ended."""
        for process in ended:
            self.hung += process.code is None or bool(process.orphans)
            if "Traceback" in process.text:
                self.tracebacks += 1
                say(process.text[process.text.index("Traceback") :][:3000])
        lines = [line for process in ended for line in process.text.splitlines() if line.strip()]
        self.message = lines[-1] if lines else ""


def at_step(run, step):
    wait_until(lambda: run.steps >= step or not run.is_alive, 300)


def stop(number):
    return lambda run: (at_step(run, 4), run.kill(number))


def kill_worker(run):
    at_step(run, 4)
    loader_processes(run.processes[0].pid)[-1].kill()


def one_rank(number):
    return lambda run: (at_step(run, 4), run.kill(number, ranks=1))


def newest(folder):
    return max((folder / "checkpoints").glob("*.pt"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_all(folder):
    for path in (folder / "checkpoints").glob("*.pt"):
        flip(path)


def tear(folder):
    """As a power cut tears it: lines up to the checkpoint were on the disk before it."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "train/lo')


LIVE = {
    "SIGTERM": ([], stop(signal.SIGTERM), [143]),
    "SIGINT": ([], stop(signal.SIGINT), [130]),
    "SIGHUP": ([], stop(signal.SIGHUP), [129]),
    "kill -9": ([], stop(signal.SIGKILL), [-9]),
    "kill -9 of a loader worker": (["data.num_workers=3"], kill_worker, [2]),
    "SIGTERM, two processes": ([], stop(signal.SIGTERM), [143, 143]),
    "kill -9 of one of two processes": ([], one_rank(signal.SIGKILL), [-9, 2]),
}
"""Done to a live run, with the exit codes of its processes.

The same command then has to go on and end as if nothing had been.
"""

AT_REST = {
    "newest checkpoint damaged": lambda folder: flip(newest(folder)),
    "newest checkpoint cut": lambda folder: os.truncate(newest(folder), 1000),
    "newest checkpoint empty": lambda folder: os.truncate(newest(folder), 0),
    "last line of metrics.jsonl torn": tear,
    "recipe.yaml empty": lambda folder: os.truncate(folder / "recipe.yaml", 0),
    "data.json damaged": lambda folder: (folder / "data.json").write_text("{"),
    "file of a write that was cut": lambda folder: (
        folder / "checkpoints" / "stage0_round0_step00000099.partial"
    ).write_bytes(b"1"),
}
"""Done to the files of a stopped run, which then has to go on and end as if nothing had been."""

REFUSED = {
    "all checkpoints damaged": (damage_all, "overwrite=true"),
    "checkpoints/ gone": (lambda folder: shutil.rmtree(folder / "checkpoints"), "overwrite=true"),
}
"""Done to a stopped run, which then has to be refused with what to do."""


@contextlib.contextmanager
def no_space(most):
    """A disk that takes no file above so many bytes, for this process and those it starts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def goes_on(row, folder, reference, processes=1, words=()):
    """Run the same command again and compare."""
    ended = Run(folder, *words, processes=processes).end()
    row.take(ended)
    if any(process.code for process in ended):
        row.lost += 1
    elif place := difference(reference, result(folder)):
        row.different += 1
        row.message = f"{place} differs"


def all_faults(root, say):
    """The rows of all faults; `root` is an empty folder."""
    references = {}
    for processes in (1, 2):
        folder = root / f"reference{processes}"
        Run(folder, processes=processes).end()
        references[processes] = result(folder)
    for name, (words, harm, codes) in LIVE.items():
        row, processes = Row(name, 1), len(codes)
        folder = root / "live"
        run = Run(folder, *words, processes=processes)
        harm(run)
        ended = run.end()
        row.take(ended)
        said = row.message
        if (found := [process.code for process in ended]) == codes:
            goes_on(row, folder, references[processes], processes, words)
        else:
            row.lost, said = 1, f"exit codes {found}, not {codes}: {said}"
        row.message = row.message if row.different else said
        shutil.rmtree(folder)
        say(row)
        yield row
    stopped = root / "stopped"
    run = Run(stopped)
    at_step(run, 10)
    run.kill(signal.SIGKILL)
    run.end()
    for name, harm in AT_REST.items():
        row, folder = Row(name, 1), root / "rest"
        shutil.copytree(stopped, folder)
        harm(folder)
        goes_on(row, folder, references[1])
        shutil.rmtree(folder)
        say(row)
        yield row
    for name, (harm, remedy) in REFUSED.items():
        row, folder = Row(name, 1), root / "refused"
        shutil.copytree(stopped, folder)
        harm(folder)
        ended = Run(folder).end()
        row.take(ended)
        row.lost += ended[0].code != 2 or remedy not in ended[0].text
        shutil.rmtree(folder)
        say(row)
        yield row
    yield from _places(root, say, references[1])


def _places(root, say, reference):
    row, folder = Row("no space for a checkpoint", 1), root / "full"
    with no_space(1_000_000):  # checkpoints are 3 MB
        run = Run(folder)
    ended = run.end()
    row.take(ended)
    said = row.message
    row.lost += ended[0].code != 2
    goes_on(row, folder, reference)
    row.message = row.message if row.is_bad else said
    say(row)
    yield row
    row = Row("output=/dev/null", 1)
    ended = Run(root / "null", "output=/dev/null").end()
    row.take(ended)
    row.lost += ended[0].code != 2
    say(row)
    yield row
    row, folder = Row("a second run in the folder of a live one", 1), root / "twice"
    first = Run(folder)
    at_step(first, 2)
    ended = Run(folder.with_name("twice2"), f"output={folder}", "overwrite=true").end()
    row.take(ended)
    row.lost += ended[0].code != 2 or "is in use by process" not in ended[0].text
    first.end()
    if place := difference(reference, result(folder)):
        row.different, row.message = 1, place
    say(row)
    yield row
    row, folder = Row("the run's folder vanishes", 1), root / "gone"
    run = Run(folder)
    at_step(run, 4)
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    ended = run.end()
    row.take(ended)
    shutil.rmtree(folder, ignore_errors=True)
    say(row)
    yield row
