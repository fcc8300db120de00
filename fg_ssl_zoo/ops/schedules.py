"""Schedules as pure functions of progress in 0..1, so there is no state to checkpoint."""

import math


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at 0 to `end` at 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(progress: float, warmup: float, end: float = 0.0) -> float:
    """Factor of a learning rate: linear from 0 to 1 over `warmup`, then a cosine to `end`.

    Args:
        progress: Completed share of the steps.
        warmup: Share of the steps of the linear rise.
        end: Value at progress 1.
    """
    if progress < warmup:
        return progress / warmup
    return cosine(1.0, end, (progress - warmup) / (1 - warmup)) if warmup < 1 else 1.0


def ramp(progress: float, start: float, end: float) -> float:
    """0 up to `start`, then linear to 1 at `end`, then 1; a step function if both are equal."""
    if progress >= end:
        return 1.0
    return max(0.0, (progress - start) / (end - start)) if end > start else 0.0
