"""`fgssl train`: pretrain on a folder of images or by a recipe, in one process."""

import argparse
from typing import Any

from fg_ssl_zoo.cli.arguments import add_verb


def add_verbs(verbs: Any) -> None:
    """Add the verb `train`."""
    train = add_verb(verbs, "train", "Pretrain a backbone in one process, without a launcher.")
    train.add_argument(
        "--print-recipe", action="store_true", help="print the complete recipe as YAML and stop"
    )
    train.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="FOLDER, RECIPE or key.path=value",
        help="a folder of images, for which a recipe is chosen, or a recipe; overrides such as "
        "stages.0.train.steps=200",
    )  # fmt: skip
    train.set_defaults(run=_train)


def _train(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.pretrain import main

    flags = ["--print-recipe"] if chosen.print_recipe else []
    main([*flags, *chosen.words], prog="fgssl train")
