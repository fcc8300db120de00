"""What a run has been through: a part of every checkpoint, from which results are made."""

from dataclasses import dataclass, field


@dataclass
class Record:
    """What a run has been through, over all rounds and restarts; a part of every checkpoint.

    Attributes:
        measurements: `{"step": ..., "eval/...": ...}`, the backbone before the first step first.
        images_seen: Source pictures trained on, all processes together.
        seconds: Wall time of the training steps, measurements left out.
        losses: Since the last log line, means over the processes.
        start_left: Whether the start is still to be measured on all pictures; its weights are in
            the run's folder.
        num_scored: Test pictures that the last measurement read; `None` before there is one.
        commits: Commits of the code that trained the run, each once, in order.
        hardware: Processes and switches that trained, likewise.
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
        """Over the training steps."""
        return self.images_seen / self.seconds if self.seconds else 0.0
