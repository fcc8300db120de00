"""How a bird is coloured and painted, from the far parts to the near ones."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fg_ssl_zoo.data.drawn.anatomy import EYE_RADIUS, PART, Pose, Skeleton
from fg_ssl_zoo.data.drawn.painter import SUBPIXELS, Canvas, Colour, Pixels, mixed
from fg_ssl_zoo.data.drawn.species import Species

BLACK: Colour = (32.0, 29.0, 34.0)
WHITE: Colour = (246.0, 243.0, 232.0)
CREAM: Colour = (240.0, 228.0, 200.0)
ACCENTS: dict[str, Colour] = {
    "black": BLACK,
    "white": WHITE,
    "red": (208.0, 44.0, 38.0),
    "orange": (240.0, 132.0, 30.0),
    "yellow": (246.0, 206.0, 48.0),
    "blue": (44.0, 92.0, 214.0),
    "dark": (58.0, 50.0, 48.0),
}
COATS: list[Colour] = [
    (124.0, 124.0, 76.0),  # olive
    (138.0, 104.0, 74.0),  # brown
    (124.0, 127.0, 132.0),  # grey
    (96.0, 116.0, 146.0),  # slate
    (164.0, 106.0, 70.0),  # rufous
    (170.0, 142.0, 88.0),  # ochre
    (86.0, 126.0, 120.0),  # teal
]
"""Colours of the body; an individual of any species wears any of them."""

BEAK_COLOURS: tuple[Colour, Colour] = ((66.0, 58.0, 54.0), (128.0, 108.0, 84.0))


class Plumage(NamedTuple):
    """Colours of one individual, apart from what its species decides."""

    coat: Colour
    beak: Colour
    tint: Float[np.ndarray, "3"]
    spots: Float[np.ndarray, "n 2"]

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Plumage":
        red, green, blue = (COATS[rng.integers(len(COATS))] + rng.uniform(-10, 10, 3)).tolist()
        return cls(
            coat=(red, green, blue),
            beak=mixed(*BEAK_COLOURS, float(rng.random())),
            tint=rng.uniform(-9, 9, 3),
            spots=rng.uniform(-0.012, 0.012, (12, 2)),
        )

    def accent(self, name: str) -> Colour:
        """A colour that the species decides, with the tint of the individual."""
        red, green, blue = (self.tint + ACCENTS[name]).tolist()
        return red, green, blue

    def shade(self, share: float) -> Colour:
        """The coat, darker (share below 0) or lighter (above 0)."""
        return mixed(self.coat, CREAM, share) if share > 0 else mixed(self.coat, BLACK, -share)


class Bird:
    """One individual of one species, ready to be painted."""

    def __init__(self, kind: Species, pose: Pose, plumage: Plumage) -> None:
        self.kind, self.pose, self.plumage = kind, pose, plumage
        self.skeleton = Skeleton(kind, pose)

    def paint(self, canvas: Canvas) -> None:
        """Paint all parts."""
        at = self.skeleton.limbs(canvas)
        self._paint_tail(canvas, at)
        self._paint_legs(canvas)
        self._paint_beak(canvas, at)
        if "crested" in self.kind.crown:
            canvas.fill(at["crest"], self._crown_colour(), PART["crown"])
        self._paint_trunk(canvas)
        self._paint_eye(canvas, at)
        self._paint_wing(canvas, at)

    def _paint_tail(self, canvas: Canvas, at: dict[str, Pixels]) -> None:
        shade = self.plumage.shade
        canvas.fill(at["tail"], shade(-0.45), PART["tail"])
        canvas.stroke([at["rib 0"], at["rib 1"]], self._share(0.012), shade(-0.68))

    def _paint_legs(self, canvas: Canvas) -> None:
        near = self.plumage.accent(self.kind.legs)
        for lines, colour in zip(
            self.skeleton.legs(canvas), (mixed(near, BLACK, 0.25), near), strict=True
        ):
            canvas.stroke(list(lines), self._share(0.034), colour, PART["legs"])

    def _paint_beak(self, canvas: Canvas, at: dict[str, Pixels]) -> None:
        colour = self.plumage.beak
        canvas.fill(at["beak"], colour, PART["beak"])
        canvas.stroke([at["gape"]], self._share(0.01), mixed(colour, BLACK, 0.6))

    def _paint_trunk(self, canvas: Canvas) -> None:
        """Body and head: soft regions in a window, marks on them, cut out by the outline."""
        shade = self.plumage.shade
        trunk = self.skeleton.trunk()
        window = canvas.window(trunk, shade(0.22))
        here = self.skeleton.coat(window)
        window.mask[:] = PART["belly"]
        window.dab(here["belly"], shade(0.62), PART["belly"])
        window.dab(here["back"], shade(-0.12), PART["back"])
        window.dab(here["breast"], shade(0.42), PART["breast"])
        window.dab(here["head"], shade(0.1), PART["head"])
        window.dab(here["throat"], shade(0.5), PART["throat"])
        window.blur(self._share(0.035))
        self._paint_breast_marks(window, here)
        self._paint_crown(window, here)
        self._paint_eye_marks(window, here)
        canvas.paste(window, window.locate(trunk))

    def _paint_breast_marks(self, window: Canvas, at: dict[str, Pixels]) -> None:
        dark = self.plumage.shade(-0.72)
        if self.kind.breast == "bibbed":
            window.fill(at["throat"], self.plumage.accent("black"))
        elif self.kind.breast == "banded":
            window.fill(at["band"], dark)
        elif self.kind.breast == "spotted":
            jitter = self.plumage.spots * (self.pose.scale * window.size * SUBPIXELS)
            for spot in (at["spots"] + jitter).astype(int).tolist():
                window.disc(spot, self._share(0.021) * self.pose.mark_size, dark)

    def _paint_crown(self, window: Canvas, at: dict[str, Pixels]) -> None:
        window.fill(at["crown"], self._crown_colour(), PART["crown"])
        colour, _, pattern = self.kind.crown.partition("-")
        if pattern == "striped":
            window.stroke([at["crown stripe"]], self._share(0.044), self.plumage.accent(colour))

    def _crown_colour(self) -> Colour:
        colour, _, pattern = self.kind.crown.partition("-")
        plain = pattern in ("headed", "striped")
        return self.plumage.shade(-0.16) if plain else self.plumage.accent(colour)

    def _paint_eye_marks(self, window: Canvas, at: dict[str, Pixels]) -> None:
        accent = self.plumage.accent
        if self.kind.eye == "masked":
            window.fill(at["eye mask"], accent("black"))
        elif self.kind.eye == "browed":
            window.stroke([at["brow"]], self._share(0.036), accent("white"))
        elif self.kind.eye == "ring-eyed":
            radius = self._share(0.074) * self.pose.mark_size
            window.disc(at["eye"][0].tolist(), radius, accent("white"))

    def _paint_eye(self, canvas: Canvas, at: dict[str, Pixels]) -> None:
        canvas.disc(at["eye"][0].tolist(), self._share(EYE_RADIUS), BLACK, PART["eye"])
        canvas.disc(at["glint"][0].tolist(), self._share(0.36 * EYE_RADIUS), WHITE)

    def _paint_wing(self, canvas: Canvas, at: dict[str, Pixels]) -> None:
        shade, accent = self.plumage.shade, self.plumage.accent
        canvas.fill(at["wing"], shade(-0.34), PART["wing"])
        canvas.fill(at["coverts"], shade(-0.2))
        canvas.fill(at["flight feathers"], shade(-0.58))
        canvas.stroke([at[f"quill {i}"] for i in range(3)], self._share(0.012), shade(-0.68))
        if self.kind.wing_patch != "none":
            canvas.fill(at["patch"], accent(self.kind.wing_patch))
        bars = {"none": [], "one": ["bar 0"], "two": ["bar 0", "bar 1"]}[self.kind.wing_bars]
        if bars:
            canvas.stroke([at[bar] for bar in bars], self._share(0.042), accent("white"))

    def _share(self, size: float) -> float:
        """A size in bird units as a share of the image."""
        return size * self.pose.scale
