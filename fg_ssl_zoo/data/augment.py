"""Edits of one picture that a recipe can put before a view.

An edit takes (h, w, 3) uint8 and a generator, and gives the same out.

    EDITS = {name: edit}      `pair: gamma` in a SimCLR recipe edits the second view's picture
"""

from collections.abc import Callable

import cv2
import numpy as np

Edit = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def gamma(
    image: np.ndarray, generator: np.random.Generator, low: float = 0.5, high: float = 2.5
) -> np.ndarray:
    """Power law with a random exponent; black and white stay where they are.

    SSL-Cassava (Breiki et al., 2021, arXiv 2107.13973): exponent uniform in [0.5, 2.5].
    """
    return power_law(image, generator.uniform(low, high))


def power_law(image: np.ndarray, exponent: float) -> np.ndarray:
    """`255 * (v / 255) ** exponent` of every value; the identity for exponent 1."""
    table = (np.linspace(0, 1, 256) ** exponent * 255).round().astype(np.uint8)
    return cv2.LUT(image, table)


EDITS: dict[str, Edit] = {"gamma": gamma}
