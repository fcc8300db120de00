"""Pictures that tests need and no data set has."""

from collections.abc import Collection

from fg_ssl_zoo.data.drawn import DrawnBirds
from fg_ssl_zoo.data.sample import CorruptImage, Sample


class SomeCorrupt:
    """Drawn birds of which some cannot be read, with or without labels."""

    def __init__(
        self, birds: DrawnBirds, corrupt: Collection[int] = (), *, labelled: bool = True
    ) -> None:
        self.birds, self.corrupt = birds, corrupt
        self.name, self.classes = birds.name, birds.classes
        self.labels = birds.labels if labelled else None

    def __len__(self) -> int:
        return len(self.birds)

    def __getitem__(self, index: int) -> Sample:
        if index in self.corrupt:
            raise CorruptImage(f"{index}.jpg is truncated")
        return self.birds[index]
