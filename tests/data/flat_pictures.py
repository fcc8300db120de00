"""Folders of images of one colour."""

import itertools

import cv2
import numpy as np

from fg_ssl_zoo.config import Data


def draw(path, colour=(10, 20, 30), size=(6, 8)):
    """An image of one RGB colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), colour[::-1], np.uint8))
    return path


def draw_classes(root, num_images=5, classes=("crow", "jay")):
    for i, name in itertools.product(range(num_images), classes):
        draw(root / name / f"{i}.png", (i, 0, len(name)))


def data(path, **options) -> Data:
    return Data(path=str(path), **options)


def paths(images):
    """Relative paths behind a split."""
    if hasattr(images, "indices"):
        return [images.images.paths[int(i)] for i in images.indices]
    return list(images.paths)
