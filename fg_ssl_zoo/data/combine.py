"""Some images of a source, and several sources as one."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from fg_ssl_zoo.data.listing import natural
from fg_ssl_zoo.data.order import Group, groups_of
from fg_ssl_zoo.data.sample import (
    HasFiles,
    Images,
    Sample,
    files_of,
    identity_of,
    keypoints_known,
    parts_known,
    read_for_training,
)

_PARTS = ("part_mask", "part_maps", "keypoints")


class Subset(HasFiles):
    """Some images of a source, numbered anew.

    Args:
        images: The source.
        indices: (n,) numbers in the source, in the order of the subset.
    """

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        self.images, self.indices = images, indices
        self.name, self.classes = images.name, images.classes
        self.labels = None if images.labels is None else images.labels[indices]
        self.parts, self.keypoints = parts_known(images), keypoints_known(images)
        self._files = files_of(images)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return {**self.images[int(self.indices[index])], "index": index}

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """As the source does, see `ReadsForTraining`."""
        index = range(len(self))[index]
        found = read_for_training(self.images, int(self.indices[index]), reduction)
        return {**found, "index": index}

    def name_of(self, index: int) -> str:
        """As the source does, see `HasFiles`."""
        return self._files.name_of(int(self.indices[index]))

    def encoded(self, index: int) -> bytes:
        """Likewise."""
        return self._files.encoded(int(self.indices[index]))

    def checked(self, index: int) -> bytes:
        """Likewise."""
        return self._files.checked(int(self.indices[index]))

    def stat_of(self, index: int) -> tuple[int, int] | None:
        """Likewise."""
        return self._files.stat_of(int(self.indices[index]))

    @property
    def groups(self) -> list[Group]:
        """The groups of the source (see `Order`) with only the images of the subset.

        One group if the subset changes the order of the images, as blocks need consecutive ones.
        """
        if (np.diff(self.indices) < 0).any():
            return [Group(len(self))]
        kept, first = [], 0
        for group in groups_of(self.images):
            sizes = [group.count] if group.blocks is None else group.blocks
            ends = np.searchsorted(self.indices, first + np.cumsum([0, *sizes]))
            blocks = None if group.blocks is None else np.diff(ends)
            if count := int(ends[-1] - ends[0]):
                kept.append(replace(group, count=count, blocks=blocks))
            first += group.count
        return kept

    @property
    def identity(self) -> str:
        """The identity of the source, and the indices."""
        return f"{identity_of(self.images)}\n{self.indices.tolist()}"


class Mixture(HasFiles):
    """Several sources as one: the images of the first, then those of the second, and so on.

    Classes of the same name are one class. The mixture is labelled if all sources are; it has part
    masks and keypoints if all have those of the same parts.

    Args:
        sources: Sources, whose names differ.
        weights: How often an image of each source is read in an epoch, on average.
        name: Name of the mixture.
        classes: Class names in the order of the labels; those of the sources when not given.
    """

    def __init__(
        self,
        sources: Sequence[Images],
        weights: Sequence[float],
        name: str,
        classes: Sequence[str] = (),
    ) -> None:
        self.sources, self.weights, self.name = list(sources), list(weights), name
        self._ends = np.cumsum([len(source) for source in sources]).tolist()
        self._files = list(map(files_of, sources))
        self.classes: list[str] = []
        self.labels: np.ndarray | None = None
        labelled = [(s.classes, s.labels) for s in sources if s.labels is not None]
        if len(labelled) == len(sources):
            named = {name for names, _ in labelled for name in names}
            self.classes = list(classes) or sorted(named, key=natural)
            number = {name: i for i, name in enumerate(self.classes)}
            self.labels = np.concatenate(
                [np.array([number[name] for name in names])[labels] for names, labels in labelled]
            )
        parts, keypoints = ([known(s) for s in sources] for known in (parts_known, keypoints_known))
        self.parts = parts[0] if all(names == parts[0] for names in parts) else []
        self.keypoints = keypoints[0] if all(k == keypoints[0] for k in keypoints) else []

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        number, row = self._place(index)
        return self._sample(self.sources[number][row], index)

    def for_training(self, index: int, reduction: Callable[[int, int], int] | None) -> Sample:
        """As the source does, see `ReadsForTraining`."""
        number, row = self._place(index)
        return self._sample(read_for_training(self.sources[number], row, reduction), index)

    def _sample(self, found: Sample, index: int) -> Sample:
        kept = {key for key in found if key not in _PARTS}
        kept |= set(_PARTS[:2]) if self.parts else set()
        kept |= {"keypoints"} if self.keypoints else set()
        sample = cast(Sample, {key: value for key, value in found.items() if key in kept})
        sample["index"] = range(len(self))[index]
        sample.pop("label", None)
        if self.labels is not None:
            sample["label"] = int(self.labels[index])
        return sample

    def _place(self, index: int) -> tuple[int, int]:
        """Number of the source of an image, and of the image in it."""
        index = range(len(self))[index]
        number = bisect_right(self._ends, index)
        return number, index - self._ends[number] + len(self.sources[number])

    def name_of(self, index: int) -> str:
        """`SOURCE/NAME`."""
        number, row = self._place(index)
        return f"{self.sources[number].name}/{self._files[number].name_of(row)}"

    def encoded(self, index: int) -> bytes:
        """As the source does, see `HasFiles`."""
        number, row = self._place(index)
        return self._files[number].encoded(row)

    def checked(self, index: int) -> bytes:
        """Likewise."""
        number, row = self._place(index)
        return self._files[number].checked(row)

    def stat_of(self, index: int) -> tuple[int, int] | None:
        """Likewise."""
        number, row = self._place(index)
        return self._files[number].stat_of(row)

    @property
    def groups(self) -> list[Group]:
        """The groups of all sources with their weights, see `Order`."""
        return [
            replace(group, weight=group.weight * weight)
            for source, weight in zip(self.sources, self.weights, strict=True)
            for group in groups_of(source)
        ]

    @property
    def identity(self) -> str:
        """Name, number of images and identity of each source."""
        return "\n".join(f"{s.name} {len(s)}\n{identity_of(s)}" for s in self.sources)
