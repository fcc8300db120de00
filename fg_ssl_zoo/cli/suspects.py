"""`fgssl suspects`: list images that may have a wrong label."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import (
    add_cache,
    add_image_size,
    add_model_and_data,
    add_verb,
    count,
    write_csv,
)
from fg_ssl_zoo.cli.labelled import features_of_readable
from fg_ssl_zoo.config import check_file, data_of, printable, write_whole

if TYPE_CHECKING:
    from torch import Tensor

    from fg_ssl_zoo.data.sample import Images
    from fg_ssl_zoo.evaluation.suspects import Suspect

SHOWN, BESIDE, SIDE = 15, 5, 112
"""Lines in the terminal, neighbours per image on the page, side of an image in pixels."""

COLUMNS = ("rank", "file", "folder", "suggested", "suspicion")


def add_verbs(verbs: Any) -> None:
    """Add the verb `suspects`."""
    suspects = add_verb(
        verbs,
        "suspects",
        "List images whose nearest neighbours have another class than their folder.",
    )
    add_model_and_data(suspects)
    suspects.add_argument(
        "--out", type=Path, default=Path("suspects.html"),
        help="page to write (default suspects.html); the complete list is the .csv beside it",
    )  # fmt: skip
    suspects.add_argument(
        "--show", type=count, default=100, help="number of images on the page (default 100)"
    )
    suspects.add_argument(
        "--check", type=float, metavar="SHARE",
        help="write nothing; swap this share of the labels (such as 0.03) and count those found",
    )  # fmt: skip
    add_image_size(suspects)
    suspects.add_argument("--seed", type=int, default=0, help="seed of --check (default 0)")
    add_cache(suspects)
    suspects.set_defaults(run=_suspects, out_files=("out",), out_folders=("cache",))


def _suspects(chosen: argparse.Namespace) -> None:
    import torch

    from fg_ssl_zoo.data.datasets import all_splits, image_name
    from fg_ssl_zoo.evaluation.suspects import find_suspects
    from fg_ssl_zoo.features.embedder import load

    if chosen.check is not None and not 0 < chosen.check < 1:
        raise ValueError(f"--check: {chosen.check} is not between 0 and 1")
    if chosen.out.suffix.lower() != ".html":
        raise ValueError(f"--out {chosen.out}: the suffix is .html")
    list_file = chosen.out.with_suffix(".csv")
    check_file(list_file, "--out")
    data = data_of(chosen.data)
    splits = all_splits(data, hold_out=False)
    if any(images.labels is None for images in splits.values()):
        raise ValueError("suspects compares labels; put each class into a folder of its own")
    embedder = load(chosen.model, image_size=chosen.image_size, crop_pct=data.crop_pct)
    places: list[tuple[Images, int]] = []
    features, labels = [], []
    for images in splits.values():
        found = features_of_readable(embedder, images, data, chosen.cache)
        assert found.labels is not None
        features.append(found.features)
        labels.append(found.labels)
        places += [(images, int(index)) for index in found.indices]
    rows, truth = torch.cat(features), torch.cat(labels)
    if chosen.check is not None:
        _print_check(rows, truth, chosen.check, chosen.seed)
        return
    listed = find_suspects(rows, truth)
    classes = next(iter(splits.values())).classes
    if not embedder.accelerator.is_main_process:
        return
    table = [
        [rank, image_name(*places[s.row]), classes[s.label], classes[s.suggested],
         f"{s.suspicion:.3f}"]
        for rank, s in enumerate(listed, start=1)
    ]  # fmt: skip
    write_csv(list_file, [COLUMNS, *table])
    for row in table[:SHOWN]:
        print(f"{row[0]:4}  {row[4]}  {printable(row[1])}: {printable(row[3])}?")
    if len(table) > SHOWN:
        print(f"... and {len(table) - SHOWN} more")
    page = _page(listed[: chosen.show], places, classes, len(listed), len(rows))
    write_whole(chosen.out, page)
    print(
        f"{chosen.out}: {min(len(listed), chosen.show)} of {len(listed)} images with their "
        f"neighbours\n{list_file}: the complete list"
    )


def _print_check(features: "Tensor", labels: "Tensor", share: float, seed: int) -> None:
    """Swap a share of the labels, and print how many of them are found."""
    from fg_ssl_zoo.evaluation.suspects import check_on_swapped

    found = check_on_swapped(features, labels, share=share, seed=seed)
    print(
        f"{found.swapped} of {len(features)} labels swapped; {found.listed} images listed\n"
        f"precision of the first {found.first}: {found.precision:.0%}\n"
        f"recall: {found.recall:.0%} of the swapped are listed, "
        f"{found.recall_first:.0%} among the first {found.swapped}"
    )


# --------------------------------------------------------------------------- page

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color-scheme: light dark; overflow-wrap: break-word; }
section { border-top: 1px solid #8886; padding: .5rem 0; } figure { display: inline-block;
  margin: .2rem; width: 7rem; vertical-align: top; font-size: .75rem; }
img { max-width: 100%; } h2 { font-size: 1rem; margin: .3rem 0; }
.suspect img { outline: 3px solid #c62828; }
"""


def _page(
    listed: list["Suspect"],
    places: "list[tuple[Images, int]]",
    classes: list[str],
    num_listed: int,
    num_pictures: int,
) -> str:
    """Self-contained HTML: each suspect with a red border, beside its nearest neighbours."""
    from fg_ssl_zoo.config import encodable
    from fg_ssl_zoo.data.datasets import image_name
    from fg_ssl_zoo.evaluation.report.templates import breakable

    def figure(row: int, label: int, kind: str) -> str:
        return (
            f'<figure class="{kind}"><img alt="" src="{_thumbnail(*places[row])}">'
            f"<figcaption>{breakable(classes[label])}</figcaption></figure>"
        )

    def label_of(row: int) -> int:
        images, index = places[row]
        assert images.labels is not None
        return int(images.labels[index])

    sections = "".join(
        f"<section><h2>{rank}. {breakable(image_name(*places[s.row]))}: "
        f"{breakable(classes[s.label])}, or {breakable(classes[s.suggested])}? "
        f"({s.suspicion:.2f})</h2>"
        + figure(s.row, s.label, "suspect")
        + "".join(figure(row, label_of(row), "") for row in s.neighbours[:BESIDE])
        + "</section>\n"
        for rank, s in enumerate(listed, start=1)
    )
    title = f"{num_listed} of {num_pictures} images may lie in the wrong folder"
    return encodable(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head>'
        f"<body>\n<h1>{title}</h1>\n<p>Red: the image and the folder it lies in. Beside it: its "
        "nearest neighbours and theirs. The number is the lead of the suggested class in their "
        "vote, 0 to 1.</p>\n"
        f"{sections}</body></html>\n"
    )


def _thumbnail(images: "Images", index: int) -> str:
    """An image as a data URL, `SIDE` pixels on its longer side."""
    import base64

    import cv2

    picture = images[index]["image"]
    scale = SIDE / max(picture.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
