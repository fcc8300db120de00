"""Features of labelled images, for the verbs that compare them with the labels."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fg_ssl_zoo.config import Data
    from fg_ssl_zoo.data.sample import Images
    from fg_ssl_zoo.features.embedder import Embedder
    from fg_ssl_zoo.features.extract import Features


def features_of_readable(
    embedder: "Embedder", images: "Images", data: "Data", cache: Path | None
) -> "Features":
    """Features of the images that can be read; the number of the others is printed.

    Args:
        embedder: The model, with the pixels that it reads.
        images: One split.
        data: Its `num_workers` is used.
        cache: Folder of the feature files; the Hugging Face cache when not given.
    """
    from fg_ssl_zoo.data.loader import resolve_num_workers
    from fg_ssl_zoo.features.cache import features_of
    from fg_ssl_zoo.features.extract import some, unreadable
    from fg_ssl_zoo.ops.distributed import world_size

    features = features_of(
        embedder.backbone, images, embedder.accelerator, crop_pct=embedder.crop_pct,
        num_workers=resolve_num_workers(data.num_workers, world_size()), cache=cache,
    )  # fmt: skip
    if lines := unreadable(images, features):
        print(f"{len(lines)} images cannot be read and are not used: {some(lines)}")
    return features
