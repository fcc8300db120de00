"""The record of a run, stored in every checkpoint; results are made from it."""

from dataclasses import dataclass, field


@dataclass
class Record:
    """The record of a run over all rounds and restarts, stored in every checkpoint.

    Attributes:
        measurements: `{"step": ..., "eval/...": ...}`, starting with the start weights.
        images_seen: Number of source images trained on, over all processes.
        seconds: Wall time of the training steps, without measurements.
        losses: Losses since the last log line, means over the processes.
        start_left: Whether the start is still to be measured on all images; its weights are in
            the run's folder.
        num_scored: Number of test images of the last measurement; `None` before the first.
        commits: Commits of the code that trained the run, each once, in order.
        hardware: Processes and switches that trained the run, each once, in order.
    """

    measurements: list[dict[str, float]] = field(default_factory=list)
    images_seen: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    start_left: bool = False
    num_scored: int | None = None
    commits: list[str | None] = field(default_factory=list)
    hardware: list[str] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        """Images per second over the training steps."""
        return self.images_seen / self.seconds if self.seconds else 0.0
