"""`fgssl data list` and `fgssl data show`: pictures before anything is trained on them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import add_verb

if TYPE_CHECKING:
    import numpy as np

    from fg_ssl_zoo.config import Recipe


def add_verbs(nouns: Any) -> None:
    """Give the command `fgssl data`."""
    data = add_verb(nouns, "data", "List data sets, or draw the views of a method.")
    verbs = data.add_subparsers(required=True, metavar="list | show")

    listing = verbs.add_parser("list", help="list the data sets known by name")
    listing.set_defaults(run=_list_data)

    show = add_verb(
        verbs, "show", "Draw the views that a method is trained on, one image of the data per row."
    )
    show.add_argument("words", nargs="*", metavar="FOLDER, RECIPE or key.path=value")
    show.add_argument(
        "--images", type=int, default=8, help="number of images, one per row (default 8)"
    )
    show.add_argument(
        "--draws", type=int, default=3, help="number of epochs whose views are drawn (default 3)"
    )
    show.add_argument(
        "--out", type=Path, default=Path("views.png"), help="image to write (default views.png)"
    )
    show.set_defaults(run=_show_data, out_files=("out",))


def _list_data(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.data.catalog import CATALOG

    print("drawn      birds drawn while training; no download")
    for name, entry in CATALOG.items():
        source = entry.hub_id or f"official download, then data.path=FOLDER: {entry.homepage}"
        print(f"{name:10} {entry.title} ({source})\n{'':10} terms: {entry.terms}")


def _show_data(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.data.contact_sheet import save_png
    from fg_ssl_zoo.pretrain.own_pictures import recipe_of_words

    recipe, _ = recipe_of_words(chosen.words)
    sheet = view_sheet(recipe, num_images=chosen.images, num_draws=chosen.draws)
    save_png(chosen.out, sheet)
    print(f"{chosen.out}: the picture, then the views of {chosen.draws} epochs, an image a row")


def view_sheet(recipe: "Recipe", *, num_images: int, num_draws: int) -> "np.ndarray":
    """(h, w, 3) uint8: a row for each picture, itself and what the first stage sees of it."""
    from fg_ssl_zoo.backbones.create import create_backbone
    from fg_ssl_zoo.data.contact_sheet import contact_sheet
    from fg_ssl_zoo.data.datasets import load_splits
    from fg_ssl_zoo.data.loader import ViewDataset
    from fg_ssl_zoo.features.extract import evenly
    from fg_ssl_zoo.methods import create_method
    from fg_ssl_zoo.pretrain.stages import options_on

    images, _ = load_splits(recipe.data, seed=recipe.seed)
    stage, size = recipe.stages[0], recipe.data.image_size
    options = options_on(stage, images, where="stages[0].options")
    method = create_method(
        stage.method, create_backbone(recipe.backbone, image_size=size), **options
    )
    dataset = ViewDataset(images, method.views(size), recipe.seed)
    rows = [
        [images[index]["image"], *_pictures(dataset[epoch, index] for epoch in range(num_draws))]
        for index in evenly(len(images), num_images)
    ]
    return contact_sheet(rows)


def _pictures(seen: Any) -> "list[np.ndarray]":
    """Every uint8 picture in what views returned, also those stacked as (v, h, w, 3)."""
    import numpy as np

    arrays = [a for sample in seen for a in sample.values() if isinstance(a, np.ndarray)]
    shown = [a for a in arrays if a.dtype == np.uint8 and a.shape[-1] == 3 and a.ndim >= 3]
    return [picture for a in shown for picture in a.reshape(-1, *a.shape[-3:])]
