"""`fgssl export-onnx`: write a backbone as an ONNX file."""

import argparse
from pathlib import Path
from typing import Any

from fg_ssl_zoo.cli.arguments import add_image_size, add_verb


def add_verbs(verbs: Any) -> None:
    """Add the verb `export-onnx`."""
    command = add_verb(
        verbs, "export-onnx", "Write a backbone as an ONNX file that computes pooled features."
    )
    command.add_argument(
        "model", metavar="MODEL", help="a run, an exported folder, a timm or fgssl name, hf-hub:..."
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .onnx file to write"
    )
    add_image_size(command)
    command.set_defaults(run=_export, out_files=("out",))


def _export(chosen: argparse.Namespace) -> None:
    from fg_ssl_zoo.backbones.create import open_backbone
    from fg_ssl_zoo.hub.onnx_file import export_onnx, takes_any_size

    backbone = open_backbone(chosen.model, image_size=chosen.image_size)
    compared = export_onnx(backbone, chosen.out)
    side = "any size" if takes_any_size(backbone) else f"{backbone.image_size} px only"
    print(f"{chosen.out}: {chosen.out.stat().st_size / 1e6:.1f} MB, any batch, {side}; "
          f"{backbone.num_features} features of images normalised with mean "
          f"{tuple(round(m, 4) for m in backbone.mean)} and std "
          f"{tuple(round(s, 4) for s in backbone.std)}")  # fmt: skip
    print("its features equal torch's" if compared else
          "not compared with torch: onnxruntime is not installed")  # fmt: skip
