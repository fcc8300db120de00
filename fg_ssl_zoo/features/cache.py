"""Cached features: one file for each backbone, split and view.

The name of a file is a hash of everything that determines its content: the model's identity,
images, crop and precision. Nothing is unpickled.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.data.datasets import file_state, fingerprint, image_name
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.data.tensor_cache import as_text, cache_file, read_tensors, write_tensors
from fg_ssl_zoo.features.extract import Features, Layer, any_readable, centre_view, extract


def features_of(
    backbone: Backbone,
    images: Images,
    accelerator: Accelerator,
    *,
    crop_pct: float | None = None,
    layer: int | None = None,
    num_workers: int = 0,
    cache: Path | None = None,
) -> Features:
    """The result of `extract`, read from the cache if possible; equal on every process.

    Args:
        backbone: As for `extract`.
        images: As for `extract`.
        accelerator: As for `extract`.
        crop_pct: As for `extract`.
        num_workers: As for `extract`.
        layer: Feature map whose mean is read instead of the pooled features, as `Layer.number`.
        cache: Folder of the files; by default `assets/fg_ssl_zoo` in the Hugging Face cache.

    Raises:
        ValueError: Features that are not finite; the message names the images.
    """
    read = None if layer is None else Layer(layer)
    about = {
        **identity(backbone, layer),
        "grid": None if read is None else read.grid,
        "pictures": [fingerprint(images), file_state(images)],
        "view": asdict(centre_view(backbone, crop_pct)),
        "precision": accelerator.mixed_precision,
        "format": 3,
    }
    path = cache_file(about, "features", cache)
    accelerator.wait_for_everyone()
    found = _read(path)
    if found and any_readable(images, sorted({*range(len(images))} - {*found.indices.tolist()})):
        found = None
    accelerator.wait_for_everyone()  # no process writes before all have looked
    if found is None:
        found = extract(
            backbone, images, accelerator,
            crop_pct=crop_pct, num_workers=num_workers, read=read or Backbone.__call__,
        )  # fmt: skip
        _check_finite(found, images, backbone)
        if accelerator.is_main_process:
            _write(path, found, about)
    return found


def _check_finite(found: Features, images: Images, backbone: Backbone) -> None:
    bad = (~found.features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        names = [image_name(images, int(found.indices[row])) for row in bad[:5]]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{backbone.init}: the features of {', '.join(names)}{more} are not finite; "
            "try speed.precision=fp32, or check the weights"
        )


def _read(path: Path) -> Features | None:
    tensors = read_tensors(path)
    if tensors is None:
        return None
    return Features(tensors["features"], tensors.get("labels"), tensors["indices"])


def _write(path: Path, found: Features, about: dict[str, Any]) -> None:
    tensors = {"features": found.features, "indices": found.indices}
    if found.labels is not None:
        tensors["labels"] = found.labels
    write_tensors(path, tensors, {"about": as_text(about)})
