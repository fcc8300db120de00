"""The species of the drawn birds: a table of small attributes, a row for every class.

Two rows differ in at least `MIN_DIFFERENCES` of the eight attributes, as in a code that corrects
errors. No row says anything about size, posture, body colour or surroundings: those belong to the
single image.
"""

import functools
from typing import NamedTuple

import numpy as np

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "beak": ("cone", "thin", "hooked", "curved", "dagger"),
    "crown": (
        "plain-headed",
        "black-capped",
        "red-crested",
        "white-striped",
        "red-capped",
        "black-crested",
        "yellow-striped",
        "blue-capped",
    ),
    "eye": ("plain", "ring-eyed", "masked", "browed"),
    "breast": ("plain", "spotted", "banded", "bibbed"),
    "wing bars": ("none", "one", "two"),
    "wing patch": ("none", "white", "orange", "blue"),
    "tail": ("short-tailed", "long-tailed", "fork-tailed", "fan-tailed"),
    "legs": ("dark", "yellow", "red"),
}
"""Every attribute with its values; all values of one attribute can be told apart in an image."""

MIN_DIFFERENCES = 3
MAX_CLASSES = 500

FAMILIES = {
    "cone": "finch",
    "thin": "warbler",
    "hooked": "shrike",
    "curved": "sunbird",
    "dagger": "kingfisher",
}


class Species(NamedTuple):
    """One row of the table; the fields are the keys of `ATTRIBUTES`, in their order."""

    beak: str
    crown: str
    eye: str
    breast: str
    wing_bars: str
    wing_patch: str
    tail: str
    legs: str


@functools.cache
def attribute_table() -> np.ndarray:
    """Value index of every attribute (columns) of every possible class (rows).

    The candidates walk through all combinations by a stride near the golden section, so that
    neighbours are far apart; a candidate that differs too little from an earlier class is skipped.
    The first rows are therefore the same for any number of classes.
    """
    sizes = [len(values) for values in ATTRIBUTES.values()]
    total = int(np.prod(sizes))
    stride = int(total * 0.6180339887) | 1
    while np.gcd(stride, total) > 1:
        stride += 2
    candidates = np.stack(np.unravel_index(np.arange(total) * stride % total, sizes), axis=1)
    table = np.empty((0, len(sizes)), dtype=np.int64)
    for candidate in candidates:
        if np.all((table != candidate).sum(axis=1) >= MIN_DIFFERENCES):
            table = np.concatenate([table, candidate[None]])
        if len(table) == MAX_CLASSES:
            break
    return table


def species(label: int) -> Species:
    """The attributes of class `label`, in words."""
    row = attribute_table()[label]
    return Species(*(values[i] for values, i in zip(ATTRIBUTES.values(), row, strict=True)))


def species_name(label: int) -> str:
    """A name a birdwatcher would give, such as "long-tailed red-crested finch 07"."""
    kind = species(label)
    return f"{kind.tail} {kind.crown} {FAMILIES[kind.beak]} {label:02d}"
