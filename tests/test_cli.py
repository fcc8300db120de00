import argparse
import os
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

import fg_ssl_zoo
from fg_ssl_zoo import cli
from fg_ssl_zoo.backbones.create import create_backbone
from fg_ssl_zoo.cli import main
from fg_ssl_zoo.cli.data import view_sheet
from fg_ssl_zoo.config import load_recipe
from fg_ssl_zoo.engine.loop import TrainingStopped
from fg_ssl_zoo.hub.export import export

SMALL = ["data.num_images=16", "data.num_classes=4", "data.image_size=64", "backbone=test_resnet"]


def test_show_writes_the_pictures_and_their_views(tmp_path, capsys):
    out = tmp_path / "sheets" / "views.png"
    main(["data", "show", *SMALL, "--images", "3", "--draws", "2", "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    sheet = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    recipe = load_recipe(overrides=SMALL)
    np.testing.assert_array_equal(sheet, view_sheet(recipe, num_images=3, num_draws=2))
    assert sheet.shape[1] > sheet.shape[0]  # five images a row, three rows


@pytest.mark.parametrize(
    ("recipe", "titles"),
    [
        ("fgssl_resnet50_cub.simclr", ["epoch 1, view 1", "epoch 1, view 2", "epoch 2, view 1"]),
        ("fgssl_resnet50_cub.distillation", ["epoch 1, view", "epoch 2, view"]),
    ],
)
def test_every_column_of_the_sheet_has_a_title(recipe, titles, monkeypatch, tmp_path):
    seen = {}
    network = create_backbone("test_resnet", image_size=64)
    export(network, tmp_path / "teacher", load_recipe(overrides=SMALL), {"rows": []})
    monkeypatch.setattr(
        "fg_ssl_zoo.data.contact_sheet.contact_sheet",
        lambda rows, titles: seen.update(rows=rows, titles=titles),
    )
    taught = [f"stages.0.options.teacher={tmp_path / 'teacher'}"]
    words = [*SMALL, "data.name=drawn", *(taught if "distillation" in recipe else [])]
    view_sheet(load_recipe(recipe, overrides=words), num_images=2, num_draws=2)
    assert seen["titles"][0] == "picture"
    assert seen["titles"][1 : 1 + len(titles)] == titles
    assert {len(row) for row in seen["rows"]} == {len(seen["titles"])}


def test_list_names_every_set_with_its_terms(capsys):
    main(["data", "list"])
    printed = capsys.readouterr().out
    for name in ("drawn", "cub", "aircraft", "cars", "flowers", "pets", "cassava", "nabirds"):
        assert f"\n{name} " in f"\n{printed}"
    assert "non-commercial" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data", "show", "data.path=nowhere"], "nowhere"),
        (["data", "show", "fgssl_resnet50_cup.simclr"], "did you mean fgssl_resnet50_cub.simclr"),
        (["data", "show", "data.imagesize=3"], "data.imagesize: unknown key; did you mean image_s"),
        (["data", "show", "data.path=~nobody-here/x"], "there is no home folder ~nobody-here"),
        (["data", "show", "--out", "/dev/null/x.png"], "--out: /dev/null cannot be written"),
        (
            ["eval", "x", "--data", __file__],
            "test_cli.py is a file; a folder of images is needed",
        ),
        (["eval", "x", "--data", ""], "an argument is empty (behind --data); is a variable not"),
        (["eval", "x", "--data=", "--out", "y"], "an argument is empty (--data=)"),
        (["eval", "x", "--data", "y", "--out", "/dev/null/x"], "--out: /dev/null/x cannot be wri"),
        (["eval", "x", "--data", "y", "--cache", "/dev/null"], "--cache: /dev/null cannot be wri"),
        (["report", "x", "--data", "y", "--out", "."], "--out: . is a folder; a file is needed"),
        (["embed", "x", "--data", "y", "--out", "/dev/null/x.npz"], "--out: /dev/null cannot be"),
        (["search", "x", "--index", "~nobody-here/y", "--query", "z"], "no home folder ~nobody-h"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("kind", [TrainingStopped, RuntimeError])
def test_a_finetuning_that_diverges_is_one_line_and_a_fault_of_ours_a_traceback(
    kind, monkeypatch, capsys
):
    def diverge(*_):
        raise kind("the loss is nan at step 3 of 9")

    monkeypatch.setattr("fg_ssl_zoo.cli.data._list_data", diverge)
    with pytest.raises(SystemExit if kind is TrainingStopped else kind):
        main(["data", "list"])
    line = "error: the loss is nan at step 3 of 9\n"
    assert capsys.readouterr().err == (line if kind is TrainingStopped else "")


@pytest.mark.parametrize("error", [
    MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
])  # fmt: skip
def test_no_memory_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr("fg_ssl_zoo.cli.data._list_data", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit):
        main(["data", "list"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory (")
    assert line.endswith(
        "; free some, or use a smaller --image-size, and run the same command again"
    )


def test_a_stopped_command_says_by_what(monkeypatch, capsys):
    monkeypatch.setattr(
        "fg_ssl_zoo.cli.data._list_data", lambda _: signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as stopped:
        main(["data", "list"])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "stopped by SIGTERM; run the same command again\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_cache_that_cannot_be_written_is_refused_before_any_work(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", "/dev/null/assets")
    with pytest.raises(SystemExit):
        main(["eval", "no such model", "--data", "drawn"])
    assert "HF_HOME: /dev/null/assets cannot be written" in capsys.readouterr().err


def test_a_tilde_in_a_flag_is_the_home_folder(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    main(["data", "show", *SMALL, "--images", "1", "--draws", "1", "--out", "~/a/views.png"])
    assert [path.relative_to(home).as_posix() for path in home.rglob("*.png")] == ["a/views.png"]
    assert not list(elsewhere.iterdir())


def test_an_unknown_verb_ends_with_the_usage(capsys):
    with pytest.raises(SystemExit):
        main(["data", "shwo"])
    assert "usage: fgssl data" in capsys.readouterr().err


# --------------------------------------------------------------------------- help, version, start


def verbs_of(parser):
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return verbs.choices


def test_the_help_names_every_verb_once_under_what_one_wants_to_do():
    groups = re.split(r"\n\n(?=[A-Z])", cli.create_parser().format_help())
    named = {}
    for group in groups:
        for verb in re.findall(r"^  fgssl ([a-z-]+)", group, re.MULTILINE):
            named.setdefault(verb, []).append(group.splitlines()[0])
    assert named.pop("data") == ["Train", "Train"]  # its two verbs
    assert named.keys() == verbs_of(cli.create_parser()).keys() - {"data"}
    assert all(len(places) == 1 for places in named.values())


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fgssl {fg_ssl_zoo.__version__}\n"


def python(code, **environment):
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_help_imports_nothing_large():
    code = (
        "from fg_ssl_zoo import cli; cli.create_parser('--help'); import sys; print(*sys.modules)"
    )
    heavy = {"torch", "timm", "transformers", "numpy", "cv2", "scipy", "sklearn", "pydantic"}
    assert not heavy & {*python(code).split()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", ["fg_ssl_zoo, timm", "timm, fg_ssl_zoo", "fg_ssl_zoo, timm.models"]
)
def test_timm_has_our_names_in_either_order_of_the_imports(order):
    code = (
        f"import {order}; print(timm.is_model('fgssl_resnet50_cub'), timm.models.__spec__.loader)"
    )
    assert re.match("True .*SourceFileLoader", python(code))


@pytest.mark.slow
def test_a_shell_completes_verbs_and_options(tmp_path):
    code = (
        "import os, sys; end = os._exit; from fg_ssl_zoo.cli import main\n"
        "os._exit = lambda code: (print('torch' in sys.modules, flush=True), end(code)); main([])"
    )
    for line, found, slow in (
        ("fgssl class", {"classifier"}, False),
        ("fgssl predict --ba", {"--batch-size"}, False),
        ("fgssl eval --prot", {"--protocols"}, True),  # made from the records of the protocols
    ):
        out = tmp_path / "completions"
        imported = python(
            code, _ARGCOMPLETE="1", COMP_LINE=line,
            COMP_POINT=str(len(line)), _ARGCOMPLETE_IFS=",", _ARGCOMPLETE_STDOUT_FILENAME=str(out),
        )  # fmt: skip
        assert {word.strip() for word in out.read_text().split(",")} == found
        assert imported == f"{slow}\n"
