"""The log of a run: a progress bar, `metrics.jsonl`, and Accelerate's trackers."""

import functools
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import (
    LOGGER_TYPE_TO_CLASS,
    GeneralTracker,
    TensorBoardTracker,
    get_available_trackers,
    on_main_process,
)
from tqdm import tqdm

from fg_ssl_zoo.config import naming, nearest, printable, set_aside, write_whole
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.progress import tell


def open_trackers(
    accelerator: Accelerator,
    folder: RunFolder,
    names: Sequence[str],
    done: int,
    measured: int,
    start_left: bool = False,
) -> list[GeneralTracker]:
    """Start JSONL, TensorBoard and the trackers of the recipe; `accelerator.log` writes to all.

    Args:
        accelerator: Receives the trackers.
        folder: Folder that the first two write to.
        names: Further trackers that Accelerate knows.
        done: Steps of the checkpoint from which the run continues.
        measured: Step of its last measurement.
        start_left: Whether the start is still to be measured on all images.

    Raises:
        ValueError: As for `check_trackers`.
    """
    check_trackers(names)
    if accelerator.is_main_process:
        first = done + 1 if done else 0
        drop_from(folder.metrics, first_step=first, measured=measured, start_left=start_left)
    accelerator.log_with = [
        JsonlTracker(folder.metrics),
        LateTensorBoardTracker("tensorboard", logging_dir=str(folder.path)),
        *names,
    ]
    accelerator.init_trackers(folder.path.name)
    return accelerator.trackers


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot run here.

    Raises:
        ValueError: Unknown, not installed, or named twice.
    """
    installed = [str(kind.value) for kind in get_available_trackers()]
    for number, name in enumerate(names):
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"trackers: unknown '{printable(name)}'{nearest(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise ValueError(f"trackers: {name} is not installed; install it, or trackers=[]")
        if name == "tensorboard" or name in names[:number]:
            raise ValueError(f"trackers: {name} runs already; remove it from the list")


class JsonlTracker(GeneralTracker):
    """Writes one JSON object per line: `{"step": 10, "train/loss": 4.1, ...}`."""

    name = "jsonl"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Do nothing, since `recipe.yaml` is beside the file."""

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Append one line."""
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


class LateTensorBoardTracker(TensorBoardTracker):
    """Accelerate's tracker, but the first step does not wait for the import of TensorBoard.

    Values of step 0 are written together with those of a later step, or before a checkpoint
    (`write_held`).
    """

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__(run_name, logging_dir)
        self.at_start: list[dict[str, Any]] | None = []

    @on_main_process
    def start(self) -> None:
        """Do nothing yet."""

    def write_held(self) -> None:
        """Open TensorBoard's file and write the values of step 0, unless that has been done."""
        if self.at_start is not None:
            super().start()
            held, self.at_start = self.at_start, None
            for values in held:
                super().log(values, step=0)

    @property
    def tracker(self) -> Any:
        """TensorBoard's writer."""
        self.write_held()
        return super().tracker

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Write values, or hold those of step 0."""
        if self.at_start is not None and step == 0:
            self.at_start.append(values)
        else:
            self.write_held()
            super().log(values, step=step, **kwargs)

    @on_main_process
    def finish(self) -> None:
        """Write what is held, and close the file."""
        self.write_held()
        super().finish()


def write_held(trackers: Sequence[GeneralTracker]) -> None:
    """Write values that wait for a later step: after a checkpoint, they are not logged again."""
    for tracker in trackers:
        if isinstance(tracker, LateTensorBoardTracker):
            tracker.write_held()


def drop_from(path: Path, first_step: int, measured: int, start_left: bool = False) -> None:
    """Keep the lines of earlier steps in `metrics.jsonl`; later ones belong to an interrupted run.

    An incomplete last line is dropped. A file with other invalid lines is renamed, and its readable
    lines are written to a new file.

    Args:
        path: The file.
        first_step: Next step of the run.
        measured: Step of the last valid measurement; later ones are repeated.
        start_left: Whether the start is also measured on all images again.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    *lines, last = content.split(b"\n")
    records = [(line, _record(line)) for line in lines if line]
    if any(record is None for _, record in records):
        set_aside(path, "some lines are no JSON objects with a step")
    if _record(last) is not None:  # complete, except for the line break
        records.append((last, _record(last)))
    kept = []
    for line, record in records:
        if record is not None and record["step"] < first_step:
            kinds = {key.partition("/")[0] for key in record}
            again = start_left and record["step"] == 0 and kinds == {"step", "eval"}
            if "train" in kinds or (record["step"] <= measured and not again):
                kept.append(line + b"\n")
    if content != b"".join(kept):
        write_whole(path, b"".join(kept))


def _record(line: bytes) -> dict[str, Any] | None:
    """The record in a line of `metrics.jsonl`; `None` if it is invalid."""
    try:
        record = json.loads(line)
        return record if isinstance(record["step"], int) else None
    except (ValueError, TypeError, LookupError):
        return None


@functools.cache
def quiet_writer() -> None:
    """Hide tracebacks of disk errors in TensorBoard's thread; the run raises the error."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failed.thread).__module__.startswith("tensorboard.")
        if not (of_tensorboard and issubclass(failed.exc_type, OSError)):
            before(failed)

    threading.excepthook = hook


class Meter:
    """Images per second and the share of time spent waiting for data, since the last reading."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting again."""
        self.started = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def count(self, images: int, waited: float) -> None:
        """Add a step."""
        self.images += images
        self.waited += waited

    def read(self) -> dict[str, float]:
        """`images_per_second` and `data_wait` (0..1), then start again."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = {"images_per_second": self.images / seconds, "data_wait": self.waited / seconds}
        self.reset()
        return rates


class Progress:
    """A bar on a terminal; otherwise a line every `every` seconds."""

    def __init__(
        self, total: int, *, done: int, title: str, shown: bool, every: float = 15
    ) -> None:
        self.total, self.done, self.title, self.every = total, done, title, every
        self.terminal = shown and sys.stderr.isatty()
        self.plain = shown and not self.terminal
        self.bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            disable=not self.terminal,
            unit="step",
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )
        self.started = self.printed = time.monotonic()
        self.first = done

    def step(self, metrics: dict[str, float] | None = None) -> None:
        """Count one step; `metrics` replace the values shown."""
        self.done += 1
        if metrics:
            text = (
                f"loss {metrics['train/loss']:.3f}, lr {metrics['train/lr']:.2e}, "
                f"{metrics['images_per_second']:.0f} images/s, data wait {metrics['data_wait']:.0%}"
            )
            self.bar.set_postfix_str(text, refresh=False)
            self._print(text)
        self.bar.update()

    def _print(self, text: str) -> None:
        now = time.monotonic()
        if not self.plain or (now - self.printed < self.every and self.done < self.total):
            return
        self.printed = now
        left = (now - self.started) / max(self.done - self.first, 1) * (self.total - self.done)
        line = f"{self.title}: step {self.done}/{self.total}, {text}, {left:.0f} s left"
        tell(line)

    def say(self, text: str) -> None:
        """Print a permanent line above the bar."""
        if self.terminal:
            self.bar.write(text, file=sys.stderr)
        elif self.plain:
            tell(text)

    def close(self) -> None:
        """Close the bar; it remains visible."""
        self.bar.close()
