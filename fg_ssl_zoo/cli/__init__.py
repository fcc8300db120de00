"""Pretrain, evaluate, use and publish backbones for fine-grained recognition.

Train
  fgssl train FOLDER                               pretrain a backbone on images, without labels
  fgssl data show [RECIPE] [key.path=value ...]    draw the views that a method is trained on
  fgssl data list                                  list the data sets known by name

Evaluate
  fgssl eval MODEL... --data DATA                  compute scores of backbones, in one table
  fgssl report MODEL... --data DATA                write a page with scores, errors and neighbours
  fgssl parts MODEL... --data DATA --out FOLDER    draw the parts that a backbone distinguishes

Use a backbone
  fgssl classifier MODEL --data DATA --out FOLDER  train a classifier on few labels
  fgssl predict FOLDER IMAGES --out x.csv          write the classes that it predicts
  fgssl embed MODEL --data DATA --out x.parquet    write the features of all images into a file
  fgssl search MODEL --index x.parquet --query P   find the nearest images in that file
  fgssl export-onnx MODEL --out FILE.onnx          write a backbone as an ONNX file

Check images and labels
  fgssl suspects MODEL --data DATA                 list images that may have a wrong label
  fgssl compare-splits --data DATA                 find test images that are also training images

Get and publish models
  fgssl list                                       list all models and where their weights are
  fgssl info NAME                                  print the card of a model
  fgssl pull NAME...                               download models for offline use
  fgssl publish FOLDER... --org OWNER              upload trained models to the Hub

Every verb describes its options, for example `fgssl eval --help`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fg_ssl_zoo import __version__
from fg_ssl_zoo.cli import (
    classifier,
    data,
    embed,
    evaluation,
    export_onnx,
    overlap,
    parts,
    publish,
    report,
    suspects,
    train,
    zoo,
)
from fg_ssl_zoo.config import (
    bound_hub_client,
    check_cache,
    check_file,
    check_folder,
    disk_error,
    home_path,
    memory_error,
    printable,
    refuse_empty,
    show_any_name,
)
from fg_ssl_zoo.engine.signals import ending_at_once

VERBATIM = argparse.RawDescriptionHelpFormatter

MODULES = (
    train, data, evaluation, report, parts, classifier, embed, export_onnx, suspects, overlap, zoo,
    publish,
)  # fmt: skip
"""Modules that add verbs; the module docstring is the help."""


def create_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The command line of `fgssl`.

    In the parsed arguments, `run` is the function of the verb; `out_files` and `out_folders` name
    the arguments with paths that it writes to.

    Args:
        verb: The verb that will be used; all verbs when not given.
    """
    parser = argparse.ArgumentParser(
        prog="fgssl", usage="%(prog)s VERB ...", description=__doc__, formatter_class=VERBATIM
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(out_files=(), out_folders=())
    verbs = parser.add_subparsers(
        required=True, metavar="VERB", help=argparse.SUPPRESS, prog="fgssl"
    )
    for module in MODULES:
        module.add_verbs(verbs)
    if verb in (None, "eval"):
        evaluation.add_protocols(verbs.choices["eval"])
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; errors of the user's input, and a diverged fine-tuning, end with one line.

    The exit status is then 2.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
        from argcomplete import autocomplete

        typed = os.environ.get("COMP_LINE", "").split()[int(os.environ["_ARGCOMPLETE"]) :]
        autocomplete(create_parser(typed[0] if typed else ""))
    show_any_name()
    try:
        refuse_empty(words)
        chosen = create_parser(words[0] if words else "").parse_args(words)
        _open_places(chosen)
        bound_hub_client()
        with ending_at_once(GO_ON):
            chosen.run(chosen)
    except KeyboardInterrupt:
        print(f"stopped; {GO_ON}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except SystemExit as ended:
        names = {128 + number: number.name for number in signal.Signals}
        said = getattr(ended, "said", False)  # printed by the training itself
        if ended.code in names and not said:
            print(f"stopped by {names[ended.code]}; {GO_ON}", file=sys.stderr)
        raise
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        line = _line_of(error)
        if line is None:
            raise
        print(f"error: {printable(line)}", file=sys.stderr)
        raise SystemExit(2) from None


GO_ON = "run the same command again"


def _line_of(error: Exception) -> str | None:
    """Message of an error caused by the user, the machine or the Hub; `None` for a bug of ours."""
    if isinstance(error, OSError):
        return disk_error(error)
    if isinstance(error, ValueError):
        return str(error)
    if said := memory_error(error):
        return f"{said}; free some, or use a smaller --image-size, and {GO_ON}"
    from fg_ssl_zoo.data.loader import worker_failure
    from fg_ssl_zoo.engine.loop import TrainingStopped

    return str(error) if isinstance(error, TrainingStopped) else worker_failure(error)


def _open_places(chosen: argparse.Namespace) -> None:
    """Replace `~` by the home folder, and refuse outputs that cannot be written before any work."""
    for name, value in vars(chosen).items():
        if isinstance(value, Path):
            setattr(chosen, name, home_path(value))
        elif isinstance(value, list):
            places = [home_path(item) if isinstance(item, Path) else item for item in value]
            setattr(chosen, name, places)
    for names, check in ((chosen.out_files, check_file), (chosen.out_folders, check_folder)):
        for name in names:
            if place := getattr(chosen, name):
                check(place, f"--{name}")
            elif name == "cache":
                check_cache()
