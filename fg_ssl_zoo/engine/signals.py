"""Signals: a training stops after the step with a checkpoint; other work stops at once.

Several processes must stop after the same step. They exchange received signals at logged steps, and
for slow steps at least every `AGREE_WITHIN` seconds.
"""

import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

AGREE_WITHIN = 4.0
"""Largest time in seconds between these exchanges; schedulers grant ten or more."""

AT_ONCE = 1.0
"""Seconds in which repeated signals count once, since `timeout` sends them to process and group."""

NUMBERS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]

LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")
"""Variables that `accelerate launch` and `torchrun` set in the processes they start."""


_parent = os.getppid()
"""The process that started this one, which may have ended before training begins."""


def _note_parent() -> None:
    global _parent
    _parent = os.getppid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_parent)


class Interrupted(SystemExit):
    """A signal ended the process; the message says what was stored and how to continue.

    `said` is set once the message is printed, so that it is printed once.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(128 + number)
        self.message, self.said = message, False


class Signals:
    """Handles signals: the first stops the run after the step, a second one stops it at once.

    Signals within `AT_ONCE` of the first count as the first. The end of the launcher counts as
    SIGTERM, since it cannot forward one.

    Args:
        accelerator: Defines the number of processes that must agree.
    """

    def __init__(self, accelerator: "Accelerator") -> None:
        self.accelerator = accelerator
        self.next = 1

    def __enter__(self) -> "Signals":
        self.number, self.came = 0, 0.0
        self.at_once = False
        self.launcher = _parent if any(name in os.environ for name in LAUNCHERS) else None
        self.before = _handle(NUMBERS, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        _restore(self.before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now, again = time.monotonic(), bool(self.number)
        if again and now - self.came < AT_ONCE:
            return
        self.number, self.came = number, now
        if again or self.at_once:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def stopping_at_once(self) -> Iterator[None]:
        """A signal received before or inside the context raises KeyboardInterrupt."""
        if self.number:
            raise KeyboardInterrupt
        self.at_once = True
        try:
            yield
        finally:
            self.at_once = False

    @property
    def name(self) -> str:
        """Name of the signal that stopped this process."""
        if self._orphaned():
            return "the end of its launcher"
        return signal.Signals(self.number).name if self.number else "another process"

    def _orphaned(self) -> bool:
        return self.launcher is not None and os.getppid() != self.launcher

    def due(self, done: int) -> bool:
        """Whether the processes exchange signals after this number of steps."""
        return self.accelerator.num_processes == 1 or done >= self.next

    def agreed(self, done: int, seconds: float, news: int = 0) -> tuple[int, int]:
        """Number of a signal that any process has received, 0 for none, and the sum of `news`.

        All processes call it after the same steps.

        Args:
            done: Number of completed steps.
            seconds: Duration of a step in this process.
            news: Number that is summed over the processes.
        """
        number = self.number or (int(signal.SIGTERM) if self._orphaned() else 0)
        if self.accelerator.num_processes == 1:
            return number, news
        import torch  # here, as every verb of `fgssl` needs this file

        mine = torch.tensor([[number, seconds, news]], device=self.accelerator.device)
        gathered = self.accelerator.gather(mine)
        assert isinstance(gathered, torch.Tensor)
        number, seconds, _ = gathered.max(0).values.tolist()
        self.next = done + max(1, int(AGREE_WITHIN / max(seconds, 1e-9)))
        return int(number), int(gathered[:, 2].sum())


@contextlib.contextmanager
def ending_at_once(message: str) -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Interrupted`, so that incomplete files are removed.

    Args:
        message: How to continue.
    """
    came = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if (now := time.monotonic()) - came < AT_ONCE:
            return
        came = now
        raise Interrupted(f"stopped by {signal.Signals(number).name}; {message}", number)

    before = _handle([number for number in NUMBERS if number != signal.SIGINT], end)
    try:
        yield
    finally:
        _restore(before)


def _handle(numbers: list[signal.Signals], handler: object) -> dict[signal.Signals, object]:
    """Set a handler; returns the earlier handlers. A signal ignored by `nohup` stays ignored."""
    before = {}
    for number in numbers:
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_IGN:
            continue
        with contextlib.suppress(ValueError):  # not in the main thread: the caller handles signals
            before[number] = signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
    return before


def _restore(before: dict[signal.Signals, object]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
