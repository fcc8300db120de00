"""A classifier as a folder that timm, transformers and onnxruntime open without us.

config.json         architecture, preprocessing, `label_names`
model.safetensors   the backbone and its linear classifier under timm's keys
model.onnx          the same for onnxruntime, if the extra `onnx` is installed
README.md           card: classes, accuracy, and the lines that load it
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from jaxtyping import Float
from torch import Tensor, nn

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.weights.config import read_config
from fg_ssl_zoo.backbones.weights.folder import CONFIG, WEIGHTS, write_network
from fg_ssl_zoo.config import home_path, printable
from fg_ssl_zoo.hub.export import CARD, names_in, replacing, stock_config
from fg_ssl_zoo.hub.onnx_file import export_onnx

ONNX = "model.onnx"
TAG = "classifier"
"""Of the pretrained configuration in timm."""

FILES = frozenset({CONFIG, WEIGHTS, CARD, ONNX})

_CARD = """---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, transformers]
{license}---

# {title}

{how} {score}

```python
from transformers import pipeline

classify = pipeline("image-classification", model="{folder}")
print(classify("image.jpg"))
```

```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
names = model.pretrained_cfg["label_names"]
```

{onnx}{num_classes} classes: {classes}
"""


def write_classifier(
    backbone: Backbone,
    weight: Float[Tensor, "c d"],
    bias: Float[Tensor, " c"],
    classes: Sequence[str],
    folder: str | Path,
    *,
    num_labelled: int,
    accuracy: float | None = None,
    num_test: int = 0,
    finetuned_epochs: float | None = None,
) -> Path:
    """Write the folder; an earlier classifier there is replaced once the new one is complete.

    Args:
        backbone: Backbone whose pooled features the classifier reads; not changed.
        weight: Weight of the classifier.
        bias: Bias of the classifier.
        classes: Class names in the order of the rows.
        folder: New or empty folder, or an earlier classifier.
        num_labelled: Number of labelled images that it was trained on.
        accuracy: Accuracy in 0..1 on other images, if there are any.
        num_test: Number of these other images.
        finetuned_epochs: Passes over the labelled images in which backbone and classifier were
            trained together; `None` for a classifier on frozen features.

    Returns:
        The folder, as an absolute path.

    Raises:
        ValueError: The folder holds something else, or the network has no linear classifier.
    """
    folder = home_path(folder).resolve()
    check_folder_of_classifier(folder)
    config = _config(backbone, classes)
    model = _with_classifier(backbone, config, weight, bias)
    with replacing(folder) as part:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        write_network(part, config, state)
        has_onnx = importlib.util.find_spec("onnxscript") is not None
        if has_onnx:
            whole = Backbone(
                model, backbone.name, image_size=backbone.image_size, mean=backbone.mean,
                std=backbone.std, crop_pct=backbone.crop_pct,
                interpolation=backbone.interpolation, crop_mode=backbone.crop_mode,
            )  # fmt: skip
            export_onnx(whole, part / ONNX, labels=classes)
        card = _CARD.format(
            license=_license_line(config), title=printable(folder.name),
            how=_how(printable(_named(backbone.init)), num_labelled, finetuned_epochs),
            num_classes=len(classes), folder=printable(folder.name),
            score=_score(accuracy, num_test), classes=", ".join(map(printable, classes)),
            onnx="`model.onnx` gives logits; its metadata hold `labels`, mean and std.\n\n"
            if has_onnx else "",
        )  # fmt: skip
        (part / CARD).write_text(card, encoding="utf-8")
    return folder


def check_folder_of_classifier(folder: Path) -> None:
    """Refuse a folder with other files than an earlier classifier.

    Raises:
        ValueError: The folder contains other files, or another model; they are named.
    """
    found = names_in(folder, "a classifier is a folder")
    if foreign := sorted(found - FILES):
        raise ValueError(
            f"{folder} holds {', '.join(foreign[:3])}, which is not part of a classifier; name a "
            "new folder"
        )
    if found and not _is_classifier(folder):
        raise ValueError(
            f"{folder} holds {', '.join(sorted(found))}, which fgssl classifier did not write; "
            "name a new folder"
        )


def _is_classifier(folder: Path) -> bool:
    """Whether `write_classifier` wrote a folder, by the tag in its config.json."""
    try:
        return (read_config(folder).get("pretrained_cfg") or {}).get("tag") == TAG
    except (OSError, ValueError):
        return False


def _config(backbone: Backbone, classes: Sequence[str]) -> dict[str, Any]:
    """`config.json` for timm's `local-dir:` and transformers' TimmWrapper."""
    license = (getattr(backbone.model, "pretrained_cfg", None) or {}).get("license")
    config = stock_config(backbone, TAG, backbone.crop_pct, license)
    config["pretrained_cfg"] |= {
        "num_classes": len(classes),
        "interpolation": backbone.interpolation,
        "crop_mode": backbone.crop_mode,
    }
    return {**config, "num_classes": len(classes), "label_names": list(classes)}


def _with_classifier(
    backbone: Backbone, config: dict[str, Any], weight: Tensor, bias: Tensor
) -> nn.Module:
    """The timm network with this classifier, in evaluation mode on the CPU.

    Raises:
        ValueError: Its classifier is not one linear layer on the pooled features.
    """
    model: Any = timm.create_model(
        config["architecture"], num_classes=config["num_classes"], **config["model_args"]
    )
    own = model.get_classifier()
    if not isinstance(own, nn.Linear) or own.weight.shape != weight.shape:
        raise ValueError(
            f"{config['architecture']}: its classifier in timm is not one linear layer on the "
            "pooled features; another network is needed"
        )
    state = {key: value.cpu() for key, value in backbone.model.state_dict().items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    names = {name for name, p in model.named_parameters() if p is own.weight or p is own.bias}
    if unexpected or set(missing) != names:
        raise ValueError(f"{config['architecture']}: timm builds it otherwise with a classifier")
    own.weight.data.copy_(weight)
    own.bias.data.copy_(bias)
    return model.eval()


def _license_line(config: dict[str, Any]) -> str:
    found = config["pretrained_cfg"].get("license")
    return f"license: {found}\n" if found else ""


def _named(init: str) -> str:
    """The name of a model without paths of this machine."""
    place = home_path(init.removeprefix("local-dir:"))
    return place.resolve().name if place.exists() else init


def _how(model: str, num_labelled: int, epochs: float | None) -> str:
    """How the classifier was trained, for the card."""
    if epochs is None:
        return (
            f"A linear classifier on the features of `{model}`, fitted by logistic regression on "
            f"{num_labelled}\nlabelled images."
        )
    return (
        f"`{model}` and a linear classifier, fine-tuned together for {epochs:g} passes over "
        f"{num_labelled}\nlabelled images."
    )


def _score(accuracy: float | None, num_test: int) -> str:
    if accuracy is None:
        return "It was not scored on other images."
    return f"Accuracy on {num_test} other images: {100 * accuracy:.1f} %."
