"""OID-Aircraft: aeroplanes with outlines of nose, vertical stabiliser, wheels and wings.

    ROOT/data/images/aeroplane/NAME.jpg
    ROOT/data/annotations/anno.mat      one MATLAB structure, `anno`:
        image.id, .name, .size, .set    size is height, width; set is a number into meta.image.set
        meta.image.set                  train, val, test
        aeroplane.id, .parentId         the parent is an image
        wing.id, .parentId, .polygon    the parent is an aeroplane; 2 x n corners, x and y from 1
        nose, verticalStabilizer, wheel likewise

Paper: Vedaldi et al., "Understanding objects in detail with fine-grained attributes", CVPR 2014.
The layout is that of public readers of the archive `oid-aircraft-beta-1`: those of the authors of
the paper, of S. Tsogkas (`pascal-part-classes`) and of Tang et al., 2020 (`PoseNorm_Fewshot`); it
was not checked on the set itself. PARTICLE learnt from the same four parts, drawn to files that are
not public.

Parts overlap, so that each has a map of its own (`labels=independent`). All aeroplanes of an image
are drawn; an image without any has empty maps. There are no class labels.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from fg_ssl_zoo.config import Data, nearest
from fg_ssl_zoo.data.folders import FolderImages, data_name
from fg_ssl_zoo.data.part_annotations import PartMasks
from fg_ssl_zoo.data.sample import WrongMask
from fg_ssl_zoo.data.splits import NO_TEST

ARCHIVE = "oid-aircraft-beta-1"
ANNOTATIONS = os.path.join("data", "annotations", "anno.mat")
PICTURES = "data/images/aeroplane"

PARTS = {
    "nose": "nose",
    "vertical_stabilizer": "verticalStabilizer",
    "wheel": "wheel",
    "wing": "wing",
}
"""Name of every part, in the order of PARTICLE's code, and of its field in the annotations."""

TRAINVAL = "trainval"
"""As `data.train_split`: both `train` and `val`."""


@dataclass
class OutlineMasks(PartMasks):
    """Masks that are drawn from outlines when they are asked for.

    Attributes:
        outlines: Path -> part number from 0 and corners (n, 2) x, y in pixels, from 0.
        sizes: Path -> height and width that the corners belong to.
    """

    outlines: dict[str, list[tuple[int, np.ndarray]]] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(
        self, path: str, height: int, width: int
    ) -> UInt8[np.ndarray, "h w"] | Bool[np.ndarray, "p h w"]:
        """The maps of the parts; what lies outside of the image is cut off.

        Raises:
            WrongMask: The image has another size than the one that was outlined.
        """
        if self.sizes[path] != (height, width):
            raise WrongMask(f"{path}: {(height, width)}; its outlines are for {self.sizes[path]}")
        maps = np.zeros((len(self.names), height, width), dtype=np.uint8)
        for part, corners in self.outlines[path]:
            cv2.fillPoly(maps[part], [np.rint(corners).astype(np.int32)], 1)
        return maps > 0


def oid_folder(folder: Path) -> Path | None:
    """The folder that holds `data/annotations/anno.mat`: this one, or the archive's in it."""
    return next((f for f in (folder, folder / ARCHIVE) if (f / ANNOTATIONS).is_file()), None)


def load_oid(data: Data, root: Path) -> tuple[FolderImages, FolderImages | None]:
    """Images of `data.train_split` and `data.test_split`, official sets, with part maps.

    Raises:
        ValueError: Annotations of another layout, no such set, or an image that is not there.
    """
    train, test = data.train_split, data.test_split
    found = _read(root / ANNOTATIONS)
    sets = {name: [name] for name in dict.fromkeys(found.set_of.values())}
    sets[TRAINVAL] = ["train", "val"]
    for option, name in (("train_split", train), ("test_split", test)):
        if name not in sets and (option, name) != ("test_split", NO_TEST):
            raise ValueError(
                f"data.{option}: {root / ANNOTATIONS} has no set '{name}'{nearest(name, sets)}"
            )

    def split(names: Sequence[str]) -> FolderImages:
        paths = [path for path, name in found.set_of.items() if name in names]
        _check_there(root, paths)
        masks = OutlineMasks(list(PARTS), str(root), True, found.outlines, found.sizes)
        return FolderImages(root, paths, name=data_name(data), masks=masks)

    return split(sets[train]), None if test == NO_TEST else split(sets[test])


@dataclass
class _Annotations:
    """Set, size and outlines of every image by its path."""

    set_of: dict[str, str]
    sizes: dict[str, tuple[int, int]]
    outlines: dict[str, list[tuple[int, np.ndarray]]]


def _read(file: Path) -> _Annotations:
    from scipy.io import loadmat  # half a second that only this set needs
    from scipy.io.matlab import MatReadError

    wrong = (AttributeError, KeyError, IndexError, TypeError, ValueError, MatReadError)
    wrong += (NotImplementedError,)  # a later version of the format
    try:
        anno = loadmat(file, squeeze_me=True, struct_as_record=False)["anno"]
        image_ids, names = np.atleast_1d(anno.image.id), np.atleast_1d(anno.image.name)
        paths = {int(i): f"{PICTURES}/{name}" for i, name in zip(image_ids, names, strict=True)}
        sizes = np.asarray(anno.image.size).reshape(2, -1).T
        set_names, sets = np.atleast_1d(anno.meta.image.set), np.atleast_1d(anno.image.set)
        outlines: dict[str, list[tuple[int, np.ndarray]]] = {path: [] for path in paths.values()}
        for path, part, corners in _corners(anno, paths):
            if len(corners):
                outlines[path].append((part, corners))
    except wrong as error:
        raise ValueError(
            f"{file}: the annotations of {ARCHIVE} are needed ({type(error).__name__}: {error})"
        ) from None
    return _Annotations(
        set_of={
            path: str(set_names[number - 1])
            for path, number in zip(paths.values(), sets, strict=True)
        },
        sizes={
            path: (int(height), int(width))
            for path, (height, width) in zip(paths.values(), sizes, strict=True)
        },
        outlines=outlines,
    )


def _corners(anno: Any, paths: dict[int, str]) -> Iterator[tuple[str, int, np.ndarray]]:
    """Path, part and corners of every outline; MATLAB counts pixels from 1."""
    planes = anno.aeroplane
    picture_of = dict(zip(np.atleast_1d(planes.id), np.atleast_1d(planes.parentId), strict=True))
    for part, name in enumerate(PARTS.values()):
        kind = getattr(anno, name)
        polygons = kind.polygon if kind.polygon.dtype == object else [kind.polygon]
        for parent, polygon in zip(np.atleast_1d(kind.parentId), polygons, strict=True):
            yield paths[int(picture_of[parent])], part, np.asarray(polygon, dtype=float).T - 1


def _check_there(root: Path, paths: list[str]) -> None:
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise ValueError(
            f"data.path: {len(missing)} of {len(paths)} images of {ANNOTATIONS} are not in "
            f"{root}, as {missing[0]}"
        )
