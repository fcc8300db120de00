"""Ctrl-C and SIGTERM while training: a wish to stop after the step."""

import signal
from types import FrameType

import torch
from accelerate import Accelerator
from torch import Tensor


class Signals:
    """Turns SIGINT and SIGTERM into a wish to stop after the step; a second one stops at once."""

    def __enter__(self) -> "Signals":
        self.number = 0
        self.before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread: the caller handles signals
                continue
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    @property
    def name(self) -> str:
        """Of the signal that came."""
        return signal.Signals(self.number).name if self.number else "another process"

    def agreed(self, accelerator: Accelerator, meeting: bool) -> int:
        """Number of a signal that any process got, 0 for none.

        Several processes ask each other only at a `meeting`, which all of them reach.
        """
        if accelerator.num_processes == 1:
            return self.number
        if not meeting:
            return 0
        mine = torch.tensor([self.number], device=accelerator.device)
        gathered = accelerator.gather(mine)
        return int(gathered.max()) if isinstance(gathered, Tensor) else 0
