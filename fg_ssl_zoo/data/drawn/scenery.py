"""All that is not bird: background, what the bird sits on, what grows there, and the light.

Nothing here knows the species, so neither the surroundings nor the light carry a label.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from fg_ssl_zoo.data.drawn.anatomy import PARTS
from fg_ssl_zoo.data.drawn.painter import (
    OVERSAMPLING,
    Canvas,
    Colour,
    Pixels,
    Points,
    mixed,
    smooth,
)
from fg_ssl_zoo.data.drawn.plumage import ACCENTS

BACKGROUNDS: list[tuple[Colour, Colour, Colour]] = [  # above, below, blobs
    ((168.0, 204.0, 226.0), (214.0, 222.0, 206.0), (140.0, 172.0, 128.0)),  # open sky
    ((142.0, 178.0, 118.0), (92.0, 128.0, 74.0), (198.0, 214.0, 140.0)),  # spring leaves
    ((70.0, 98.0, 72.0), (46.0, 70.0, 52.0), (128.0, 152.0, 92.0)),  # deep wood
    ((196.0, 178.0, 128.0), (148.0, 122.0, 82.0), (222.0, 198.0, 132.0)),  # autumn
    ((186.0, 190.0, 192.0), (146.0, 152.0, 150.0), (112.0, 122.0, 116.0)),  # fog
    ((222.0, 182.0, 160.0), (150.0, 140.0, 150.0), (240.0, 214.0, 170.0)),  # dusk
    ((108.0, 148.0, 158.0), (76.0, 116.0, 118.0), (170.0, 200.0, 190.0)),  # water
]
LEAVES: list[Colour] = [
    (86.0, 138.0, 58.0),
    (122.0, 164.0, 70.0),
    (58.0, 104.0, 58.0),
    (190.0, 142.0, 54.0),
    (176.0, 92.0, 52.0),
]
BARKS: list[Colour] = [(98.0, 76.0, 60.0), (122.0, 106.0, 92.0), (84.0, 74.0, 70.0)]
EARTHS: list[Colour] = [
    (124.0, 104.0, 76.0),
    (104.0, 118.0, 66.0),
    (156.0, 140.0, 108.0),
    (88.0, 108.0, 70.0),
]
PETALS = ["red", "orange", "yellow", "blue", "white"]
"""Flowers and berries have the colours of the birds' marks, so that a colour alone says nothing."""

BACKGROUND_SIZE = 48
BACKGROUND_SHARES = np.linspace(0, 1, 6)[:, None, None]

LEAF = smooth(np.array([(0.0, 0.0), (0.24, 0.4), (0.0, 1.0), (-0.24, 0.4)]))
LEAF_RIB = np.array([(0, 0), (0, 0.85)])
BLADE = np.array(
    [(-0.05, 0), (0, 0.35), (0.16, 0.72), (0.5, 1), (0.3, 0.7), (0.15, 0.35), (0.08, 0)]
)
CIRCLE = np.stack([f(np.linspace(0, 2 * np.pi, 20, endpoint=False)) for f in (np.cos, np.sin)], 1)

LEVELS = np.arange(256.0)[:, None, None]
HEIGHTS = np.zeros(256, np.uint8)
HEIGHTS[1 : len(PARTS) + 1] = 150
HEIGHTS[[PARTS.index("wing") + 1, PARTS.index("beak") + 1]] = (215, 190)
HEIGHTS[PARTS.index("tail") + 1] = 110


class Seat(NamedTuple):
    """What the bird sits on, with the plants that grow there and before the bird.

    Fields:
        slope: Slope of the branch or the ground, as a tangent.
        width: Width of the branch, as a share of the image.
        draws: Uniform numbers that place and turn the plants.
    """

    on_branch: bool
    slope: float
    width: float
    colour: Colour
    leaf: Colour
    petal: Colour
    draws: Float[np.ndarray, "12 4"]
    num_leaves: int
    num_petals: int
    in_front: bool

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Seat":
        on_branch = bool(rng.random() < 0.72)
        grounds = BARKS if on_branch else EARTHS
        return cls(
            on_branch=on_branch,
            slope=float(rng.uniform(-0.28, 0.28)),
            width=float(rng.uniform(0.035, 0.07)),
            colour=jittered(grounds[rng.integers(len(grounds))], rng),
            leaf=jittered(LEAVES[rng.integers(len(LEAVES))], rng),
            petal=jittered(ACCENTS[PETALS[rng.integers(len(PETALS))]], rng),
            draws=rng.random((12, 4)),
            num_leaves=int(rng.integers(2, 7)),
            num_petals=int(max(0, rng.integers(-3, 6))),
            in_front=bool(rng.random() < 0.35),
        )


def jittered(colour: Colour, rng: np.random.Generator) -> Colour:
    """The colour with a small random change."""
    red, green, blue = (colour + rng.uniform(-12, 12, 3)).tolist()
    return red, green, blue


def paint_background(size: int, rng: np.random.Generator) -> Canvas:
    """Sky or foliage out of focus, drawn small and enlarged: gradient, patches, twigs, blobs."""
    above, below, blob = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    field = np.array(above) + BACKGROUND_SHARES * (np.array(below) - above)
    field = field + rng.normal(0, 13, (6, 6, 1)) + rng.normal(0, 5, (6, 6, 3))
    field = field.clip(0, 255).astype(np.uint8)
    small = Canvas(cv2.resize(field, (BACKGROUND_SIZE,) * 2, interpolation=cv2.INTER_CUBIC))
    dark = mixed(below, (30.0, 34.0, 26.0), 0.5)
    twigs = small.locate(rng.random((3, 2, 2)) * [[1, 0.2], [1, 0.3]] + [[0, -0.2], [0, 0.8]])
    for twig, share, width in zip(twigs, (0.0, 0.3, 0.6), rng.random(3).tolist(), strict=True):
        small.stroke([twig], 0.02 + 0.04 * width, mixed(dark, below, share))
    draws = rng.random((7, 4))
    for centre, (_, y, radius, share) in zip(
        small.locate(draws[:, :2]).tolist(), draws.tolist(), strict=True
    ):
        colour = mixed(mixed(above, below, y), blob, 0.25 + 0.5 * share)
        small.disc(centre, 0.03 + 0.09 * radius, colour)
    small.blur(float(rng.uniform(0.015, 0.05)))
    full = (size * OVERSAMPLING,) * 2
    return Canvas(cv2.resize(small.pixels, full, interpolation=cv2.INTER_LINEAR))


def paint_seat(canvas: Canvas, seat: Seat, feet: Float[np.ndarray, "2"]) -> None:
    """The branch or the ground under the feet, with what grows behind the bird."""
    (_paint_branch if seat.on_branch else _paint_ground)(canvas, seat, feet)


def paint_front(canvas: Canvas, seat: Seat, feet: Float[np.ndarray, "2"]) -> None:
    """Grass or a leaf before the bird's feet; it hides what is behind it, in the mask too."""
    if not seat.in_front:
        return
    if seat.on_branch:
        root = feet + np.array([0.2 * seat.draws[0, 1] - 0.1, 0.03])
        turn = np.array([110 + 140 * seat.draws[0, 0]])  # upwards
        ((outline, rib),) = _leaves(canvas, root[None], turn, np.array([0.15]))
        canvas.fill(outline, seat.leaf, part=0)
        canvas.stroke([rib], 0.006, mixed(seat.leaf, (250.0, 250.0, 220.0), 0.35))
    else:
        roots = feet + np.array([-0.2, 0.07]) + seat.draws[:5, :2] * [0.4, 0.05]
        for blade in _blades(canvas, roots, seat.draws[:5]):
            canvas.fill(blade, seat.leaf, part=0)


def _paint_branch(canvas: Canvas, seat: Seat, feet: Points) -> None:
    x = np.array([-0.05, 0.3, 0.7, 1.05])
    bend = 0.03 * (seat.draws[:4, 3] - 0.5) + seat.slope
    y = feet[1] + 0.42 * seat.width + bend * (x - feet[0])
    half = seat.width * (0.5 + 0.18 * np.sign(seat.slope) * (x - 0.5))
    # Upper edge, a line of light, the middle, the edge of the shadow, lower edge.
    lines = np.empty((5, 4, 2))
    lines[:, :, 0] = x
    lines[:, :, 1] = y + np.array([-1, -0.55, 0, 0.2, 1])[:, None] * half
    lines = smooth(lines.swapaxes(0, 1).reshape(4, 10), closed=False, steps=3).reshape(-1, 5, 2)
    centre = lines[:, 2]
    upper, gleam, _, shade, lower = canvas.locate(lines.swapaxes(0, 1))
    canvas.fill(np.concatenate([upper, lower[::-1]]), seat.colour)
    canvas.fill(np.concatenate([shade, lower[::-1]]), mixed(seat.colour, (20.0, 16.0, 20.0), 0.35))
    canvas.stroke([gleam], 0.008, mixed(seat.colour, (236.0, 224.0, 200.0), 0.3))
    along, turns, sizes, sides = seat.draws[: seat.num_leaves].T
    roots = centre[(along * (len(centre) - 1)).astype(int)]
    angles = (20 + 140 * turns) * np.where(sides < 0.5, 1, -1)
    leaves = _leaves(canvas, roots, angles, 0.09 + 0.1 * sizes)
    for (outline, _), share in zip(leaves, along.tolist(), strict=True):
        canvas.fill(outline, mixed(seat.leaf, (24.0, 40.0, 24.0), 0.45 * share))
    ribs = [rib for _, rib in leaves]
    canvas.stroke(ribs, 0.006, mixed(seat.leaf, (250.0, 250.0, 220.0), 0.25))
    hang = roots[: seat.num_petals] + np.array([0.03, 0.04])
    _paint_petals(canvas, seat, hang)


def _paint_ground(canvas: Canvas, seat: Seat, feet: Points) -> None:
    x = np.linspace(-0.05, 1.05, 5)
    y = feet[1] - 0.05 + 0.3 * seat.slope * (x - feet[0]) + 0.04 * (seat.draws[:5, 3] - 0.5)
    ridge = smooth(np.stack([x, y], axis=1), closed=False)
    below = ridge[::-1] * [1, 0] + [0, 1.1]
    hill, slope = canvas.locate(
        np.stack([[*ridge, *below], [*(ridge + np.array([0, 0.14])), *below]])
    )
    canvas.fill(hill, seat.colour)
    canvas.fill(slope, mixed(seat.colour, (24.0, 26.0, 20.0), 0.22))
    shadow = feet + [0, 0.01] + CIRCLE * [0.2, 0.024]
    canvas.fill(canvas.locate(shadow), mixed(seat.colour, (20.0, 22.0, 20.0), 0.5))
    stones = seat.draws[6:, :2] * [1, 0.3] + [0, feet[1] + 0.02]
    for centre, (_, _, size, share) in zip(
        canvas.locate(stones).tolist(), seat.draws[6:].tolist(), strict=True
    ):
        stone = mixed(seat.colour, (225.0, 220.0, 210.0), 0.1 + 0.4 * share)
        canvas.disc(centre, 0.006 + 0.012 * size, stone)
    roots = seat.draws[:, :2] * [1, 0.05] + [0, feet[1] - 0.02]
    for blade in _blades(canvas, roots, seat.draws):
        canvas.fill(blade, mixed(seat.leaf, seat.colour, 0.4))
    _paint_petals(canvas, seat, roots[: seat.num_petals] * [1, 0] + [0, feet[1] - 0.1])


def _paint_petals(canvas: Canvas, seat: Seat, at: Points) -> None:
    """Berries or small flowers."""
    for (x, y), size in zip(canvas.locate(at).tolist(), seat.draws[:, 2].tolist(), strict=False):
        canvas.disc((x, y), 0.014 + 0.014 * size, seat.petal)
        canvas.disc((x, y), 0.006, mixed(seat.petal, (250.0, 240.0, 200.0), 0.5))


def _leaves(
    canvas: Canvas,
    roots: Points,
    degrees: Float[np.ndarray, " n"],
    lengths: Float[np.ndarray, " n"],
) -> list[tuple[Pixels, Pixels]]:
    """Outline and rib of every leaf; at 0 degrees it hangs down."""
    sine, cosine = np.sin(np.deg2rad(degrees)) * lengths, np.cos(np.deg2rad(degrees)) * lengths
    turns = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(-1, 2, 2)
    template = np.concatenate([LEAF, LEAF_RIB])
    pixels = canvas.locate(roots[:, None] + template @ turns)
    return [(leaf[: len(LEAF)], leaf[len(LEAF) :]) for leaf in pixels]


def _blades(canvas: Canvas, roots: Points, draws: Float[np.ndarray, "n 4"]) -> list[Pixels]:
    """Blades of grass, as high and as bent as the draws say."""
    sizes = draws[:, None, 1:3] * [0.24, -0.16] + [-0.12, -0.05]
    return list(canvas.locate(roots[:, None] + BLADE * sizes))


def light(
    pixels: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"], rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A colour cast, light from above that rounds the bird, and the noise of a camera."""
    gains = rng.uniform(0.8, 1.16) * (1 + rng.uniform(-0.09, 0.09, 3))
    cast = np.minimum(LEVELS * gains, 255).astype(np.uint8)
    side, strength, grain, softness = rng.random(4).tolist()
    noise = np.frombuffer(rng.bytes(mask.size), np.uint8).reshape(mask.shape)
    height, width = cv2.LUT(mask, HEIGHTS), (2 * round(0.02 * len(mask)) + 1,) * 2
    height = cv2.blur(cv2.blur(height, width), width)
    down, right = cv2.Sobel(height, cv2.CV_16S, 0, 1), cv2.Sobel(height, cv2.CV_16S, 1, 0)
    relief = cv2.copyTo(cv2.addWeighted(down, 1, right, side - 0.5, 0), mask)
    grain = 0.01 + 0.06 * grain
    strength = 0.25 * (0.5 + 0.5 * strength) * len(mask) / 96  # slopes are per pixel
    change = cv2.addWeighted(relief, strength, noise.astype(np.int16), grain, -127.5 * grain)
    lit = cv2.add(cv2.LUT(pixels, cast), cv2.merge([change] * 3), dtype=cv2.CV_8U)
    return cv2.GaussianBlur(lit, (3, 3), 0.25 + softness) if softness < 0.35 else lit
