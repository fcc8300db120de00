"""Two pages of `fgssl report`, each made once."""

import json

import pytest
from accelerate import Accelerator

from fg_ssl_zoo.cli import main
from fg_ssl_zoo.config import Data
from fg_ssl_zoo.evaluation.report import curves
from fg_ssl_zoo.evaluation.report.page import write_report
from tests.pages import EVIL, NASTY, save_birds


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A page about two untrained models and birds of which two have nasty names."""
    place = tmp_path_factory.mktemp("labelled")
    save_birds(place / "birds", ["001.Black_Finch", "002.Red_Wren", NASTY, EVIL])
    return write_report(
        ["test_resnet@scratch", "test_vit@scratch"],
        Data(path=str(place / "birds")),
        Accelerator(cpu=True),
        image_size=48,
        cache=place / "cache",
    )


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    """A page about a transformer that logged its training, and birds without labels."""
    place = tmp_path_factory.mktemp("unlabelled")
    save_birds(place / "birds", [".", ".", ".", "."])
    out = place / "pages" / "page.html"
    words = ["--data", str(place / "birds"), "--image-size", "48", "--cache", str(place / "cache")]
    lines = [{"step": 0, "eval/rankme": 12.0}, {"step": 9, "eval/rankme": 8.0}]
    (place / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "run_folder", lambda words: place)
        main(["report", "test_vit@scratch", *words, "--out", str(out)])
    return out.read_text(encoding="utf-8")
