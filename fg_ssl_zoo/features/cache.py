"""Features that are computed once: a file for each backbone, split and view.

A file's name is the fingerprint of all that decides its content: the model's identity, pictures,
crop and precision. Nothing else is trusted, and nothing is unpickled.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from huggingface_hub import cached_assets_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.identity import identity
from fg_ssl_zoo.data.datasets import file_state, fingerprint, image_name
from fg_ssl_zoo.data.sample import Images
from fg_ssl_zoo.features.extract import Features, Layer, any_readable, centre_view, extract


def features_of(
    backbone: Backbone,
    images: Images,
    accelerator: Accelerator,
    *,
    crop_pct: float | None = None,
    layer: Layer | None = None,
    num_workers: int = 0,
    cache: Path | None = None,
) -> Features:
    """`extract`, or its file if the same was asked before; equal on every process.

    Args:
        backbone: As for `extract`.
        images: As for `extract`.
        accelerator: As for `extract`.
        crop_pct: As for `extract`.
        num_workers: As for `extract`.
        layer: Instead of the pooled features.
        cache: Folder of the files; `assets/fg_ssl_zoo` of the Hugging Face cache by default.

    Raises:
        ValueError: Features that are not finite; the message names the pictures.
    """
    about = {
        **identity(backbone, None if layer is None else layer.number),
        "grid": None if layer is None else layer.grid,
        "pictures": [fingerprint(images), file_state(images)],
        "view": asdict(centre_view(backbone, crop_pct)),
        "precision": accelerator.mixed_precision,
        "format": 3,
    }
    text = json.dumps(about, sort_keys=True)
    folder = cache or cached_assets_path("fg_ssl_zoo", namespace="features")
    path = folder / f"{hashlib.blake2b(text.encode(), digest_size=12).hexdigest()}.safetensors"
    accelerator.wait_for_everyone()
    found = _read(path)
    if found and any_readable(images, sorted({*range(len(images))} - {*found.indices.tolist()})):
        found = None
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    if found is None:
        read: Any = {} if layer is None else {"read": layer}
        found = extract(
            backbone, images, accelerator, crop_pct=crop_pct, num_workers=num_workers, **read
        )
        _check_finite(found, images, backbone)
        if accelerator.is_main_process:
            _write(path, found, text)
    return found


def _check_finite(found: Features, images: Images, backbone: Backbone) -> None:
    bad = (~found.features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        names = [image_name(images, int(found.indices[row])) for row in bad[:5]]
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise ValueError(
            f"{backbone.init}: the features of {', '.join(names)}{more} are not finite; "
            "speed.precision=fp32 may help, or the weights are broken"
        )


def _read(path: Path) -> Features | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):  # cut off while it was written: made anew
        return None
    return Features(tensors["features"], tensors.get("labels"), tensors["indices"])


def _write(path: Path, found: Features, about: str) -> None:
    tensors = {"features": found.features, "indices": found.indices}
    if found.labels is not None:
        tensors["labels"] = found.labels
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"about": about})
    part.replace(path)
