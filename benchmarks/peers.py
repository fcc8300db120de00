"""fg_ssl_zoo beside other libraries: images per core-second of SimCLR on a CPU.

    python benchmarks/peers.py FOLDER --environments FOLDER [--install] [--turns 5]
                               [--rows data,step_vit] [--only ours lightly] [--out FILE.json]

The first folder has one folder of JPEGs for each class. Every library has a Python environment of
its own, in a folder of its name below `--environments`, or given by `--python NAME=PATH`;
`--install` makes those that are missing with `uv` (`--turns 0` measures nothing). A library that
cannot be run stays in the table with the reason.

Each figure comes from a fresh process with one thread that trains through the library's public
interface (`peer_drivers/`, one file for each); the libraries take turns, in reversed order in every
second turn. Time is processor time of the process and its children (`peer_drivers/clock.py`). This
package and the drivers are compiled first, as the libraries are where `--install` puts them.

    step_...   the training step: forward, backward, optimizer; images are loaded in the process
    data_...   the data path: everything between two steps, with timm's smallest network as backbone
    run        both together (a figure of every row; the table shows that of step_resnet18)
    first      processor seconds from the start of the process to the end of the first step

A ratio is the median over the turns of this library's figure divided by lightly's in the same turn.
"""

import argparse
import compileall
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fg_ssl_zoo.engine.provenance import commit, describe_hardware

ROOT = Path(__file__).parent.parent
DRIVERS = Path(__file__).parent / "peer_drivers"


@dataclass(frozen=True)
class Contestant:
    """A column of the measurement.

    Attributes:
        driver: Script in `peer_drivers/`.
        environment: Name of its Python environment; that of this command where there is none.
        bf16: Whether the library's own option for bf16 is switched on.
    """

    driver: str
    environment: str | None = None
    bf16: bool = False


@dataclass(frozen=True)
class Setting:
    """What is trained."""

    backbone: str
    image_size: int
    batch_size: int
    workers: int = 0


CONTESTANTS = {
    "ours": Contestant("ours.py"),
    "bare loop": Contestant("bare.py"),
    "lightly": Contestant("with_lightly.py", "lightly"),
    "lightly bf16": Contestant("with_lightly.py", "lightly", bf16=True),
    "lightly-train": Contestant("with_lightly_train.py", "lightly-train"),
    "lightly-train bf16": Contestant("with_lightly_train.py", "lightly-train", bf16=True),
    "stable-pretraining": Contestant("with_stable_pretraining.py", "stable-pretraining"),
    "stable-pretraining bf16": Contestant(
        "with_stable_pretraining.py", "stable-pretraining", bf16=True
    ),
}
REQUIREMENTS = {
    "lightly": "lightly==1.6.0",
    "lightly-train": "lightly-train[timm]==0.18.0",
    "stable-pretraining": "stable-pretraining==0.1.8",
}
NOT_DRIVEN = {
    "solo-learn": "its newest release on PyPI (1.0.2) needs torch 1.9.1 and pytorch-lightning "
    "1.4.7, and fails on import with current versions",
}
SETTINGS = {
    "step_resnet18": Setting("resnet18", 96, 64),
    "step_vit_tiny": Setting("vit_tiny_patch16_224", 96, 64),
    "step_resnet50": Setting("resnet50", 96, 32),
    "data_96": Setting("test_resnet", 96, 64),
    "data_96_workers": Setting("test_resnet", 96, 64, workers=2),
    "data_224": Setting("test_resnet", 224, 64),
    "data_224_workers": Setting("test_resnet", 224, 64, workers=2),
}
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "WANDB_MODE": "disabled",
}
"""One thread each; no GPU, no network."""


def main() -> None:
    """Measure in turns, print the tables, and write the figures after each turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, metavar="FOLDER")
    parser.add_argument("--environments", type=Path, metavar="FOLDER")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--install", action="store_true", help="make missing environments")
    parser.add_argument("--rows", default="step,data", help=f"beginnings of {', '.join(SETTINGS)}")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(CONTESTANTS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10, help="steps that count; data: twice")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of one process")
    parser.add_argument("--quick", action="store_true", help="two steps of eight images, one turn")
    parser.add_argument("--out", type=Path, help="a .json file")
    chosen = parser.parse_args()
    settings = {k: v for k, v in SETTINGS.items() if k.startswith(tuple(chosen.rows.split(",")))}
    if not settings:
        parser.error(f"--rows: beginnings of {', '.join(SETTINGS)}, with commas")
    unknown = set(chosen.only or ()) - {*CONTESTANTS}
    if unknown:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}")
    names = sorted(path for path in chosen.images.rglob("*") if path.suffix in (".jpg", ".jpeg"))
    needed = 80 * (2 * chosen.batches + 8)  # one epoch of ours, which leaves a fifth for its kNN
    if len(names) < needed:
        parser.exit(2, f"error: {chosen.images} holds {len(names)} JPEGs; {needed} are needed\n")
    pythons = dict(word.split("=", 1) for word in chosen.python)
    if chosen.environments:
        pythons = environments(chosen.environments.resolve(), chosen.install) | pythons
    for folder in (ROOT / "fg_ssl_zoo", DRIVERS):  # as pip did with the libraries
        compileall.compile_dir(folder, quiet=1)
    contestants, missing = who_can_run(chosen.only or list(CONTESTANTS), pythons)
    results: dict[str, Any] = {
        "images": {"name": name_of(chosen.images), **size_of(names)},
        "hardware": describe_hardware(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": 1,
        "commit": commit(),
        "quick": chosen.quick,
        "batches": chosen.batches,
        "turns": 0,
        "settings": {name: asdict(setting) for name, setting in settings.items()},
        "contestants": chosen.only or [*CONTESTANTS, *NOT_DRIVEN],
        "missing": missing,
        "versions": {},
        "rows": {name: {} for name in settings},
    }
    for number in range(1 if chosen.quick else chosen.turns):
        turn(contestants if number % 2 == 0 else contestants[::-1], pythons, chosen, results)
        results["turns"] = number + 1
        if chosen.out:
            chosen.out.parent.mkdir(parents=True, exist_ok=True)
            chosen.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if results["turns"]:
        print(runpy.run_path(str(ROOT / "docs" / "peer_tables.py"))["tables"](results))


def turn(
    contestants: Sequence[str],
    pythons: Mapping[str, str],
    chosen: argparse.Namespace,
    results: dict[str, Any],
) -> None:
    """Measure each contestant once in each row, and add the figures to the results."""
    for row, known in results["rows"].items():
        data = row.startswith("data")
        for name in contestants:
            contestant, found = CONTESTANTS[name], known.setdefault(name, [])
            if (data and contestant.bf16) or any("failed" in figures for figures in found):
                continue  # the views of bf16 are those of fp32
            task = {
                **asdict(SETTINGS[row]),
                "images": str(chosen.images.resolve()),
                "bf16": contestant.bf16,
                "warm": 4,
                "batches": chosen.batches * (2 if data else 1),
            }
            if chosen.quick:
                task |= {"batch_size": 8, "warm": 1, "batches": 2}
            print(f"turn {results['turns'] + 1}, {row}, {name}", file=sys.stderr, flush=True)
            python = pythons.get(contestant.environment or "", sys.executable)
            said = measured(python, contestant.driver, task, chosen.timeout)
            results["versions"].setdefault(name, {}).update(said.pop("versions", {}))
            found.append(said.get("figures", said))


def who_can_run(
    names: Sequence[str], pythons: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Contestants that have an environment, and why the others are missing."""
    missing = dict(NOT_DRIVEN)
    for name in names:
        environment = CONTESTANTS[name].environment
        if environment and not Path(pythons.get(environment, "")).is_file():
            missing[name] = f"no environment; --install, or --python {environment}=PATH"
    return [name for name in names if name not in missing], missing


def environments(folder: Path, install: bool) -> dict[str, str]:
    """The Python of each library's environment; made where it is missing, if wanted."""
    pythons = {name: folder / name / "bin" / "python" for name in REQUIREMENTS}
    for name, python in pythons.items():
        if install and not python.exists():
            make(folder / name, REQUIREMENTS[name])
    return {name: str(python) for name, python in pythons.items()}


def make(folder: Path, requirement: str) -> None:
    """An environment with this library and the torch, torchvision and timm of this one."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        sys.exit("error: --install needs uv: pip install uv")
    same = [
        f"{name}=={re.split('[+]', version(name))[0]}" for name in ("torch", "torchvision", "timm")
    ]
    python = str(folder / "bin" / "python")
    subprocess.run([uv, "venv", "--python", sys.executable, str(folder)], check=True)
    install = [uv, "pip", "install", "--compile-bytecode", "--python", python, requirement]
    if subprocess.run([*install, *same], check=False).returncode:
        print(f"{requirement} does not fit {' '.join(same)}; its own choice", file=sys.stderr)
        if subprocess.run(install, check=False).returncode:
            shutil.rmtree(folder)  # so that the table says that it is missing


def measured(python: str, driver: str, task: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What one fresh process measured, or `{"failed": REASON}`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"out": str(folder / "out"), "result": str(folder / "result.json")}
        (folder / "out").mkdir()
        caches = {"HF_HOME": str(folder / "hf"), "SPT_CACHE_DIR": str(folder / "spt")}
        process = subprocess.Popen(
            [python, str(DRIVERS / driver), json.dumps({**task, **places})],
            cwd=folder,
            env={**os.environ, **QUIET, **caches, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            said = f"took more than {seconds:.0f} s"
        finally:
            stop_all(process)
        result = Path(places["result"])
        if result.is_file():
            return json.loads(result.read_text(encoding="utf-8"))
        lines = said.strip().splitlines() or [f"exit status {process.returncode}"]
        return {"failed": re.sub(r"[^\s'\"]*/", "", lines[-1])}  # without folders of this machine


def stop_all(process: subprocess.Popen[str]) -> None:
    """End a process and its children, which have a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


def name_of(folder: Path) -> str:
    """`cub100/train`: the data set and its split."""
    return "/".join(folder.resolve().parts[-2:])


def size_of(names: Sequence[Path]) -> dict[str, Any]:
    """How many images there are, and how large the first hundred are."""
    from PIL import Image

    sizes = []
    for name in names[:100]:
        with Image.open(name) as image:
            sizes.append(image.size)
    return {
        "number": len(names),
        "pixels": [max(s[0] for s in sizes), max(s[1] for s in sizes)],
        "kilobytes": round(sum(n.stat().st_size for n in names) / len(names) / 1000, 1),
    }


if __name__ == "__main__":
    main()
