"""PASCUB: birds of CUB and of PASCAL with ten parts, as the CoarseSup and PARTICLE authors ship it.

    CUB_Parts/images_train/NAME     CUB_Parts/parts_train/NAME       one part number per pixel
    PASCAL_Parts/images_train/NAME  PASCAL_Parts/parts_train/NAME
    ..._test                        likewise

Paper: Saha, Cheng & Maji, "Improving few-shot part segmentation using coarse supervision", ECCV
2022. The layout and the part numbers are those that public readers of the set use (not verified on
the set itself); that 4-5, 6-7 and 8-9 are left and right is also in PARTICLE's code. Training
images are those of both halves, test images too. There are no class labels.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from fg_ssl_zoo.config import Data
from fg_ssl_zoo.data.folders import FolderImages, data_name
from fg_ssl_zoo.data.listing import list_images
from fg_ssl_zoo.data.part_annotations import PartMasks, refuse_missing_masks

HALVES = ("CUB_Parts", "PASCAL_Parts")

PARTS = [
    "head", "beak", "tail", "left_wing", "right_wing", "left_leg", "right_leg", "left_eye",
    "right_eye", "torso",
]  # fmt: skip
"""Names of the mask values 1 to 10; 0 is background."""


@dataclass
class PascubMasks(PartMasks):
    """Masks that lie in `parts_SPLIT` beside `images_SPLIT`, under the image's own name."""

    def files(self, path: str) -> list[str]:
        """The mask of an image."""
        half, split, name = path.split("/", 2)
        folder = os.path.join(self.folder, half, split.replace("images_", "parts_", 1))
        same = os.path.join(folder, name)
        return [same if os.path.isfile(same) else os.path.splitext(same)[0] + ".png"]


def pascub_folder(folder: Path) -> Path | None:
    """The folder itself if it holds a half of PASCUB."""
    there = [(folder / half / "images_train").is_dir() for half in HALVES]
    return folder if any(there) else None


def load_pascub(data: Data, root: Path) -> tuple[FolderImages, FolderImages | None]:
    """Training and test images of the halves that are there, with part masks.

    Raises:
        ValueError: An image has no mask.
    """
    train, test = (_split(data, root, split) for split in ("train", "test"))
    assert train is not None
    return train, test


def _split(data: Data, root: Path, split: str) -> FolderImages | None:
    folders = [f"{half}/images_{split}" for half in HALVES if (root / half).is_dir()]
    paths = [
        f"{folder}/{path}"
        for folder in folders
        if (root / folder).is_dir()
        for path in list_images(root / folder).paths
    ]
    if not paths:
        return None
    masks = PascubMasks(list(PARTS), str(root))
    refuse_missing_masks(masks, paths)
    return FolderImages(root, paths, name=data_name(data), masks=masks)
