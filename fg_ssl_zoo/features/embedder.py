"""Features of single images, for notebooks and scripts.

    model = fg_ssl_zoo.load("runs/x")
    features = model.embed(["a.jpg", "b.jpg"])      # (2, d) float32

For whole data sets, `embed_dataset.py` writes a file and continues after an interruption.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float32

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.config import CROP_PCT
from fg_ssl_zoo.data.inputs import GivenImages
from fg_ssl_zoo.engine.hardware import evaluation_accelerator
from fg_ssl_zoo.features.extract import ready, stream


@dataclass(frozen=True)
class Embedder:
    """A backbone with its preprocessing and device.

    Attributes:
        backbone: Backbone in evaluation mode on the accelerator's device.
        accelerator: Device and precision.
        crop_pct: Share of the shorter side that the centre crop keeps.
    """

    backbone: Backbone
    accelerator: Accelerator
    crop_pct: float = CROP_PCT

    def embed(
        self, pictures: Any, *, batch_size: int = 64, num_workers: int = 0
    ) -> Float32[np.ndarray, "n d"]:
        """A row of pooled features for each image, in the order given.

        Args:
            pictures: File names, Pillow images or uint8 arrays, one or a sequence of them; or a
                folder, for all images below it (`9.jpg` before `10.jpg`).
            batch_size: Batch size of the forward passes.
            num_workers: Number of loader processes.

        Raises:
            ValueError: Something that is not an image; the message names it.
        """
        images = GivenImages(pictures)
        rows = np.empty((len(images), self.backbone.num_features), np.float32)
        numbers = range(len(images))
        batches = stream(
            self.backbone, images, self.accelerator, numbers,
            crop_pct=self.crop_pct, batch_size=batch_size, num_workers=num_workers,
        )  # fmt: skip
        for start, (features, which) in zip(numbers[::batch_size], batches, strict=True):
            for unreadable in set(numbers[start : start + batch_size]) - set(which.tolist()):
                images[unreadable]  # raises its error
            rows[which.numpy()] = features.numpy()
        return rows


def load(
    model: str,
    *,
    image_size: int | None = None,
    crop_pct: float | None = None,
    accelerator: Accelerator | None = None,
) -> Embedder:
    """Open a model to compute features of images.

    Args:
        model: Text for `open_backbone`: `runs/NAME`, `hf-hub:OWNER/NAME`, a timm name, ...
        image_size: Side of the input in pixels; the model's own when not given.
        crop_pct: Share of the shorter side that the centre crop keeps; the model's own when not
            given. Use 1 for images that are already cropped to the object.
        accelerator: Device and precision; chosen by the hardware when not given.

    Raises:
        ValueError: No such model, or a size that does not fit.
    """
    torch.manual_seed(0)  # ARCHITECTURE@scratch has the same weights in every process
    accelerator = accelerator or evaluation_accelerator()
    backbone = open_backbone(model, image_size=image_size)
    return Embedder(ready(backbone, accelerator), accelerator, crop_pct or backbone.crop_pct)
