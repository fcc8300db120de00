"""What a round of a run measures: kNN, RankMe, the method's own accuracy, and its parts."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fg_ssl_zoo.engine.measuring import Measuring, Scores
from fg_ssl_zoo.engine.record import Record
from fg_ssl_zoo.evaluation.monitor import equal_at_start, losing_start, refuse_collapse
from fg_ssl_zoo.evaluation.parts.scores import knows_parts, part_agreement
from fg_ssl_zoo.method import FindsParts, Method
from fg_ssl_zoo.pretrain.run import Run
from fg_ssl_zoo.pretrain.start_weights import start_weights

_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class RunMeasuring(Measuring):
    """Measures the backbone and the method of a round.

    Attributes:
        run: The state that all stages share.
        method: The method that is trained.
        record: Says which images the last score has read, and whether the start is left.
    """

    run: Run
    method: Method
    record: Record

    def now(self) -> Scores:
        """KNN accuracy, RankMe and the method's own accuracy.

        Raises:
            Collapsed: The features of all images have become nearly the same.
        """
        monitor, accelerator = self.run.monitor, self.run.accelerator
        found = monitor(self.method.backbone, accelerator)
        refuse_collapse(found, self.record.measurements)
        self.record.num_scored = monitor.used.get("test")
        return {**found, **monitor.own_accuracy(self.method, accelerator)}

    def before_first_step(self) -> Scores:
        """On all images if they are few or their scores are stored, otherwise on a sample.

        After a sample, and with `monitor.at_start=false`, `whole_start` follows later.
        """
        if not self.run.recipe.monitor.at_start:
            self.record.start_left = True
            return {}
        return self._told(self._start())

    def _start(self) -> Scores:
        backbone = self.method.backbone
        accelerator, monitor = self.run.accelerator, self.run.monitor
        if not monitor.samples_start:
            found = monitor.start(backbone, accelerator)
            self.record.num_scored = monitor.used.get("test")
            return {**found, **monitor.own_accuracy(self.method, accelerator)}
        own = monitor.own_accuracy(self.method, accelerator, sample=True)
        if (found := monitor.known_start(backbone, accelerator)) is not None:
            return {**found, **own}
        self.record.start_left = True
        return {**monitor.sample(backbone, accelerator), **own}

    def whole_start(self) -> Scores:
        """Scores of the run's start weights, which are in its folder (`keep_start`)."""
        start = copy.deepcopy(self.method.backbone)
        start.model.load_state_dict(start_weights(self.run, 0))
        return self._told(self.run.monitor.start(start, self.run.accelerator))

    def _told(self, found: Scores) -> Scores:
        """Warn of a start with nearly equal features; returns its scores."""
        if (line := equal_at_start(found)) and self.run.accelerator.is_main_process:
            _log.warning("init: %s", line)
        return found

    def at_ends(self) -> Scores:
        """Agreement of the parts discovered in the training images with the annotated parts.

        The next round reads the same parts from the cache.
        """
        images = self.run.train
        if not isinstance(self.method, FindsParts) or not knows_parts(images):
            return {}
        maps = self.method.parts(images, self.run.accelerator)
        return {} if maps is None else part_agreement(maps, images)

    def images_read(self) -> str:
        """`all 16 training and 12 of 40 test images`."""
        return self.run.monitor.read_last()

    def warning(self, measured: Sequence[Scores]) -> str | None:
        """A line if the run is losing its start."""
        return losing_start(measured)
