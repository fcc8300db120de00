"""The whole way by the commands that people type: train, publish, open elsewhere, go on.

Every step is a process of its own, and the Hub on loopback is all that they share. Whoever opens
the models cannot import this package. By hand, with the figures and the whole default recipe:

    python -m tests.hub.test_demonstration --whole [--timm PYTHON] [--transformers PYTHON] ...

PYTHON is that of a fresh virtual environment: after `pip install torch timm`, and after `pip
install torch transformers timm`, as transformers reads timm's models through timm; `--plugin` is
one with this package.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
import torch
from safetensors.torch import load_file, save_file

from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.data.drawn import DrawnBirds
from tests.hub_server import Hub, client_environment

ROOT = Path(__file__).parents[2]
DRAWN, CUB = "fgssl_resnet18_drawn.simclr", "fgssl_resnet50_cub.simclr"
OWNER = "tester"
SHORT = ["stages.0.train.steps=3", "stages.0.train.batch_size=16", "monitor.k=3"]
FEW = ["data.num_images=64", "data.num_classes=4", *SHORT]
SLACK = 1e-5
"""Largest difference of a feature: other builds of torch add in another order."""

SECONDS_BY_NAME = 0.3

HIDE = """
import sys
sys.modules["fg_ssl_zoo"] = None  # an import of it fails, where it is installed too
"""

READ = """
import json, sys, time
import torch
from safetensors.torch import load_file

def look(model, seconds):
    expected = load_file(sys.argv[2])
    with torch.no_grad():
        found = model.eval()(expected["pixels"])
    found = getattr(found, "pooler_output", found)
    error = (found - expected["features"]).abs().max().item()
    print(json.dumps({"error": error, "seconds": round(seconds, 2), "shape": list(found.shape)}))

"""

BY_TIMM = """
import timm
start = time.perf_counter()
model = timm.create_model(f"hf-hub:{sys.argv[1]}", pretrained=True)
look(model, time.perf_counter() - start)
"""

BY_TRANSFORMERS = """
from transformers import AutoModel
start = time.perf_counter()
model = AutoModel.from_pretrained(sys.argv[1])
look(model, time.perf_counter() - start)
"""

BY_NAME = """
import timm, fg_ssl_zoo
start = time.perf_counter()
model = timm.create_model(sys.argv[1], pretrained=True)
look(model, time.perf_counter() - start)
"""

COSTS = """
import json, sys, time
import timm, fg_ssl_zoo
from fg_ssl_zoo.backbones.weights import folder as published

def seconds(words):
    published._sha256.cache_clear()  # a new process has hashed nothing yet
    start = time.process_time()  # of the processor: others may share it, and no one is asked
    timm.create_model(words, pretrained=True)
    return time.process_time() - start

name, repo = sys.argv[1:]
taken = [(seconds(f"hf-hub:{repo}"), seconds(name)) for _ in range(7)]  # in turns, and the best
print(json.dumps([min(times) for times in zip(*taken)]))
"""

GO_ON = """
import json, runpy, sys
script, repo, photos, steps, out = sys.argv[1:]
settings = {"steps": int(steps), "batch_size": 8, "use_cpu": True, "disable_tqdm": True}
losses = runpy.run_path(script)["main"](repo, photos, out=out, **settings)
print(json.dumps(losses))
"""


@dataclass
class Stage:
    """A folder to work in and a Hub; `run` calls the commands and says what they took."""

    folder: Path
    hub: Hub
    say: Callable[[str], None] = lambda line: None

    def run(
        self, *words: object, python: str = sys.executable, within: str = ".", **environment: str
    ) -> str:
        """What a command prints; the first word is a program of our environment, or `python`."""
        program, *rest = map(str, words)
        path = python if program == "python" else str(Path(sys.executable).with_name(program))
        outside = client_environment(self.hub.url, self.folder / "hub")
        outside |= {"OMP_NUM_THREADS": "1", "FG_SSL_ZOO_ORG": OWNER, **environment}
        outside.pop("FG_SSL_ZOO_DIR", None)
        if python != sys.executable:
            outside.pop("PYTHONPATH", None)
        start = time.perf_counter()
        ran = subprocess.run(
            [path, *rest],
            cwd=self.folder / within,
            env=outside,
            capture_output=True,
            text=True,
            timeout=1800,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        shown = " ".join(word for word in map(str, words) if "\n" not in word)
        self.say(f"{time.perf_counter() - start:6.1f} s  {shown}")
        return ran.stdout

    def opened(self, code: str, name: str, repo: str, python: str = sys.executable) -> float:
        """Largest difference from our own features, for whoever opens a model by such code."""
        printed = self.run("python", "-c", code, name, self.expected(repo), python=python)
        found = json.loads(printed.splitlines()[-1])
        self.say(f"{name}: {found}")
        return found["error"]

    def expected(self, repo: str) -> Path:
        """A file of pixels with the features of the exported backbone."""
        name = repo.partition("/")[2]
        file = self.folder / f"{name}.safetensors"
        if not file.exists():
            backbone = open_backbone(str(self.folder / "runs" / name)).eval()
            size = backbone.image_size
            pixels = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                save_file({"pixels": pixels, "features": backbone(pixels).contiguous()}, file)
        return file

    def rows(self, run: str) -> list[dict[str, float]]:
        return json.loads((self.folder / "runs" / run / "results.json").read_text())["rows"]

    def train(self, *words: str) -> None:
        self.run("accelerate", "launch", ROOT / "train.py", *words)

    def draw_photos(self) -> None:
        """Class folders of images, to stand for birds that cannot be passed on."""
        birds = DrawnBirds(32, num_classes=4, image_size=64, seed=3)
        for index in range(32):
            kind = birds.classes[birds.labels[index]]
            path = self.folder / "photos" / ("train" if index < 24 else "test") / kind
            path.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path / f"{index}.png"), birds[index]["image"][..., ::-1])


def opens_elsewhere(stage: Stage, few: list[str], pythons: dict[str, str]) -> None:
    """Trained, published, and opened by people who do not have this package."""
    repo = f"{OWNER}/{DRAWN}"
    stage.train(*few)
    assert "published" in stage.run("fgssl", "publish", f"runs/{DRAWN}", "--org", OWNER)
    for library, code in (("timm", BY_TIMM), ("transformers", BY_TRANSFORMERS)):
        assert stage.opened(HIDE + READ + code, repo, repo, pythons[library]) < SLACK


def is_repeated_by_its_card(stage: Stage) -> None:
    """The commands of the card, word for word in an empty folder, train the same weights."""
    card = stage.hub.repos[f"{OWNER}/{DRAWN}"].commits[-1].files["README.md"].decode()
    (block,) = re.findall(r"^```sh\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    (stage.folder / "again").mkdir()
    for command in block.strip().split(" && "):
        words = [ROOT / word if word == "train.py" else word for word in shlex.split(command)]
        stage.run(*words, within="again")
    weights = Path("runs", DRAWN, "export", "model.safetensors")
    found, wanted = (load_file(stage.folder / place / weights) for place in ("again", "."))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def opens_by_name(stage: Stage, python: str) -> None:
    """A ResNet-50 under the name of its recipe, without tag: from the Hub, then from the cache."""
    repo, name = f"{OWNER}/{CUB}", CUB.partition(".")[0]
    ours = ["data.path=photos", "data.name=cub", "hub.license=cc-by-nc-4.0"]
    stage.train(CUB, *ours, "data.image_size=64", *SHORT)
    stage.run("fgssl", "publish", f"runs/{CUB}", "--org", OWNER)
    assert stage.opened(READ + BY_NAME, name, repo, python) < SLACK
    printed = stage.run("python", "-c", COSTS, name, repo, python=python, HF_HUB_OFFLINE="1")
    alone, named = json.loads(printed.splitlines()[-1])
    stage.say(f"cached: {alone:.3f} s of the processor by timm alone, {named:.3f} by name")
    assert named - alone < SECONDS_BY_NAME


def goes_on(stage: Stage, few: list[str]) -> None:
    """From what lies on the Hub, by our loop and by transformers' Trainer."""
    repo, more = f"{OWNER}/{DRAWN}", "fgssl_resnet18_drawn.more"
    words = [f"init=hf-hub:{repo}", f"name={more}", "stages.0.inherit=[all]"]
    stage.train(*words, *few, *SHORT)
    end, (start, trained) = stage.rows(DRAWN)[1], stage.rows(more)
    stage.say(f"kNN: {end['knn_top1']:.4f} at the end, {start['knn_top1']:.4f} at the new start")
    assert (start["name"], trained["name"]) == ("start", "trained")
    assert start["rankme"] == pytest.approx(end["rankme"], rel=1e-3)
    script = ROOT / "examples" / "continue_pretraining.py"
    printed = stage.run("python", "-c", GO_ON, script, repo, "photos", 3, "continued")
    losses = json.loads(printed.splitlines()[-1])
    stage.say(f"losses by Trainer: {losses}")
    assert len(losses) == 3
    assert (stage.folder / "continued" / "backbone.safetensors").is_file()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_trained_published_opened_elsewhere_by_name_and_trained_on(tmp_path):
    with Hub() as hub:
        stage = Stage(tmp_path, hub)
        stage.draw_photos()
        here = dict.fromkeys(("timm", "transformers"), sys.executable)
        opens_elsewhere(stage, FEW, here)
        is_repeated_by_its_card(stage)
        opens_by_name(stage, sys.executable)
        goes_on(stage, FEW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--whole", action="store_true", help="the default recipe as it is")
    for library in ("timm", "transformers", "plugin"):
        parser.add_argument(f"--{library}", default=sys.executable, metavar="PYTHON")
    chosen = parser.parse_args()
    few = [] if chosen.whole else FEW
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Hub() as hub:
        stage = Stage(Path(folder), hub, say=print)
        stage.draw_photos()
        opens_elsewhere(stage, few, vars(chosen))
        is_repeated_by_its_card(stage)
        opens_by_name(stage, chosen.plugin)
        goes_on(stage, few)


if __name__ == "__main__":
    main()
