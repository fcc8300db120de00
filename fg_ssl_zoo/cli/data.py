"""`fgssl data list` and `fgssl data show`: list data sets, and draw the views of a method."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import add_verb

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from fg_ssl_zoo.config import Recipe
    from fg_ssl_zoo.data.sample import Images


def add_verbs(nouns: Any) -> None:
    """Add the verb `data`."""
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

    print("drawn      birds drawn during training; no download")
    for name, entry in CATALOG.items():
        source = entry.hub_id or f"official download, then data.path=FOLDER: {entry.homepage}"
        print(f"{name:10} {entry.title} ({source})\n{'':10} terms: {entry.terms}")


def _show_data(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.data.contact_sheet import save_png
    from fg_ssl_zoo.pretrain.own_pictures import recipe_of_words

    recipe, _, splits = recipe_of_words(chosen.words)
    images = None if splits is None else splits[0]
    sheet = view_sheet(recipe, num_images=chosen.images, num_draws=chosen.draws, images=images)
    save_png(chosen.out, sheet)
    print(f"{chosen.out}: one row per image: the image, then its views in {chosen.draws} epochs")


def view_sheet(
    recipe: "Recipe", *, num_images: int, num_draws: int, images: "Images | None" = None
) -> "np.ndarray":
    """(h, w, 3) uint8: one row per image, with the image and its views in the first stage.

    Args:
        recipe: Recipe whose views are drawn.
        num_images: Number of rows.
        num_draws: Number of epochs whose views are drawn.
        images: Training images of `recipe.data`, if they are already listed.
    """
    from fg_ssl_zoo.backbones.create import create_backbone
    from fg_ssl_zoo.data.contact_sheet import contact_sheet
    from fg_ssl_zoo.data.datasets import load_splits
    from fg_ssl_zoo.data.loader import ViewDataset
    from fg_ssl_zoo.features.extract import evenly
    from fg_ssl_zoo.methods import create_method
    from fg_ssl_zoo.pretrain.stages import options_on

    if images is None:
        images, _ = load_splits(recipe.data, seed=recipe.seed)
    stage, size = recipe.stages[0], recipe.data.image_size
    options = options_on(stage, images, where="stages[0].options")
    method = create_method(
        stage.method, create_backbone(recipe.backbone, image_size=size), **options
    )
    dataset = ViewDataset(images, method.views(size), recipe.seed)
    rows, titles = [], ["picture"]
    for index in evenly(len(images), num_images):
        seen = [_pictures(dataset[epoch, index]) for epoch in range(num_draws)]
        rows.append([images[index]["image"], *(picture for draw in seen for _, picture in draw)])
        names = [f"epoch {e}, {name}" for e, draw in enumerate(seen, 1) for name, _ in draw]
        titles = max(titles, ["picture", *names], key=len)
    return contact_sheet(rows, titles=titles)


def _pictures(sample: "Mapping[str, Any]") -> "list[tuple[str, np.ndarray]]":
    """Every uint8 image that the views returned, also those stacked as (v, h, w, 3), with a name.

    The name is the key of the batch, with a number if there are several: `view 2`, `tile 7`.
    """
    import numpy as np

    found = []
    for key, value in sample.items():
        if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim >= 3:
            stack = value.reshape(-1, *value.shape[-3:]) if value.shape[-1] == 3 else ()
            name = {"images": "view", "tiles": "tile"}.get(key, key)
            names = [f"{name} {i}" for i in range(1, len(stack) + 1)] if len(stack) > 1 else [name]
            found += zip(names, stack, strict=False)
    return found
