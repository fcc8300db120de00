"""`fgssl embed` and `fgssl search`: write features of many images, and find the nearest."""

import argparse
from pathlib import Path
from typing import Any

from fg_ssl_zoo.cli.arguments import MODEL, add_image_size, add_model_and_data, add_verb, count
from fg_ssl_zoo.config import Speed, data_of


def add_verbs(verbs: Any) -> None:
    """Add the two verbs."""
    embed = add_verb(verbs, "embed", "Write the features of all images of a data set into a file.")
    add_model_and_data(embed)
    embed.add_argument(
        "--out", type=Path, required=True, help="the .parquet, .npz or .safetensors file to write"
    )
    embed.add_argument(
        "--split", choices=("train", "test"), help="write this split only (default: both)"
    )
    add_image_size(embed)
    embed.add_argument(
        "--batch-size", type=count, default=128, help="images in one forward pass (default 128)"
    )
    embed.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="precision of the forward passes (default auto: by the hardware); features are "
        "stored as float32",
    )  # fmt: skip
    embed.add_argument(
        "--seed", type=int, default=0, help="seed of drawn images and of num_images (default 0)"
    )
    embed.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    embed.set_defaults(run=_embed, out_files=("out",))

    search = add_verb(
        verbs,
        "search",
        "Find the images of an index whose features are nearest to those of a query.",
    )
    search.add_argument("model", metavar="MODEL", help=MODEL)
    search.add_argument(
        "--index",
        type=Path,
        required=True,
        help="a .parquet file that fgssl embed wrote with this model",
    )
    search.add_argument(
        "--query",
        nargs="+",
        required=True,
        metavar="IMAGE",
        help="image files or folders of images",
    )
    search.add_argument("--k", type=count, default=8, help="number of neighbours (default 8)")
    search.add_argument("--out", type=Path, help="a .png file that shows queries and neighbours")
    search.set_defaults(run=_search, out_files=("out",))


def _embed(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.data.datasets import all_splits, load_images
    from fg_ssl_zoo.data.loader import resolve_num_workers
    from fg_ssl_zoo.engine.hardware import evaluation_accelerator
    from fg_ssl_zoo.features.embed_dataset import embed
    from fg_ssl_zoo.features.embedder import load
    from fg_ssl_zoo.ops.distributed import world_size

    data = data_of(chosen.data)
    if chosen.split:
        splits = {chosen.split: load_images(data, chosen.split, seed=chosen.seed)}
    else:
        splits = all_splits(data, seed=chosen.seed, hold_out=False)
    embedder = load(
        chosen.model,
        image_size=chosen.image_size,
        crop_pct=data.crop_pct,
        accelerator=evaluation_accelerator(Speed(precision=chosen.precision)),
    )
    main = embedder.accelerator.is_main_process
    try:
        done = embed(
            embedder, splits, chosen.out,
            model=chosen.model,
            batch_size=chosen.batch_size,
            num_workers=resolve_num_workers(data.num_workers, world_size()),
            overwrite=chosen.overwrite,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues after the last complete part")
        raise SystemExit(130) from None
    if not main:
        return
    if done.made == 0 and done.found:
        print("nothing to do: all parts are complete")
    elif done.found:
        print(f"continued after {done.found} complete parts")
    print(f"{done.path}: {done.num_rows} images, {embedder.backbone.num_features} features each")
    if done.skipped:
        print(f"{done.path}.skipped.txt: {len(done.skipped)} images that cannot be read")


def _search(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.data.contact_sheet import contact_sheet, save_png
    from fg_ssl_zoo.data.inputs import GivenImages
    from fg_ssl_zoo.features.embedder import load
    from fg_ssl_zoo.features.embedding_file import EmbeddingFile
    from fg_ssl_zoo.features.search import check_same_model, search, sheet_rows

    check_png(chosen.out)
    index = EmbeddingFile(chosen.index)
    queries = GivenImages(chosen.query)
    size, crop = index.about["image_size"], index.about["crop_pct"]
    embedder = load(chosen.model, image_size=size, crop_pct=crop)
    check_same_model(index, embedder.backbone, chosen.model)
    found = search(index, embedder.embed(queries.items), chosen.k)
    captions = []
    for query, hits in zip(queries.items, found, strict=True):
        print(query)
        for rank, hit in enumerate(hits, start=1):
            print(f"{rank:4}  {hit.similarity:.4f}  {hit.class_name or '':30}  {hit.file}")
        told = ", ".join(f"{hit.similarity:.2f} {hit.class_name or hit.file}" for hit in hits)
        captions.append(f"{query.name}: {told}")
    if chosen.out:
        pictures = [queries[number]["image"] for number in range(len(queries))]
        rows, missing = sheet_rows(index, pictures, found)
        save_png(chosen.out, contact_sheet(rows, captions))
        lost = f"; {missing} images were not found and are white" if missing else ""
        print(f"{chosen.out}: a row for each query, the query first{lost}")


def check_png(out: Path | None) -> None:
    """Refuse another suffix before anything is computed."""
    if out is not None and out.suffix.lower() != ".png":
        raise ValueError(f"{out}: the suffix of a sheet is .png")
