"""`fgssl compare-splits`: find test images that are also training images."""

import argparse
import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fg_ssl_zoo.cli.arguments import DATA, MODEL, add_cache, add_image_size, add_verb
from fg_ssl_zoo.cli.embed import check_png
from fg_ssl_zoo.config import Data, data_of, escaped, printable

if TYPE_CHECKING:
    import numpy as np

    from fg_ssl_zoo.data.near_duplicates import Overlap, Pair
    from fg_ssl_zoo.data.sample import Images

SHOWN, ON_SHEET = 20, 50
"""Largest number of pairs in the terminal, and on a sheet."""

COLUMNS = (
    "kind", "distance", "cosine", "train_file", "test_file", "train_class", "test_class", "conflict"
)  # fmt: skip


def add_verbs(verbs: Any) -> None:
    """Add the verb `compare-splits`."""
    compare = add_verb(
        verbs, "compare-splits", "Find near-duplicates between training and test images."
    )
    compare.add_argument("--data", nargs="+", required=True, metavar="DATA", help=DATA)
    compare.add_argument(
        "--against", nargs="+", metavar="DATA",
        help="compare with the test images of another data set (all its images, if it has no test "
        "split)",
    )  # fmt: skip
    compare.add_argument("--model", help=f"also compare features of this model: {MODEL}")
    add_image_size(compare)
    compare.add_argument(
        "--bits",
        type=_bits,
        help="largest number of the 256 bits in which hashes may differ (default 40)",
    )
    compare.add_argument(
        "--cosine", type=_cosine, help="smallest cosine similarity of features (default 0.95)"
    )
    compare.add_argument("--out", type=Path, help="a .csv file with all pairs")
    compare.add_argument("--sheet", type=Path, help=f"a .png file with the first {ON_SHEET} pairs")
    compare.add_argument(
        "--card", type=Path, metavar="RUN", help="write the result into this run's results and card"
    )
    add_cache(compare)
    compare.set_defaults(run=_compare, out_files=("out", "sheet"), out_folders=("cache",))


def _bits(text: str) -> int:
    bits = int(text)
    if not 0 <= bits <= 128:
        raise argparse.ArgumentTypeError(f"{bits} is not in 0 to 128")
    return bits


def _cosine(text: str) -> float:
    cosine = float(text)
    if not 0 < cosine <= 1:
        raise argparse.ArgumentTypeError(f"{cosine} is not above 0 and up to 1")
    return cosine


def _compare(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.data.loader import resolve_num_workers
    from fg_ssl_zoo.data.near_duplicates import NEAR, SIMILAR, compare_splits

    check_png(chosen.sheet)
    if chosen.out is not None and chosen.out.suffix.lower() != ".csv":
        raise ValueError(f"--out {chosen.out}: the suffix is .csv")
    data = data_of(chosen.data)
    train, test = _sides(data, data_of(chosen.against) if chosen.against else None)
    print(f"{len(train)} training images of {train.name}, {len(test)} of {test.name}", flush=True)
    overlap = compare_splits(
        train,
        test,
        threshold=NEAR if chosen.bits is None else chosen.bits,
        features=_features(chosen, data, train, test) if chosen.model else None,
        cosine=chosen.cosine or SIMILAR,
        num_workers=resolve_num_workers(data.num_workers),
    )
    print(_table(overlap))
    if chosen.out:
        _write_csv(chosen.out, overlap.pairs)
        print(f"{chosen.out}: {len(overlap.pairs)} pairs")
    if chosen.card:
        print(f"{_to_card(chosen.card, overlap, train)}: contains the result")
    if chosen.sheet and not overlap.pairs:
        print(f"{chosen.sheet}: not written, there are no pairs")
    elif chosen.sheet:
        _write_sheet(chosen.sheet, train, test, overlap.pairs[:ON_SHEET])
        print(f"{chosen.sheet}: training image left, test image right")


def _to_card(folder: Path, overlap: "Overlap", train: "Images") -> Path:
    """Write the result into the card of a run that was trained on these images."""
    from fg_ssl_zoo.data.datasets import fingerprint
    from fg_ssl_zoo.hub.export import amend_results, read_results

    trained_on = read_results(folder)["data"]["fingerprint"]
    if trained_on != fingerprint(train):
        raise ValueError(
            f"--card {folder}: it was trained on other images than {train.name} holds here "
            f"(fingerprint {trained_on}, not {fingerprint(train)})"
        )
    return amend_results(folder, {"overlap": overlap.entry()})


def _sides(data: Data, against: Data | None) -> "tuple[Images, Images]":
    """Training images, and the images that must not be among them."""
    from fg_ssl_zoo.data.datasets import all_splits

    splits = all_splits(data, hold_out=against is None)
    if against is not None:
        others = all_splits(against, hold_out=False)
        return splits["train"], others.get("test", others["train"])
    if "test" not in splits:
        raise ValueError(f"{splits['train'].name} has no test images; name others with --against")
    return splits["train"], splits["test"]


def _features(
    chosen: argparse.Namespace, data: Data, train: "Images", test: "Images"
) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    from fg_ssl_zoo.data.loader import resolve_num_workers
    from fg_ssl_zoo.features.cache import features_of
    from fg_ssl_zoo.features.embedder import load

    embedder = load(chosen.model, image_size=chosen.image_size, crop_pct=data.crop_pct)

    def rows(images: "Images") -> np.ndarray:
        found = features_of(
            embedder.backbone, images, embedder.accelerator,
            crop_pct=embedder.crop_pct, cache=chosen.cache,
            num_workers=resolve_num_workers(data.num_workers),
        )  # fmt: skip
        every = np.zeros((len(images), found.features.shape[1]), np.float32)
        every[found.indices.numpy()] = found.features.numpy()
        return every

    return rows(train), rows(test)


# --------------------------------------------------------------------------- what is shown


def _table(overlap: "Overlap") -> str:
    lines = [_line(pair) for pair in overlap.pairs[:SHOWN]]
    more = len(overlap.pairs) - len(lines)
    lines += [f"... and {more} more pairs; --out writes them"] if more else []
    if overlap.left_off:
        lines.append(f"... and {overlap.left_off} pairs further apart, which are counted only")
    if lost := overlap.unreadable:
        some = "; ".join(map(printable, lost[:3])) + ("; ..." if len(lost) > 3 else "")
        lines.append(f"{len(lost)} images cannot be read and are not compared: {some}")
    return "\n".join([*lines, overlap.summary(), f"label conflicts: {overlap.conflicts} pairs"])


def _line(pair: "Pair") -> str:
    cosine = "" if pair.cosine is None else f"  cosine {pair.cosine:.3f}"
    mark = "  LABEL CONFLICT" if pair.conflict else ""
    where = f"{pair.train_file}  {pair.test_file}"
    return f"{pair.kind:8}  {pair.distance:3} bits{cosine}  {where}{mark}"


def _write_csv(path: Path, pairs: list["Pair"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for pair in pairs:
            row = [getattr(pair, name) for name in COLUMNS]
            writer.writerow([escaped(cell) if isinstance(cell, str) else cell for cell in row])


def _write_sheet(path: Path, train: "Images", test: "Images", pairs: list["Pair"]) -> None:
    from fg_ssl_zoo.data.contact_sheet import contact_sheet, save_png

    rows = [[train[pair.train]["image"], test[pair.test]["image"]] for pair in pairs]
    captions = [
        f"{pair.kind} {pair.distance} {'LABEL CONFLICT' if pair.conflict else ''}" for pair in pairs
    ]
    save_png(path, contact_sheet(rows, captions, cell=192))
