"""An ONNX file of a backbone, to run it without Python or torch.

    input  `images`    (batch, 3, height, width) float32, scaled and normalised as for timm
    output `features`  (batch, d) float32, the pooled features; `logits` (batch, c) of a classifier

The batch size is free. Height and width are free, except for networks that depend on the size, such
as those with patches or TensorFlow's padding. The file's metadata contain the preprocessing:
`mean`, `std`, `image_size`, `crop_pct`, `interpolation`, `crop_mode`; for a classifier also
`labels`.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.build import size_arguments
from fg_ssl_zoo.config import home_path
from fg_ssl_zoo.layers.modes import evaluating

TOLERANCE = 1e-3
"""Largest difference of a feature from torch's, relative to the largest feature."""

INPUT = "images"

SIZED = (Conv2dSame, AvgPool2dSame, MaxPool2dSame, ScaledStdConv2dSame, StdConv2dSame)
"""Layers with TensorFlow's padding."""


def export_onnx(backbone: Backbone, file: str | Path, labels: Sequence[str] = ()) -> bool:
    """Write the file, and compare it with torch if onnxruntime is installed.

    Args:
        backbone: Not changed.
        file: `FILE.onnx`; an existing file is replaced.
        labels: Class names, if the network returns logits.

    Returns:
        Whether it was compared.

    Raises:
        ValueError: A package is missing, the file has another suffix, the network cannot be
            written, or the outputs of the file differ from torch's.
    """
    _require("onnx", "onnxscript")
    if Path(file).suffix != ".onnx":  # before another file is overwritten
        raise ValueError(f"{file}: the suffix is .onnx")
    file, size = home_path(file), backbone.image_size
    shape: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if takes_any_size(backbone):
        shape |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    pixels = torch.zeros(2, 3, size, size)
    with evaluating(backbone), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                backbone.model, (pixels,), input_names=[INPUT],
                output_names=["logits" if labels else "features"],
                dynamic_shapes=(shape,), dynamo=True, verbose=False,
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"torch cannot write {backbone.name} as ONNX: {reason}") from error
        about = _metadata(backbone) | ({"labels": json.dumps(list(labels))} if labels else {})
        program.model.metadata_props.update(about)
        file.parent.mkdir(parents=True, exist_ok=True)
        program.save(str(file), external_data=False)
    compared = importlib.util.find_spec("onnxruntime") is not None
    if compared:
        check_onnx(backbone, file)
    return compared


def takes_any_size(backbone: Backbone) -> bool:
    """Whether one file can read images of every size.

    TensorFlow's padding is computed from the size in every layer; with a free size, torch's
    exporter does not terminate.
    """
    if any(isinstance(module, SIZED) for module in backbone.modules()):
        return False
    return backbone.patch_size is None and not size_arguments(backbone.name, backbone.image_size)


def _metadata(backbone: Backbone) -> dict[str, str]:
    """The preprocessing as metadata; lists and numbers as JSON."""
    found = {
        "architecture": backbone.name,
        "mean": backbone.mean,
        "std": backbone.std,
        "image_size": backbone.image_size,
        "crop_pct": backbone.crop_pct,
        "interpolation": backbone.interpolation,
        "crop_mode": backbone.crop_mode,
    }
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in found.items()}


def check_onnx(backbone: Backbone, file: Path) -> None:
    """Refuse a file whose features differ from torch's for several batches and sizes.

    Args:
        backbone: Backbone that the file was written from.
        file: ONNX file.

    Raises:
        ValueError: States the difference.
    """
    size = backbone.image_size
    larger = (size + 32, size + 64) if takes_any_size(backbone) else (size, size)
    for count, sides in ((1, (size, size)), (3, larger)):
        noise = np.random.default_rng(0).standard_normal((count, 3, *sides), dtype=np.float32)
        with evaluating(backbone), torch.no_grad():
            device = next(backbone.parameters()).device
            wanted = backbone(torch.from_numpy(noise).to(device)).float().cpu().numpy()
        found = run_onnx(file, noise)
        error = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-12))
        if not error <= TOLERANCE:  # nor nan
            raise ValueError(f"{file}: its features differ from torch's by {error:.1%}")


def run_onnx(file: Path, images: Float[np.ndarray, "b 3 h w"]) -> Float[np.ndarray, "b d"]:
    """Features, or logits, of normalised images by onnxruntime on the CPU.

    Raises:
        ValueError: onnxruntime is not installed.
    """
    _require("onnxruntime")
    from onnxruntime import InferenceSession  # pyright: ignore[reportMissingImports]

    session = InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (features,) = cast(list[Any], session.run(None, {INPUT: images}))
    return features


def _require(*packages: str) -> None:
    """Raises: ValueError: One is not installed, and how to get it."""
    if lacking := _lacking(packages):
        raise ValueError(
            f"{' and '.join(lacking)} not installed; run pip install 'fg-ssl-zoo[onnx]'"
        )


def _lacking(packages: Sequence[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]
