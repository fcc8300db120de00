"""Find test images that are also among the training images: exact, re-encoded, or mirrored.

    exact       the same decoded pixels
    near        perceptual hashes (imagehash.phash, 16 x 16 bits) that differ in few bits
    mirrored    the same, of the image and the other's mirror image
    similar     with a backbone: features of a high cosine

`NEAR`, 40 of 256 bits, was chosen by looking at the nearest pairs of train and test images of
three sets (4052 cars, 3750 dishes, 5902 birds; 16 million pairs, mirror images too):

    the same photograph    0, 0, 12, 24, 36, 38 mirrored (cars); 36, 36, 36 mirrored (birds)
    missed                 48 and 62, two birds that were cut differently
    different images     46 (two cars of one studio), then 54 and more; dishes 76 and more
    an image and itself   after JPEG of quality 10: at most 24; at a third of the size: 14;
                           brighter by 1.3: 32; cut by 1 % on each side: 30; by 2 %: 9 of 10 within
                           40; by 5 %: none

The usual 8 x 8 bits tell less: 6 bits lie between a groove-billed ani and a warbler, and 6 between
two cuts of one photograph. `SIMILAR`, 0.95, held nothing but nearly equal images there with an
ImageNet MobileNetV2 of 160 px (food: none, 0.914 at most). Cosines differ from model to model, and
those of an untrained one are all near 1: look at the pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8, UInt16, UInt64

from fg_ssl_zoo.data.datasets import image_name, why_unreadable
from fg_ssl_zoo.data.loader import image_loader
from fg_ssl_zoo.data.sample import Images, Sample
from fg_ssl_zoo.ops.neighbours import unit_rows

NEAR = 40
"""Bits of 256 in which the hashes of near-duplicates differ at most; see above."""

SIMILAR = 0.95
"""Cosine of features from which on two images are listed as similar; see above."""

SIDE, BITS = 16, 256

MOST = 10_000
"""Pairs that are kept, the nearest; test images are counted without this limit."""


@dataclass(frozen=True)
class Pair:
    """A training and a test image that are alike.

    Attributes:
        kind: `exact`, `near`, `mirrored` or `similar`.
        distance: Bits in which the hashes differ, 0..256, of the mirror image where it is nearer.
        cosine: Cosine similarity of the features, if a backbone is given.
        train, test: Numbers of the images in their sets.
        train_file, test_file: Names of the two files.
        train_class, test_class: `None` where a set is not labelled.
        conflict: Whether the classes differ; `None` where that cannot be said.
    """

    kind: str
    distance: int
    cosine: float | None
    train: int
    test: int
    train_file: str
    test_file: str
    train_class: str | None
    test_class: str | None
    conflict: bool | None


@dataclass(frozen=True)
class Overlap:
    """What two sets have in common.

    Attributes:
        num_train, num_test: Readable images.
        exact: Test images that have the pixels of a training image.
        near: Test images with a near-duplicate, exact and mirrored ones included.
        similar: Test images with a similar training image; `None` without a backbone.
        conflicts: Pairs whose classes differ.
        pairs: The nearest `MOST` by hash, then by features, the best first.
        left_off: Further pairs, which are counted above but not kept.
        threshold, cosine: What was asked for.
        unreadable: A line for each image that was not compared, because it cannot be read.
    """

    num_train: int
    num_test: int
    exact: int
    near: int
    similar: int | None
    conflicts: int
    pairs: list[Pair]
    left_off: int
    threshold: int
    cosine: float | None
    unreadable: list[str]

    def summary(self) -> str:
        """One line for the card."""
        line = (
            f"Near-duplicates between pretraining and test images: {self.near} of "
            f"{self.num_test} (phash of {BITS} bits <= {self.threshold}, mirrored too); "
            f"exact: {self.exact}"
        )
        if self.similar is not None:
            line += f"; features of cosine >= {self.cosine:g}: {self.similar}"
        return line

    def entry(self) -> dict[str, Any]:
        """`overlap` of a results file, which the card reads."""
        return {
            "summary": self.summary(),
            **{k: v for k, v in vars(self).items() if k not in ("pairs", "unreadable")},
        }


def compare_splits(
    train: Images,
    test: Images,
    *,
    threshold: int = NEAR,
    features: tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "m d"]] | None = None,
    cosine: float = SIMILAR,
    num_workers: int = 0,
) -> Overlap:
    """Find test images that pretraining has seen.

    An image takes 104 bytes of memory (and its features, where they are given); pairs are looked
    at in blocks, so 50,000 x 50,000 take no more than 500 x 500.

    Args:
        train: Pretraining images, labelled or not.
        test: Others.
        threshold: Bits; `NEAR`.
        features: Features of all images in both sets, a row each; zeros where one cannot be read.
            Without them nothing is `similar`.
        cosine: `SIMILAR`.
        num_workers: Loader processes.

    Raises:
        ValueError: Not one readable image in one of the sets.
    """
    rows_of = (None, None) if features is None else features
    train_side = _Side(train, hashes_of(train, num_workers), rows_of[0])
    test_side = _Side(test, hashes_of(test, num_workers), rows_of[1])
    one, other = train_side.hashes, test_side.hashes
    near, exact, similar = (np.zeros(len(test), bool) for _ in range(3))
    by_bits, by_cosine = _Nearest(MOST), _Nearest(MOST)
    for rows, columns, distance in _near(one, other, threshold):
        numbers = other.indices[columns]
        near[numbers] = True
        exact[numbers[(one.pixels[rows] == other.pixels[columns]).all(axis=1)]] = True
        by_bits.add(one.indices[rows], numbers, distance)
    if features is not None:
        for rows, columns, found in _similar(*features, cosine):
            similar[columns] = True
            by_cosine.add(rows, columns, -found)
    numbers = dict.fromkeys([*by_bits.pairs(), *by_cosine.pairs()])
    pairs = [_pair(train_side, test_side, a, b, threshold) for a, b in numbers]
    return Overlap(
        num_train=len(one.indices),
        num_test=len(other.indices),
        exact=int(exact.sum()),
        near=int(near.sum()),
        similar=None if features is None else int(similar.sum()),
        conflicts=sum(pair.conflict is True for pair in pairs),
        pairs=pairs,
        left_off=by_bits.left_off + by_cosine.left_off,
        threshold=threshold,
        cosine=None if features is None else cosine,
        unreadable=[*_unreadable(train, one), *_unreadable(test, other)],
    )


def _unreadable(images: Images, found: "Hashes") -> list[str]:
    missing = sorted({*range(len(images))} - {*found.indices.tolist()})
    return [why_unreadable(images, index) for index in missing]


# --------------------------------------------------------------------------- hashes


@dataclass(frozen=True)
class Hashes:
    """Fingerprints of the readable images of a set, a row each.

    Attributes:
        indices: (n,) their numbers.
        pixels: (n, 16) bytes of a digest of the decoded image.
        plain, mirrored: (n, 4) the 256 bits of the perceptual hash, and of the mirror image's.
    """

    indices: np.ndarray
    pixels: UInt8[np.ndarray, "n 16"]
    plain: UInt64[np.ndarray, "n 4"]
    mirrored: UInt64[np.ndarray, "n 4"]


def hash_view(sample: Sample, generator: np.random.Generator) -> dict[str, Any]:
    """The fingerprints of one image; `Views`, so that loader processes make them."""
    import hashlib

    import imagehash
    from PIL import Image

    image = sample["image"]
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    # What imagehash does first, done once for both directions.
    side = SIDE * 4
    small = Image.fromarray(image).convert("L").resize((side, side), Image.Resampling.LANCZOS)
    mirror = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return {
        "pixels": np.frombuffer(digest.digest(), np.uint8).copy(),
        "plain": np.packbits(imagehash.phash(small, SIDE).hash),
        "mirrored": np.packbits(imagehash.phash(mirror, SIDE).hash),
    }


def hashes_of(images: Images, num_workers: int = 0) -> Hashes:
    """Hash every readable image.

    Raises:
        ValueError: There is none.
    """
    loader = image_loader(
        images,
        hash_view,
        range(len(images)),
        batch_size=64,
        num_workers=num_workers,
        title="hashes",
    )
    batches = [batch for batch in loader if batch]
    if not batches:
        raise ValueError(f"none of the {len(images)} images of {images.name} can be read")

    def column(name: str) -> np.ndarray:
        return np.concatenate([batch[name].numpy() for batch in batches])

    return Hashes(
        column("index"),
        column("pixels"),
        column("plain").view(np.uint64),
        column("mirrored").view(np.uint64),
    )


def _near(
    one: Hashes, other: Hashes, threshold: int, block: int = 512
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of `one`, rows of `other` and bits of all pairs within the threshold, by block."""
    for first in range(0, len(one.plain), block):
        a = one.plain[first : first + block]
        for start in range(0, len(other.plain), block):
            b, c = other.plain[start : start + block], other.mirrored[start : start + block]
            # Half of the bits exclude all but a few of unlike pairs.
            half = _nearer(a[:, None, :2], b[None, :, :2], c[None, :, :2])
            rows, columns = np.nonzero(half <= threshold)
            distance = _nearer(a[rows], b[columns], c[columns])
            found = distance <= threshold
            yield first + rows[found], start + columns[found], distance[found]


def _nearer(a: np.ndarray, plain: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
    return np.minimum(_differing(a, plain), _differing(a, mirrored))


def _differing(a: np.ndarray, b: np.ndarray) -> UInt16[np.ndarray, "*n"]:
    """Bits that differ, summed over the last axis."""
    total = np.bitwise_count(a[..., 0] ^ b[..., 0]).astype(np.uint16)
    for word in range(1, a.shape[-1]):
        total += np.bitwise_count(a[..., word] ^ b[..., word])
    return total


# --------------------------------------------------------------------------- features


def _similar(
    one: np.ndarray, other: np.ndarray, cosine: float, block: int = 1024
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, columns and cosines of all pairs from `cosine` on, by block."""
    for first in range(0, len(one), block):
        a = unit_rows(one[first : first + block])
        for start in range(0, len(other), block):
            similarity = a @ unit_rows(other[start : start + block]).T
            rows, columns = np.nonzero(similarity >= cosine)
            yield first + rows, start + columns, similarity[rows, columns]


# --------------------------------------------------------------------------- pairs


@dataclass(frozen=True)
class _Side:
    """One of the two sets, with what was made of it."""

    images: Images
    hashes: Hashes
    features: np.ndarray | None

    def class_of(self, index: int) -> str | None:
        labels = self.images.labels
        return None if labels is None else self.images.classes[int(labels[index])]


class _Nearest:
    """The pairs of the lowest scores among all that were added, and how many were not kept."""

    def __init__(self, most: int) -> None:
        self.most, self.left_off = most, 0
        self.rows, self.scores = np.zeros((0, 2), np.int64), np.zeros(0)

    def add(self, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> None:
        """Look at some pairs."""
        self.rows = np.concatenate([self.rows, np.stack([rows, columns], axis=1)])
        self.scores = np.concatenate([self.scores, scores])
        order = np.argsort(self.scores, kind="stable")
        self.left_off += len(order[self.most :])
        self.rows, self.scores = self.rows[order[: self.most]], self.scores[order[: self.most]]

    def pairs(self) -> list[tuple[int, int]]:
        """Numbers in the first and in the second set, the best first."""
        return [(int(row), int(column)) for row, column in self.rows]


def _pair(train: _Side, test: _Side, a: int, b: int, threshold: int) -> Pair:
    """All that is said of images `a` and `b`."""
    row = int(np.searchsorted(train.hashes.indices, a))
    column = int(np.searchsorted(test.hashes.indices, b))
    own, other = train.hashes.plain[[row]], test.hashes
    plain = int(_differing(own, other.plain[[column]])[0])
    distance = min(plain, int(_differing(own, other.mirrored[[column]])[0]))
    if (train.hashes.pixels[row] == test.hashes.pixels[column]).all():
        kind = "exact"
    elif distance > threshold:
        kind = "similar"
    else:
        kind = "near" if plain == distance else "mirrored"
    cosine = None
    if train.features is not None and test.features is not None:
        cosine = float(unit_rows(train.features[a]) @ unit_rows(test.features[b]))
    classes = train.class_of(a), test.class_of(b)
    known = None not in classes and train.images.classes == test.images.classes
    return Pair(
        kind=kind,
        distance=distance,
        cosine=cosine,
        train=a,
        test=b,
        train_file=image_name(train.images, a),
        test_file=image_name(test.images, b),
        train_class=classes[0],
        test_class=classes[1],
        conflict=classes[0] != classes[1] if known else None,
    )
