"""Images that tests need and no data set has."""

from collections.abc import Collection

import cv2
import numpy as np

from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.sample import CorruptImage, Sample


class SomeCorrupt:
    """Drawn birds of which some cannot be read, with or without labels."""

    def __init__(
        self, birds: DrawnBirds, corrupt: Collection[int] = (), *, labelled: bool = True
    ) -> None:
        self.birds, self.corrupt = birds, corrupt
        self.name, self.classes = birds.name, birds.classes
        self.labels = birds.labels if labelled else None

    def __len__(self) -> int:
        return len(self.birds)

    def __getitem__(self, index: int) -> Sample:
        if index in self.corrupt:
            raise CorruptImage(f"{index}.jpg is truncated")
        return self.birds[index]


class Drawings:
    """Images given as arrays."""

    name, classes, labels = "drawings", [], None

    def __init__(self, *pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return {"image": self.pictures[index], "index": index}


def write_photos(root, birds, *, classes=False, split_of=None):
    """A PNG for each bird below `root`: `INDEX.png`, in folders of splits and classes if wanted.

    Args:
        root: Is made.
        birds: Drawn ones.
        classes: In a folder with the name of their class.
        split_of: Index -> `train` or `test`, the folder above that.
    """
    for index in range(len(birds)):
        folder = root / (split_of(index) if split_of else "")
        folder = folder / (birds.classes[birds.labels[index]] if classes else "")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), birds[index]["image"][..., ::-1])


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth forms under fine noise: what an area mean and a bicubic filter see differently."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = generator.integers(-40, 41, (height, width, 3))
    return (smooth + noise).clip(0, 255).astype(np.uint8)
