"""Orders of tiles: permutation sets for jigsaw puzzles, and the shuffles of several papers.

An order defines `shuffled[i] = tiles[order[i]]`. Every shuffle takes a numpy generator and the side
`n` of its grid, and returns an order of n * n tiles, row by row.
"""

from collections.abc import Callable
from importlib.resources import files
from itertools import permutations

import numpy as np
from jaxtyping import Int64, UInt8

Shuffle = Callable[[np.random.Generator, int], np.ndarray]

STORED = "permutations_3x3.txt"
"""File of 1,000 orders of nine tiles, in the sequence in which `maximal_hamming` chose them."""


def maximal_hamming(num_tiles: int, count: int, seed: int = 0) -> UInt8[np.ndarray, "p t"]:
    """Permutations that differ from each other in as many places as possible.

    Greedy (Noroozi & Favaro, 2016, arXiv 1603.09246, algorithm 1 with the maximum): the first is
    random; each further one has, among all permutations, the largest minimal distance to those
    before it; ties are broken at random. 1,000 orders of nine tiles take twenty seconds.

    Args:
        num_tiles: At most 9, since all permutations are enumerated.
        count: Number of permutations.
        seed: Seed of the first one and of the ties.
    """
    generator = np.random.default_rng(seed)
    every = np.array(list(permutations(range(num_tiles))), dtype=np.uint8)
    nearest = np.full(len(every), num_tiles + 1)
    chosen = []
    for _ in range(count):
        best = generator.choice(np.flatnonzero(nearest == nearest.max()))
        chosen.append(every[best])
        nearest = np.minimum(nearest, (every != every[best]).sum(axis=1))
    return np.stack(chosen)


def stored_permutations(count: int) -> Int64[np.ndarray, "p 9"]:
    """The first `count` of the stored orders of nine tiles.

    Raises:
        ValueError: There are fewer than `count`.
    """
    lines = (files("fg_ssl_zoo.ops") / STORED).read_text(encoding="ascii").split()
    if not 2 <= count <= len(lines):
        raise ValueError(f"num_permutations: {count} is not between 2 and {len(lines)}")
    return np.array([[int(digit) for digit in line] for line in lines[:count]], dtype=np.int64)


# --------------------------------------------------------------------------- shuffles of a grid


def uniform(generator: np.random.Generator, n: int) -> Int64[np.ndarray, " t"]:
    """Every order is equally likely."""
    return generator.permutation(n * n).astype(np.int64)


def dcl(generator: np.random.Generator, n: int, k: int = 2) -> Int64[np.ndarray, " t"]:
    """Region confusion as defined by DCL (Chen et al., CVPR 2019): a tile moves by less than 2 k.

    A draw of U(-k, k) is added to every index of a row, and the row is sorted by it; then the same
    for the columns.
    """
    row, column = np.ogrid[:n, :n]
    grid = row * n + _jittered(generator, n, k)
    return grid[_jittered(generator, n, k).T, column].ravel()


def _jittered(generator: np.random.Generator, n: int, k: int) -> np.ndarray:
    """(n, n): an order of 0..n-1 in each row."""
    return (np.arange(n) + generator.uniform(-k, k, size=(n, n))).argsort(axis=1)


def dcl_release(generator: np.random.Generator, n: int) -> Int64[np.ndarray, " t"]:
    """The rule of DCL's released code: neighbours swap positions, one pair after the other.

    Along a row, each tile and the one before it are swapped at random; then the same for the rows.
    A tile can be swapped repeatedly, so its move is not bounded.
    """
    grid = [_carried(generator, list(range(row * n, row * n + n))) for row in range(n)]
    return np.array(_carried(generator, grid), dtype=np.int64).ravel()


def _carried(generator: np.random.Generator, items: list) -> list:
    for i in range(1, len(items)):
        if generator.random() < 0.5:
            items[i - 1], items[i] = items[i], items[i - 1]
    return items


def pmg(generator: np.random.Generator, n: int) -> Int64[np.ndarray, " t"]:
    """The jigsaw generator of PMG's released code: tile 0 is swapped with every tile once.

    The result is always one cycle through all tiles, so no tile keeps its position.
    """
    order = list(range(n * n))
    for other in generator.permutation(n * n).tolist():
        order[0], order[other] = order[other], order[0]
    return np.array(order)


SHUFFLES: dict[str, Shuffle] = {
    "uniform": uniform,
    "dcl": dcl,
    "dcl_release": dcl_release,
    "pmg": pmg,
}
"""Name in a recipe -> shuffle."""


def split_tiles(image: UInt8[np.ndarray, "h w c"], n: int) -> UInt8[np.ndarray, "t th tw c"]:
    """N * n tiles, row by row.

    Raises:
        ValueError: n does not divide a side; names the nearest valid side.
    """
    height, width, channels = image.shape
    for side in (height, width):
        if side % n or side < n:
            fitting = max(n, round(side / n) * n)
            raise ValueError(f"a side of {side} pixels has no {n} equal tiles; use {fitting}")
    tiles = image.reshape(n, height // n, n, width // n, channels).swapaxes(1, 2)
    return tiles.reshape(n * n, height // n, width // n, channels)


def join_tiles(tiles: UInt8[np.ndarray, "t th tw c"]) -> UInt8[np.ndarray, "h w c"]:
    """The inverse of `split_tiles`."""
    n = round(len(tiles) ** 0.5)
    height, width, channels = tiles.shape[1:]
    grid = tiles.reshape(n, n, height, width, channels).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(n * height, n * width, channels))
