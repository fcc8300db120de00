"""Faults by the dozen: `python -m tests.endurance --kills 30 --processes 2 --faults all ...`.

Prints a table and ends with status 1 on any loss, hang, traceback or silent difference. Seeds are
printed and make the same draws again.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from fg_ssl_zoo.backbones.create import create_backbone, open_backbone
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.data.decode import decode
from fg_ssl_zoo.data.sample import CorruptImage
from fg_ssl_zoo.hub.export import export
from tests.endurance.faults import Row, all_faults
from tests.endurance.processes import loader_processes
from tests.endurance.runs import Run, difference, result, say
from tests.endurance.steady import steady


def kills(root, count, processes, seed, loaders=False):
    """Kill runs at random moments until `count` kills were made; compare every end.

    With `loaders`, one of three loader processes is killed, and the run has to end by itself.
    """
    draw, runs = random.Random(seed), 0
    who = "one of three loader processes" if loaders else f"{processes} process(es)"
    kill, check = (kill_loader, ends_itself) if loaders else (kill_run, leaves_none)
    row = Row(f"kill -9, {who}, seed {seed}")
    words = ["data.num_workers=3"] if loaders else []
    began = time.monotonic()
    reference = root / "reference"
    Run(reference, *words, processes=processes).end()
    seconds, reference = time.monotonic() - began, result(reference)
    while row.tried < count:
        folder = root / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        while True:
            run = Run(folder, *words, processes=processes)
            until = time.monotonic() + draw.uniform(0.05, 1.0) * seconds
            while run.is_alive and time.monotonic() < until and row.tried < count:
                time.sleep(0.02)
            if row.tried >= count or not kill(run, draw):
                break
            check(row, run.end())
            row.tried += 1
        ended = run.end()
        row.take(ended)
        if any(process.code for process in ended):
            row.lost += 1
        elif place := difference(reference, result(folder)):
            row.different += 1
            say(f"{place} differs")
        runs += 1
        say(f"{row.tried} kills, {runs} runs; {line(row)}")
    row.message = f"{runs} runs"
    return row


def kill_run(run, _):
    """Kill the processes of a run; whether it was still alive."""
    alive = run.is_alive
    run.kill(signal.SIGKILL)
    return alive


def leaves_none(row, ended):
    """Count a killed run that leaves processes."""
    row.hung += any(process.orphans for process in ended)


def kill_loader(run, draw):
    """Kill a loader process of a run; whether there was one."""
    with contextlib.suppress(psutil.Error):  # the run, or the process, has ended since
        if found := loader_processes(run.processes[0].pid):
            draw.choice(found).kill()
            return True
    return False


def ends_itself(row, ended):
    """Count a run without a loader process that does not say so, unless it was complete."""
    row.take(ended)
    said = row.message.startswith("error: a process that loads images has ended")
    if not (ended[0].code == 0 or (ended[0].code == 2 and said)):
        row.lost += 1
        say(f"exit code {ended[0].code}: {row.message}")


def fuzz(name, count, seed, strategy, check):
    """Give `count` drawn inputs to `check`, which raises where it should not."""
    row = Row(f"{name}, seed {seed}", count)

    @seeded(seed)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def try_all(drawn):
        check(drawn)

    try:
        try_all()
    except Exception as error:
        row.tracebacks += 1
        row.message = " ".join(str(error).split())[:200] or type(error).__name__
    return row


def changed(content):
    """Strategy of files that are nearly `content`: bytes replaced, cut and repeated."""
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)

    def change(drawn):
        edits, cut, start = drawn
        found = bytearray(content)
        for place, value in edits:
            found[place] = value
        return bytes(found[start:cut])

    return st.tuples(
        places, st.sampled_from([None, -1, -100, len(content) // 2]), st.sampled_from([0, 0, 0, 1])
    ).map(change)


def images(count, seed):
    """Damaged images: decoded, or refused as unreadable."""
    import cv2

    picture = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    kinds = [".jpg", ".png", ".webp", ".bmp", ".tiff"]
    whole = [cv2.imencode(kind, picture)[1].tobytes() for kind in kinds]

    def check(encoded):
        refused = "a line"
        try:
            found = decode(encoded, "drawn")
            assert (found.dtype, found.ndim) == (np.uint8, 3)
        except CorruptImage as error:
            refused = str(error)
        assert len(refused.splitlines()) == 1

    return fuzz("damaged images", count, seed, st.one_of(*map(changed, whole)), check)


def exports(root, count, seed):
    """Damaged exported folders: opened, or refused in one line."""
    recipe = load_recipe(overrides=["backbone=test_resnet", "data.image_size=64"])
    rows = [{"name": name, "init": "scratch", "knn_top1": 0.5} for name in ("untrained", "trained")]
    results = {"rows": rows, "seed": 0, "commit": "0123abc", "papers": []}
    backbone = create_backbone("test_resnet", image_size=64)
    folder = export(backbone, root / "export", recipe, results)
    files = ["config.json", "model.safetensors"]
    whole = {file: (folder / file).read_bytes() for file in files}
    head = 8 + int.from_bytes(whole["model.safetensors"][:8], "little")

    def check(drawn):
        file, content = drawn
        for name, original in whole.items():
            (folder / name).write_bytes(content if name == file else original)
        refused = "a line"
        try:
            open_backbone(f"local-dir:{folder}")
        except ValueError as error:
            refused = str(error)
        assert len(refused.splitlines()) == 1, refused

    weights = whole["model.safetensors"]
    drawn = st.one_of(
        changed(whole["config.json"]).map(lambda content: ("config.json", content)),
        changed(weights[:head]).map(lambda start: ("model.safetensors", start + weights[head:])),
    )
    return fuzz("damaged exports", count, seed, drawn, check)


def recipes(root, count, seed):
    """Recipes of any form: read, or refused in one line."""
    from tests.test_any_recipe import try_all

    row = Row(f"recipes of any form: words, files, contents, seed {seed}", 3 * count)
    try:
        try_all(root, count, seed)
    except Exception as error:
        row.tracebacks, row.message = 1, " ".join(str(error).split())[:200]
    return row


def main():
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--kills", type=int, default=0, help="kill -9 of training runs")
    parser.add_argument("--processes", type=int, default=1, help="of the runs that are killed")
    parser.add_argument("--loader-kills", type=int, default=0, help="kill -9 of loader processes")
    parser.add_argument("--faults", choices=["all"], help="each fault once")
    parser.add_argument("--images", type=int, default=0, help="damaged images")
    parser.add_argument("--recipes", type=int, default=0, help="recipes of any form")
    parser.add_argument("--exports", type=int, default=0, help="damaged exported folders")
    parser.add_argument("--steps", type=int, default=0, help="of a run whose memory is watched")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if chosen.kills:
            rows.append(kills(root, chosen.kills, chosen.processes, chosen.seed))
        if chosen.loader_kills:
            rows.append(kills(root, chosen.loader_kills, 1, chosen.seed, loaders=True))
        if chosen.faults:
            (root / "faults").mkdir()
            rows += all_faults(root / "faults", lambda row: say(line(row)))
        if chosen.images:
            rows.append(images(chosen.images, chosen.seed))
        if chosen.recipes:
            (root / "recipes").mkdir()
            rows.append(recipes(root / "recipes", chosen.recipes, chosen.seed))
        if chosen.exports:
            rows.append(exports(root, chosen.exports, chosen.seed))
        if chosen.steps:
            row, windows = steady(root, chosen.steps)
            rows.append(row)
            sys.stdout.write(f"{windows}\n\n")
    titles = "| what | tried | lost | hung | tracebacks | silent differences | last line |"
    sys.stdout.write(f"{titles}\n| --- | ---: | ---: | ---: | ---: | ---: | --- |\n")
    sys.stdout.write("".join(f"{line(row)}\n" for row in rows))
    raise SystemExit(any(row.is_bad for row in rows) or not rows)


def line(row):
    """A row of the table."""
    counts = (row.tried, row.lost, row.hung, row.tracebacks, row.different)
    return f"| {row.fault} | {' | '.join(map(str, counts))} | {row.message.replace('|', '/')} |"


if __name__ == "__main__":
    main()
