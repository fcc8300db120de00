"""`fgssl parts`: draw the parts that backbones distinguish."""

import argparse
from pathlib import Path
from typing import Any

from fg_ssl_zoo.cli.arguments import add_verb
from fg_ssl_zoo.cli.evaluation import add_models, common
from fg_ssl_zoo.config import data_of, home_path, parse_words


def add_verbs(verbs: Any) -> None:
    """Add the verb `parts`."""
    parts = add_verb(
        verbs, "parts", "Discover parts by clustering the features of backbones, and draw them."
    )
    add_models(parts)
    parts.add_argument(
        "--out", type=Path, default=Path("parts"), help="folder to write (default parts)"
    )
    parts.add_argument(
        "--pictures", type=int, default=300, help="largest number of images (default 300)"
    )
    parts.add_argument(
        "--discovery", nargs="+", default=[], metavar="KEY=VALUE",
        help="options of the discovery: num_parts (default 15 for a CNN, 5 for a ViT), "
        "scope (dataset, image), layers, "
        "foreground, size, stride, threshold, votes, heads, pca, sample, restarts, smooth, seed",
    )  # fmt: skip
    parts.add_argument(
        "--card", type=Path, metavar="RUN", help="put the figure of parts on this run's card"
    )
    parts.set_defaults(run=_parts, out_folders=("out", "cache"))


def _parts(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.engine.hardware import evaluation_accelerator
    from fg_ssl_zoo.evaluation.report.parts_page import write_part_pictures
    from fg_ssl_zoo.hub.export import add_picture, exported

    if chosen.pictures < 1:
        raise ValueError(f"--pictures: {chosen.pictures} is not 1 or more")
    own = exported(chosen.card) if chosen.card else None  # checked before the work
    accelerator = evaluation_accelerator()
    page = write_part_pictures(
        chosen.models,
        data_of(chosen.data),
        chosen.out,
        accelerator,
        changes=parse_words(dict[str, Any], chosen.discovery, "discovery"),
        num_pictures=chosen.pictures,
        **common(chosen, accelerator),
    )
    if accelerator.is_main_process:
        print(f"{page}: open it in a browser; its images are beside it")
        if own:
            names = ", ".join(_named(model, own) for model in chosen.models)
            about = f"Images of {chosen.data[0]} and the parts that {names} finds without labels"
            print(f"{add_picture(own, page.with_name('grid.png'), about)}: shows the parts")


def _named(model: str, own: Path) -> str:
    """Name of a model in a caption of the card in `own`."""
    found = home_path(model).resolve()
    return "this model" if found in (own.resolve(), own.resolve().parent) else found.name
