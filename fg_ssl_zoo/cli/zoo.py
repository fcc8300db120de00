"""`fgssl list`, `fgssl info` and `fgssl pull`: find and download models."""

import argparse
import json
from typing import Any

from fg_ssl_zoo.cli.arguments import add_verb

NAME = "fgssl_BACKBONE_DATA[.METHOD][@REVISION], see fgssl list"


def add_verbs(verbs: Any) -> None:
    """Add the three verbs."""
    listing = add_verb(
        verbs,
        "list",
        "List all models, their scores, and where their weights would come from; for a "
        "model without weights, the command that trains it.",
    )
    listing.add_argument(
        "--all", action="store_true", help="also list recipes without weights in the table"
    )
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    listing.add_argument("--offline", action="store_true", help="do not ask the Hub")
    listing.set_defaults(run=_list)

    info = add_verb(verbs, "info", "Print the card of a model.")
    info.add_argument("name", metavar="NAME", help=NAME)
    info.add_argument("--json", action="store_true", help="print its header and results as JSON")
    info.set_defaults(run=_info)

    pull = add_verb(verbs, "pull", "Download models into the Hub's cache, for offline use.")
    pull.add_argument("names", nargs="+", metavar="NAME", help=NAME)
    pull.add_argument(
        "--pretraining", action="store_true",
        help="also download heads and teachers, to continue the training",
    )  # fmt: skip
    pull.add_argument("--json", action="store_true", help="print a JSON list")
    pull.set_defaults(run=_pull)


def _list(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.hub.listing import as_plain, as_table, as_text, entries

    rows = list(entries(ask_hub=not chosen.offline))
    if chosen.json:
        print(json.dumps([as_plain(row) for row in rows], indent=2))
    else:
        print(as_table(rows) if chosen.all else as_text(rows))


def _info(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.hub.checks import as_plain, read_card
    from fg_ssl_zoo.hub.export import RESULTS
    from fg_ssl_zoo.hub.listing import card_folder, resolve

    folder = card_folder(chosen.name)
    card = read_card(folder)
    if not chosen.json:
        print(card)
        return
    results = folder / RESULTS
    about = {
        "name": resolve(chosen.name).name,
        "folder": str(folder),
        "card": as_plain(card),
        "results": json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None,
    }
    print(json.dumps(about, indent=2))


def _pull(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.backbones.weights.locate import PretrainedWeightsError
    from fg_ssl_zoo.hub.listing import pull, resolve

    names = [resolve(name).name for name in chosen.names]  # checked before any download
    done = []
    for words, name in zip(chosen.names, names, strict=True):
        try:
            folder = pull(words, pretraining=chosen.pretraining)
        except PretrainedWeightsError as error:
            raise ValueError(str(error)) from error
        done.append({"name": name, "folder": str(folder)})
        if not chosen.json:
            print(f"{name}: {folder}")
    if chosen.json:
        print(json.dumps(done, indent=2))
