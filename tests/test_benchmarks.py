"""The benchmarks run, and count what a method really does."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import pytest
import torch

from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.backbones.maps import accept_size
from fg_ssl_zoo.engine.hardware import Switches
from fg_ssl_zoo.layers.momentum import teacher_of
from fg_ssl_zoo.method import Method, MethodOutput
from tests.scripts import imported

SMALL = ["--backbone", "test_resnet", "--image-size", "48", "--batch-size", "4", "--rounds", "2"]
PLAIN = Switches("cpu", "fp32", False, False, False, 1)


@pytest.fixture(scope="module")
def bench():
    with imported("benchmarks/step.py") as module:
        yield module


class Crops(Method):
    """A student of large and small crops and a teacher of the large ones, as in DINO."""

    def __init__(self, backbone):
        super().__init__(backbone)
        accept_size(backbone, backbone.image_size // 2)
        self.teacher = teacher_of(backbone)

    def views(self, image_size):
        raise NotImplementedError

    def forward(self, batch):
        large, small = (batch[key].flatten(0, 1) for key in ("large", "small"))
        with torch.no_grad():
            target = self.teacher(self.backbone.normalize(large)).mean()
        seen = self.backbone(self.backbone.normalize(large)).mean()
        (last,) = self.backbone.feature_maps(self.backbone.normalize(small), [-1])
        return MethodOutput(loss=(seen + last.mean() - target).square())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_teacher_counts_as_forward_and_every_size_on_its_own(bench, name):
    method = Crops(create_backbone(name, image_size=64))
    batch = {
        "large": torch.zeros(3, 2, 64, 64, 3, dtype=torch.uint8),
        "small": torch.zeros(3, 4, 32, 32, 3, dtype=torch.uint8),
        "mask": torch.zeros(3, 2, 64, 64, dtype=torch.uint8),
        "corrupt": [],
    }
    views = bench.views_of(batch)
    with_gradient, forward_only = bench.passes_of(method, batch, PLAIN)
    assert views == with_gradient == [(6, 64, 64), (12, 32, 32)]
    assert forward_only == [(6, 64, 64)]
    assert bench.bare_of(views, with_gradient, forward_only) == {
        "views": (views, []),
        "passes": (views, forward_only),
    }
    assert bench.bare_of(views, views, []) == {"views": (views, [])}


def test_a_bare_step_is_forward_and_backward_of_these_pictures_only(bench):
    backbone = create_backbone("test_resnet")
    seen, gradients = [], []
    backbone.model.conv1.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    backbone.model.layer4.register_full_backward_hook(lambda *_: gradients.append(1))
    step = bench.bare_step(backbone, [(2, 48, 48), (3, 32, 32)], [(2, 48, 48)], PLAIN)
    step()
    assert sorted(seen) == [False, True, True]
    assert len(gradients) == 2
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.slow
def test_the_table_has_a_row_for_each_method_and_the_file_all_figures(
    bench, monkeypatch, tmp_path, capsys
):
    def peak(setting, threads, **what):
        return 20.0 if "method" in what else 10.0

    monkeypatch.setattr(bench, "peak_in_fresh_process", peak)
    small = ["simclr.hidden_size=16", "simclr.projection_size=8", "pmg.hidden_size=16"]
    out = tmp_path / "step.json"
    bench.main(["simclr", "pmg", "jigsaw", *SMALL, "--options", *small, "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    about = json.loads(out.read_text())
    simclr, pmg, jigsaw = about["rows"]
    assert about["backbone"] == "test_resnet"
    assert simclr["views"] == simclr["with_gradient"] == [[8, 48, 48]]
    assert simclr["memory"] == {"views": 2.0, "passes": 2.0}
    assert simclr["speed"]["views"] == simclr["speed"]["passes"] > 0
    assert pmg["views"] == [[4, 48, 48]]
    assert pmg["with_gradient"] == [[16, 48, 48]]  # three jigsaws and the whole image
    assert jigsaw["views"] == jigsaw["with_gradient"]
    assert all(len(seconds) == 2 for seconds in pmg["seconds"].values())
    assert [line.split(" | ")[0] for line in lines[-3:]] == ["| simclr", "| pmg", "| jigsaw"]
    assert "| 8 x 48 | 8 x 48 | - |" in lines[-3]


def test_what_a_method_refuses_is_told_in_its_row(bench, capsys):
    sizes = ["--backbone", "test_resnet", "--image-size", "50", "--batch-size", "4"]
    bench.main(["jigsaw", *sizes])
    assert "| jigsaw | refused: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["simclrr"])
    assert "unknown methods simclrr" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_its_own(bench, capsys):
    bench.main(["simclr", *SMALL[:-1], "1"])
    cells = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert float(cells[7]) > 0
    assert cells[8] == cells[9].rstrip(" |")


def peer_results():
    """Two turns of one row: ours, lightly, one that failed, and one that is missing."""
    ours = [{"step": 80.0, "data": 3000.0, "run": 78.0, "first_step": 5.0}] * 2
    lightly = [
        {"step": 40.0, "data": 500.0, "run": 37.0, "first_step": 4.0},
        {"step": 32.0, "data": 480.0, "run": 31.0, "first_step": 5.0},
    ]
    failed = [{"failed": "ImportError: no such name"}]
    return {
        "images": {"name": "birds/train", "number": 2999, "pixels": [160, 160], "kilobytes": 6.5},
        "hardware": "a processor",
        "cores": 1,
        "commit": "abc",
        "turns": 2,
        "contestants": ["ours", "lightly", "lightly-train", "solo-learn"],
        "missing": {"solo-learn": "it needs torch 1.9.1"},
        "versions": {"lightly": {"torch": "2.15.0", "lightly": "1.6.0"}},
        "rows": {"step_resnet18": {"ours": ours, "lightly": lightly, "lightly-train": failed}},
    }


def test_the_table_of_peers_has_ratios_turn_by_turn_and_says_what_is_missing():
    tables = runpy.run_path("docs/peer_tables.py")
    text = tables["tables"](peer_results())
    titles = "| step, ResNet-18 | end to end, ResNet-18 | CPU-s to the first step |"
    assert text.count(titles) == 2
    assert "| ours | 80.0 | 78.0 | 5.0 |" in text
    assert "| ours | 2.25 (2.00 to 2.50) |" in text
    assert "| lightly-train | failed | failed | failed |" in text
    assert "- lightly-train, step_resnet18: failed: ImportError: no such name" in text
    assert text.count("| solo-learn | not measured: it needs torch 1.9.1 |  |  |") == 2
    assert "torch 2.15.0, lightly 1.6.0" in text


def test_the_figure_of_peers_is_drawn_from_their_results(tmp_path):
    tables = runpy.run_path("docs/peer_tables.py")
    tables["draw"](peer_results(), tmp_path / "peers.png")
    picture = cv2.imread(str(tmp_path / "peers.png"))
    ours = (picture == (0xBD, 0x6E, 0x0A)).all(axis=-1)  # BGR of the bars of our own ratios
    assert ours.mean() > 0.01


def test_peers_without_an_environment_are_missing_with_a_reason(tmp_path, monkeypatch, capsys):
    script = runpy.run_path("benchmarks/peers.py")
    runs, missing = script["who_can_run"](["ours", "lightly"], {"lightly": str(tmp_path / "none")})
    assert runs == ["ours"]
    assert "--python lightly=PATH" in missing["lightly"]
    assert "torch 1.9.1" in missing["solo-learn"]
    monkeypatch.setattr(sys, "argv", ["peers.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        script["main"]()
    assert f"error: {tmp_path} holds 0 JPEGs" in capsys.readouterr().err


def test_a_process_that_fails_gives_its_last_line_without_folders():
    measured = runpy.run_path("benchmarks/peers.py")["measured"]
    reason = measured(sys.executable, "missing.py", {}, 60)["failed"]
    assert "No such file" in reason
    assert "/" not in reason


@pytest.mark.slow
def test_the_script_for_a_gpu_works_without_one(monkeypatch, capsys):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    script = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "gpu.py"))
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            script["main"]([])
        assert "no GPU is available; --device cpu --quick" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    script["main"](["--device", "cpu", "--quick"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if " | " in line]
    assert rows[0] == ["| backbone", "bare", "step", "run", "run, loader |"]
    assert [row[0] for row in rows[1:]] == ["| test_resnet", "| test_vit"]
    assert all(float(cell.split()[0].replace(",", "")) > 0 for row in rows[1:] for cell in row[1:])


def test_the_validation_part_keeps_one_in_five_and_the_keypoints_of_each_image(tmp_path):
    source, out = tmp_path / "birds", tmp_path / "birds_val"
    names = [f"train/{kind}/{number}.jpg" for kind in ("gull", "tern") for number in range(10)]
    for name in [*names, "test/gull/10.jpg"]:
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    rows = [f"{name};0.{number}\n" for number, name in enumerate([*names, "test/gull/10.jpg"])]
    (source / "parts.csv").write_text("file;beak_x\n" + "".join(rows) + "\n")
    with imported("benchmarks/zoo_data.py") as module:
        module.split(source, out)
    files = sorted(out.rglob("*.jpg"))
    assert [len(list((out / split).rglob("*.jpg"))) for split in ("train", "test")] == [16, 4]
    header, *moved = (out / "parts.csv").read_text().splitlines()
    assert header == "file,beak_x"
    assert sorted(row.split(",")[0] for row in moved) == [
        file.relative_to(out).as_posix() for file in files
    ]
    for row in moved:
        name, x = row.split(",")
        old = names[int(x.removeprefix("0."))]
        assert (out / name).read_text() == old
        assert name.split("/")[1:] == old.split("/")[1:]
