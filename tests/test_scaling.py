"""What the methods exchange, counted from their modules, and the formula of docs/scaling.md."""

import re
import shlex
from pathlib import Path

import pytest

from tests.scripts import imported

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scaling():
    with imported("benchmarks/scaling.py") as module:
        yield module


def test_simclr_gathers_both_projections_and_reduces_the_gradients_of_all(scaling):
    volume = scaling.counted("simclr", "test_resnet")
    row = 2 * 128 * 4  # two views of a picture, float32
    assert volume.gathered == row
    gathered, reduced = volume.of_loss(pictures=16, world=32)
    assert gathered == 16 * row
    assert reduced == 32 * 16 * row
    assert scaling.counted("simsiam", "test_resnet").of_loss(16, 32) == (0, 0)


def test_the_parts_of_a_step_are_those_of_the_page(scaling):
    volume = scaling.Volume(gradients=1_000, buffers=200, gathered=10, reduced=(0, 4, 2), norms=3)
    cluster = scaling.Cluster(rate=50, link=100, network=10, latency=0.5)
    parts = scaling.seconds(volume, 0.5, 2, cluster, pictures=25, gpus=8)
    assert parts == pytest.approx(
        {
            "step": 25 * 2 / (50 * 0.5),
            "gradients": 2 * 7 / 8 * 1_000 / 100,
            "buffers": 2,
            "loss": 7 * 250 / 100 + 2 * 7 / 8 * 8 * (4 + 50) / 100,
            "norms": 1.5,
        }
    )
    over_network = scaling.seconds(volume, 0.5, 2, cluster, pictures=25, gpus=16)
    assert over_network["gradients"] == 2 * 15 / 16 * 1_000 / 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("scaling", 0), ("faster", 1)])
def test_the_tables_of_the_page_are_what_its_commands_print(scaling, capsys, name, number):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    command = re.findall(r"^```sh\n(.*)\n```$", page, re.MULTILINE)[number]
    scaling.main(shlex.split(command)[2:])
    shown = page.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]
    assert capsys.readouterr().out.strip() == shown.strip()
