"""`fgssl eval`: compute scores of backbones."""

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import add_cache, add_image_size, add_verb
from fg_ssl_zoo.config import data_of, encodable, parse_words, write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator


def add_verbs(verbs: Any) -> None:
    """Add the verb `eval`."""
    eval_ = add_verb(
        verbs,
        "eval",
        "Compute scores of backbones on a data set and print them as one table. "
        "docs/evaluation.md describes the protocols and their options.",
    )
    add_models(eval_)
    eval_.add_argument(
        "--no-untrained",
        action="store_true",
        help="leave out the rows of the networks before training",
    )
    eval_.add_argument(
        "--out",
        type=Path,
        help="folder for results.json, .csv and .md; a stopped command continues from it",
    )
    eval_.add_argument(
        "--card", type=Path, metavar="RUN", help="write the table into this run's results and card"
    )
    eval_.set_defaults(run=_evaluate, out_folders=("out", "cache"))


def add_protocols(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the protocols to `fgssl eval`, made from their records.

    Separate from `add_verbs`, since importing the records takes seconds and only `eval` needs them.
    """
    from fg_ssl_zoo.evaluation.protocol import Option, options_of
    from fg_ssl_zoo.evaluation.protocols import DEFAULT, PROTOCOLS

    def described(option: Option) -> str:
        return f"{option.name} ({', '.join(option.choices)})" if option.choices else option.name

    parser.add_argument(
        "--protocols", nargs="+", default=list(DEFAULT), metavar="P",
        help=f"protocols to compute: {' '.join(PROTOCOLS)} (default {' '.join(DEFAULT)})",
    )  # fmt: skip
    for name, record in PROTOCOLS.items():
        if record.options:
            parser.add_argument(
                f"--{name.replace('_', '-')}", nargs="+", metavar="KEY=VALUE",
                help=f"options of {name}: {', '.join(map(described, options_of(record.options)))}",
            )  # fmt: skip


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the arguments shared by all verbs about models."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="a run or exported folder, hf-hub:OWNER/NAME, a timm or fgssl name, "
        "ARCHITECTURE@scratch, ARCHITECTURE@FILE.safetensors; #3 at the end uses feature map 3",
    )  # fmt: skip
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="DATA",
        help="a folder or a name of fgssl data list; then keys such as num_images=500",
    )  # fmt: skip
    add_image_size(parser, "that of each model")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws (default 0)")
    add_cache(parser)


def common(chosen: argparse.Namespace, accelerator: "Accelerator") -> dict[str, Any]:
    """The keywords that all functions behind these verbs share."""
    return {
        "image_size": chosen.image_size,
        "seed": chosen.seed,
        "cache": chosen.cache,
        "say": print if accelerator.is_main_process else lambda line: None,
    }


def _evaluate(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.engine.hardware import evaluation_accelerator
    from fg_ssl_zoo.evaluation import table
    from fg_ssl_zoo.evaluation.evaluate import evaluate
    from fg_ssl_zoo.evaluation.protocols import PROTOCOLS
    from fg_ssl_zoo.hub.export import add_evaluation, exported

    if chosen.card:
        exported(chosen.card)  # asked for before the work
    options = {
        name: parse_words(record.options, words, where=name)
        for name, record in PROTOCOLS.items()
        if record.options and (words := getattr(chosen, name))
    }
    accelerator = evaluation_accelerator()
    evaluation = evaluate(
        chosen.models,
        data_of(chosen.data),
        accelerator,
        protocols=chosen.protocols,
        options=options,
        with_untrained=not chosen.no_untrained,
        unfinished=chosen.out and chosen.out / "unfinished",
        **common(chosen, accelerator),
    )
    if not accelerator.is_main_process:
        return
    results = table.as_plain(evaluation)
    print(f"\n{table.terminal(results)}")
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("results.json", json.dumps(results, indent=2) + "\n"),
            ("results.csv", table.as_csv(results)),
            ("results.md", table.markdown(results) + "\n"),
        ):
            write_whole(chosen.out / name, encodable(text))
        shutil.rmtree(chosen.out / "unfinished", ignore_errors=True)
        print(f"\n{chosen.out}/results.json, .csv, .md")
    if chosen.card:
        print(f"{add_evaluation(chosen.card, results)}: contains the table")
