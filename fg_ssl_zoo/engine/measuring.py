"""What a round of training measures, and when; the loop calls it and keeps the results."""

from collections.abc import Sequence
from dataclasses import dataclass

Scores = dict[str, float]
"""Results by key, such as `eval/knn_top1`."""


@dataclass
class Measuring:
    """Measures nothing; subclasses say what is measured.

    Attributes:
        every: Epochs between measurements.
        early: Number of steps after which it is measured once more; 0 for never.
    """

    every: float = 10
    early: int = 0

    def now(self) -> Scores:
        """Scores of the current weights."""
        return {}

    def before_first_step(self) -> Scores:
        """Scores of the start, possibly on few images, since the first step waits for them."""
        return self.now()

    def whole_start(self) -> Scores:
        """Scores of the start on all images, where `before_first_step` has left that open."""
        return {}

    def at_ends(self) -> Scores:
        """Scores that take long: at the start of a run, if it is measured, and at the end."""
        return {}

    def images_read(self) -> str:
        """Which images the last measurement has read; empty where nothing is to say."""
        return ""

    def warning(self, measured: Sequence[Scores]) -> str | None:
        """A line about all measurements of the run, asked for after the early one."""
        return None
