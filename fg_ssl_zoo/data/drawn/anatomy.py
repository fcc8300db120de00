"""Where every part of a bird lies.

Bird units: the body is one unit long, its middle is the origin, the bird looks to the right and y
points down. Body, head, beak, wing and tail have frames of their own, which the pose turns against
each other. The species decides only about the outlines of beak, crown, marks and tail.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fg_ssl_zoo.data.drawn.painter import Atlas, Canvas, Frame, Pixels, Points, rotation, smooth
from fg_ssl_zoo.data.drawn.species import Species

PARTS = [
    "beak",
    "crown",
    "head",
    "eye",
    "throat",
    "breast",
    "belly",
    "back",
    "wing",
    "tail",
    "legs",
]
"""Names of the part mask values 1, 2, ...; 0 is everything that is not bird."""

PART = {name: number for number, name in enumerate(PARTS, start=1)}

KEYPOINTS = {
    "beak tip": "beak",
    "crown": "crown",
    "eye": "eye",
    "nape": "head",
    "throat": "throat",
    "breast": "breast",
    "belly": "belly",
    "back": "back",
    "shoulder": "wing",
    "wing tip": "wing",
    "tail tip": "tail",
    "foot": "legs",
}
"""Every keypoint with the part that it lies on."""


class Pose(NamedTuple):
    """How one individual is built, and how it sits; angles in degrees, sizes as factors."""

    facing: float
    scale: float
    across: float
    height: float
    tilt: float
    head_angle: float
    head_reach: float
    tail_angle: float
    tail_size: float
    wing_angle: float
    stance: float
    plumpness: float
    beak_size: float
    mark_size: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Pose":
        """Draw every field uniformly from its range."""
        low, high = _POSE_BOUNDS
        facing, *values = (low + (high - low) * rng.random(len(low))).tolist()
        return cls(1.0 if facing > 0 else -1.0, *values)


POSE_RANGES: dict[str, tuple[float, float]] = {
    "facing": (-1, 1),  # the sign: left or right
    "scale": (0.43, 0.55),  # length of the body as a share of the image
    "across": (0, 1),
    "height": (0, 1),
    "tilt": (-4, 36),
    "head_angle": (-14, 16),
    "head_reach": (-0.03, 0.04),
    "tail_angle": (-26, 8),
    "tail_size": (0.9, 1.1),
    "wing_angle": (-4, 10),
    "stance": (-0.06, 0.06),
    "plumpness": (0.93, 1.1),
    "beak_size": (0.92, 1.08),
    "mark_size": (0.92, 1.1),
}
_POSE_BOUNDS = np.array([POSE_RANGES[field] for field in Pose._fields]).T


def curve(*points: tuple[float, float], closed: bool = True) -> Points:
    """A smooth line through the points."""
    return smooth(np.array(points), closed=closed)


BODY_OUTLINE = np.array([
    (0.45, -0.14), (0.49, 0.04), (0.37, 0.22), (0.1, 0.3), (-0.2, 0.23), (-0.45, 0.12),
    (-0.52, 0.02), (-0.35, -0.1), (-0.1, -0.19), (0.1, -0.28),
])  # fmt: skip
BODY = Atlas({
    "belly": curve((-0.7, 0.1), (-0.3, 0.1), (0.05, 0.16), (0.35, 0.12), (0.5, 0.5), (-0.6, 0.5)),
    "back": curve(
        (-0.7, -0.35), (0.1, -0.5), (0.22, -0.3), (0.02, -0.1), (-0.3, -0.01), (-0.6, 0.06)
    ),
    "breast": curve(
        (0.26, -0.16), (0.2, 0.08), (0.22, 0.24), (0.3, 0.4), (0.6, 0.35), (0.65, -0.15),
        (0.5, -0.22),
    ),
    "band": curve(
        (0.17, -0.02), (0.34, 0.12), (0.62, 0.06), (0.62, -0.06), (0.36, 0.0), (0.2, -0.12)
    ),
    "spots": np.array([
        (0.3 + 0.07 * column + 0.02 * (column % 2 == 0), -0.04 + 0.085 * row)
        for column in range(3)
        for row in range(4)
    ]),
})  # fmt: skip

HEAD_MIDDLE = (0.37, -0.35)
HEAD_OUTLINE = np.array([
    (-0.19, 0.05), (-0.155, -0.12), (-0.01, -0.21), (0.14, -0.14), (0.195, 0.0), (0.14, 0.13)
])  # fmt: skip
EYE = (0.065, -0.025)
EYE_RADIUS = 0.046
HEAD = Atlas({
    "head": curve(
        (-0.24, 0.06), (-0.24, -0.15), (0.0, -0.25), (0.22, -0.15), (0.26, 0.05), (0.1, 0.14),
        (-0.1, 0.16),
    ),
    "throat": curve(
        (-0.04, 0.15), (0.1, 0.08), (0.26, 0.07), (0.28, 0.26), (0.12, 0.34), (-0.02, 0.27)
    ),
    "crown": np.array([
        (-0.25, -0.03), (-0.12, -0.105), (0.08, -0.128), (0.26, -0.085), (0.2, -0.28), (-0.2, -0.28)
    ]),
    "crown stripe": curve(
        (-0.2, -0.06), (-0.13, -0.12), (0.0, -0.164), (0.12, -0.132), (0.2, -0.07), closed=False
    ),
    "eye mask": curve(
        (0.2, 0.01), (0.1, -0.075), (-0.02, -0.08), (-0.2, -0.02), (-0.05, 0.045), (0.1, 0.04)
    ),
    "brow": curve((0.15, -0.065), (0.07, -0.095), (-0.05, -0.085), (-0.16, -0.02), closed=False),
    "eye": np.array([EYE]),
})  # fmt: skip
HEAD_FRONT = Atlas({
    "crest": curve(
        (0.13, -0.13), (0.04, -0.27), (-0.24, -0.39), (-0.2, -0.26), (-0.2, -0.02), (0.0, -0.1)
    ),
    "eye": np.array([EYE]),
    "glint": np.array([(0.08, -0.043)]),
})  # fmt: skip

BEAK_ROOT = (0.13, 0.0)
BEAK_TIPS = {  # in the beak's frame, around its root
    "cone": (0.215, 0.04),
    "thin": (0.285, 0.034),
    "hooked": (0.235, 0.1),
    "curved": (0.405, 0.165),
    "dagger": (0.43, 0.04),
}
BEAKS = {
    "cone": curve((0.0, -0.08), (0.13, -0.05), (0.23, 0.04), (0.12, 0.1), (0.0, 0.12)),
    "thin": curve((0.0, -0.02), (0.17, 0.0), (0.3, 0.035), (0.17, 0.045), (0.0, 0.065)),
    "hooked": curve(
        (-0.01, -0.08), (0.16, -0.07), (0.255, 0.0), (0.245, 0.12), (0.195, 0.06), (0.0, 0.1)
    ),
    "curved": curve(
        (0.0, -0.035), (0.19, -0.03), (0.33, 0.04), (0.42, 0.19), (0.3, 0.1), (0.17, 0.05),
        (0.0, 0.07),
    ),
    "dagger": curve((-0.01, -0.075), (0.21, -0.035), (0.45, 0.04), (0.21, 0.085), (-0.01, 0.11)),
}  # fmt: skip
GAPES = {"cone": 0.16, "thin": 0.22, "dagger": 0.34}  # length of the line between the mandibles
BEAK_ATLAS = {
    kind: Atlas({"beak": outline, "gape": np.array([(0, 0.03), (GAPES.get(kind, 0), 0.035)])})
    for kind, outline in BEAKS.items()
}

SHOULDER = (0.2, -0.09)
WING_TIP = (-0.82, 0.236)
WING = Atlas({
    "wing": curve(
        (0.06, 0.06), (-0.02, -0.06), (-0.25, -0.07), (-0.5, 0.04), (-0.86, 0.25), (-0.6, 0.26),
        (-0.3, 0.28), (-0.05, 0.22),
    ),
    "coverts": curve(
        (0.05, 0.06), (-0.02, -0.05), (-0.25, -0.06), (-0.3, 0.1), (-0.16, 0.19), (-0.03, 0.18)
    ),
    "flight feathers": curve(
        (-0.44, 0.04), (-0.62, 0.12), (-0.84, 0.24), (-0.6, 0.25), (-0.45, 0.22)
    ),
    "quill 0": np.array([(-0.34, 0.06), (-0.8, 0.235)]),
    "quill 1": np.array([(-0.3, 0.14), (-0.72, 0.25)]),
    "quill 2": np.array([(-0.26, 0.21), (-0.56, 0.255)]),
    "bar 0": curve((-0.19, -0.055), (-0.17, 0.06), (-0.09, 0.17), closed=False),
    "bar 1": curve((-0.33, -0.025), (-0.31, 0.1), (-0.24, 0.21), closed=False),
    "patch": curve((-0.62, 0.13), (-0.44, 0.06), (-0.38, 0.15), (-0.44, 0.21), (-0.58, 0.21)),
})  # fmt: skip

TAIL_ROOT = (-0.42, 0.05)
TAIL_TIPS = {  # in the tail's frame, around its root
    "short-tailed": (-0.24, 0.0),
    "long-tailed": (-0.62, 0.0),
    "fork-tailed": (-0.49, -0.14),
    "fan-tailed": (-0.43, 0.0),
}
TAILS = {
    "short-tailed": curve(
        (0.15, -0.07), (-0.1, -0.07), (-0.24, -0.075), (-0.27, 0.0), (-0.24, 0.07), (-0.1, 0.07),
        (0.15, 0.06),
    ),
    "long-tailed": curve(
        (0.15, -0.07), (-0.2, -0.06), (-0.6, -0.06), (-0.65, 0.0), (-0.6, 0.055), (-0.2, 0.06),
        (0.15, 0.06),
    ),
    "fork-tailed": curve(
        (0.15, -0.06), (-0.2, -0.08), (-0.53, -0.16), (-0.4, -0.07), (-0.28, 0.0), (-0.4, 0.07),
        (-0.53, 0.15), (-0.2, 0.08), (0.15, 0.06),
    ),
    "fan-tailed": curve(
        (0.15, -0.05), (-0.1, -0.11), (-0.35, -0.22), (-0.44, -0.1), (-0.46, 0.0), (-0.44, 0.1),
        (-0.35, 0.2), (-0.1, 0.1), (0.15, 0.05),
    ),
}  # fmt: skip
RIBS = {"short-tailed": 0.2, "long-tailed": 0.5, "fork-tailed": 0.3, "fan-tailed": 0.34}
TAIL_ATLAS = {
    kind: Atlas({
        "tail": outline,
        "rib 0": np.array([(0, 0.02), (-RIBS[kind], 0.035)]),
        "rib 1": np.array([(0, -0.02), (-RIBS[kind], -0.035)]),
    })
    for kind, outline in TAILS.items()
}  # fmt: skip

HEAD_KEYPOINTS = np.array([(-0.02, -0.14), EYE, (-0.16, 0.04), (0.08, 0.19)])
BODY_KEYPOINTS = np.array([(0.37, 0.05), (0.05, 0.26), (0.0, -0.2)])
WING_KEYPOINTS = np.array([(0.0, 0.03), WING_TIP])

HIPS = np.array([(-0.12, 0.2), (0.02, 0.2)])  # the far one, the near one
FEET = np.array([(-0.08, 0.47), (0.06, 0.47)])
TOES = np.array([(-0.06, 0.025), (0.0, 0.0), (0.08, 0.025)])


class Skeleton:
    """The frames of one bird in its pose.

    Attributes:
        feet: (2, 2) where the far and the near foot stand, in shares of the image.
    """

    def __init__(self, kind: Species, pose: Pose) -> None:
        self.kind, self.pose = kind, pose
        middle = _middle(pose)
        self.mirror = pose.scale * np.array([pose.facing, 1.0])
        upright = Frame(self.mirror[:, None] * rotation(-pose.tilt), middle)
        head_at = (HEAD_MIDDLE[0], HEAD_MIDDLE[1] - pose.head_reach)
        self.body = Frame(upright.matrix * [1.0, pose.plumpness], middle)
        self.head = upright.turned(head_at, 0.85 * pose.tilt + pose.head_angle)
        self.beak = self.head.turned(BEAK_ROOT, 0.0, pose.beak_size)
        self.wing = upright.turned(SHOULDER, pose.wing_angle)
        self.tail = upright.turned(TAIL_ROOT, pose.tail_angle, pose.tail_size)
        self.feet = (FEET + np.array([pose.stance, 0.0])) * self.mirror + middle

    def trunk(self) -> Points:
        """Outline of head and body."""
        return smooth(np.concatenate([self.head(HEAD_OUTLINE), self.body(BODY_OUTLINE)]))

    def coat(self, canvas: Canvas) -> dict[str, Pixels]:
        """Regions and marks of head and body, by name; some reach beyond the trunk."""
        return {**BODY.on(canvas, self.body), **HEAD.on(canvas, self.head)}

    def limbs(self, canvas: Canvas) -> dict[str, Pixels]:
        """Every outline outside or before the trunk, by name."""
        return {
            **HEAD_FRONT.on(canvas, self.head),
            **BEAK_ATLAS[self.kind.beak].on(canvas, self.beak),
            **WING.on(canvas, self.wing),
            **TAIL_ATLAS[self.kind.tail].on(canvas, self.tail),
        }

    def legs(self, canvas: Canvas) -> Pixels:
        """Hip, ankle and foot, then the toes, of the far and of the near leg: (2, 2, 3, 2)."""
        lines = np.empty((2, 2, 3, 2))
        lines[:, 0, 0] = self.body(HIPS)
        lines[:, 0, 2] = self.feet
        lines[:, 0, 1] = (lines[:, 0, 0] + self.feet) / 2 - [0.03 * self.mirror[0], 0]
        lines[:, 1] = self.feet[:, None] + TOES * self.mirror
        return canvas.locate(lines)

    def keypoints(self) -> Float[np.ndarray, "k 2"]:
        """Position of every keypoint in the image, seen or not, in the order of `KEYPOINTS`."""
        return np.stack([
            self.beak(np.array(BEAK_TIPS[self.kind.beak])),
            *self.head(HEAD_KEYPOINTS),
            *self.body(BODY_KEYPOINTS),
            *self.wing(WING_KEYPOINTS),
            self.tail(np.array(TAIL_TIPS[self.kind.tail])),
            self.feet[1],
        ])  # fmt: skip


def _middle(pose: Pose) -> Float[np.ndarray, "2"]:
    """Middle of the body, such that even a long tail and a high crest stay in the image."""
    front, rear = 0.86 * pose.scale, 0.98 * pose.scale
    left, right = (rear, 1 - front) if pose.facing > 0 else (front, 1 - rear)
    top, bottom = 0.8 * pose.scale, 1 - 0.64 * pose.scale
    return np.array([left + (right - left) * pose.across, top + (bottom - top) * pose.height])
