"""Draw the images of the README and the pages.

    python docs/make_images.py                          those that need no run, into docs/images/
    python docs/make_images.py --pairs runs/painted     what a run of synthesized pairs has painted
    python docs/make_images.py --parts parts            what `fgssl parts` wrote into a folder,
                                                        under the folder's name

`simclr_pairs.png` shows one bird and what the edit of each SimCLR pair makes of it.
`neighbours.png` shows four drawn birds and their nearest neighbours by a released model.
`drawn_birds.png` shows four species of `DrawnBirds` with six individuals each, one image as it
would look with six species, and the part masks of that row.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fg_ssl_zoo.data.drawn import DrawnBirds, part_overlay
from fg_ssl_zoo.data.pairs import PAIRS
from fg_ssl_zoo.features.embedder import load
from fg_ssl_zoo.ops.neighbours import unit_rows

FOLDER = Path(__file__).parent / "images"
TILE, GAP, CAPTION = 192, 8, 26
OVERSAMPLING = 4
NUM_COLUMNS = 6
SPECIES = (4, 1, 14, 10)
OTHER_SPECIES = (5, 3, 9, 2, 11, 13)
NUM_COLOURS = 256
RELEASED = "fgssl_resnet50_cub.distillation_96px"
NUM_SEARCHED = 400
PAINTED_ROWS = 6
PAINTED = ("view", "decoded", "S perturbed", "difference", "where kept", "where S looks")
"""Columns of the images that a run of synthesized pairs writes."""


def tile(picture: np.ndarray) -> np.ndarray:
    """The image at the size of a tile, with less of its noise, which a PNG cannot compress."""
    small = cv2.resize(picture, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return cv2.bilateralFilter(small, 7, 18, 3)


def row(title: str, pictures: list[np.ndarray]) -> np.ndarray:
    """Images side by side under a caption."""
    width = NUM_COLUMNS * (TILE + GAP) - GAP
    page = Image.new("RGB", (width, CAPTION + TILE + GAP), "white")
    font = ImageFont.load_default(size=15)
    ImageDraw.Draw(page).text((1, 4), title, fill=(60, 60, 60), font=font)
    for column, picture in enumerate(pictures):
        page.paste(Image.fromarray(tile(picture)), (column * (TILE + GAP), CAPTION))
    return np.asarray(page)


def with_palette(image: np.ndarray) -> Image.Image:
    """The image in 256 colours, found by k-means with most of its samples from vivid pixels.

    The ready-made palettes give nearly all colours to the backgrounds, and none to a blue cap.
    """
    rng = np.random.default_rng(0)
    pixels = image.reshape(-1, 3).astype(np.float32)
    vivid = np.ptp(pixels, axis=1) ** 2 + 300
    sample = pixels[rng.choice(len(pixels), 30_000, p=vivid / vivid.sum())]
    stop = (cv2.TERM_CRITERIA_MAX_ITER, 20, 0)
    cv2.setRNGSeed(0)
    _, _, centres = cv2.kmeans(sample, NUM_COLOURS - 1, None, stop, 1, cv2.KMEANS_PP_CENTERS)
    colours = np.vstack([centres, [[255, 255, 255]]]).round().astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes())
    return Image.fromarray(image).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def drawn_birds() -> Image.Image:
    """The contact sheet of the built-in data set."""
    birds = DrawnBirds(10_000, image_size=OVERSAMPLING * TILE, seed=7)
    rows = []
    for label in SPECIES:
        indices = np.flatnonzero(birds.labels == label)[:NUM_COLUMNS].tolist()
        rows.append(row(birds.classes[label], [birds[index]["image"] for index in indices]))
    same = [birds.draw(3, label) for label in OTHER_SPECIES]
    rows.append(row("one image, drawn as six species", [sample["image"] for sample in same]))
    masks = [part_overlay(sample["image"], sample["part_mask"]) for sample in same]
    rows.append(row("and its part masks", masks))
    return with_palette(np.concatenate(rows)[:-GAP])


def neighbours() -> Image.Image:
    """The first bird of each species, and the nearest of the others by a released model."""
    birds = DrawnBirds(NUM_SEARCHED, image_size=TILE, seed=7)
    pictures = [birds[index]["image"] for index in range(NUM_SEARCHED)]
    features = unit_rows(load(RELEASED).embed(pictures))
    cosines = features @ features.T
    np.fill_diagonal(cosines, -1)
    ranked = np.argsort(-cosines, axis=1)
    share = (birds.labels[ranked[:, 0]] == birds.labels).mean()
    print(f"neighbours: the nearest of {NUM_SEARCHED} has the same species for {share:.0%}")
    rows = []
    for label in SPECIES:
        query = int(np.flatnonzero(birds.labels == label)[0])
        found = ranked[query, : NUM_COLUMNS - 1].tolist()
        right = int((birds.labels[found] == label).sum())
        title = f"{birds.classes[label]}; {right} of {len(found)} neighbours have its species"
        rows.append(row(title, [pictures[index] for index in (query, *found)]))
    return with_palette(np.concatenate(rows)[:-GAP])


def simclr_pairs() -> Image.Image:
    """One image, edited as each pair does; captions above."""
    picture = tile(DrawnBirds(8, image_size=OVERSAMPLING * TILE, seed=3)[2]["image"])
    page = Image.new("RGB", (len(PAIRS) * (TILE + GAP) - GAP, CAPTION + TILE), "white")
    font = ImageFont.load_default(size=15)
    for column, (name, pair) in enumerate(PAIRS.items()):
        edit = pair.first or pair.second
        shown = edit(picture, np.random.default_rng(1)) if edit else picture
        x = column * (TILE + GAP)
        ImageDraw.Draw(page).text((x + 1, 4), name, fill=(60, 60, 60), font=font)
        page.paste(Image.fromarray(shown), (x, CAPTION))
    return with_palette(np.asarray(page))


def synthesized_pairs(run: Path) -> Image.Image:
    """The last images of a run, enlarged, the difference eight times as bright.

    Raises:
        SystemExit: The run has no images.
    """
    painted = sorted((run / "pictures").glob("*.png"))
    if not painted:
        raise SystemExit(f"{run / 'pictures'} holds no PNG; a run of synthesized_pairs paints them")
    strip = np.asarray(Image.open(painted[-1]).convert("RGB"))
    side = strip.shape[1] // len(PAINTED)
    large = cv2.resize(
        strip[: PAINTED_ROWS * side], None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC
    )
    difference = slice(2 * 3 * side, 2 * 4 * side)
    large[:, difference] = np.minimum(8 * large[:, difference].astype(int), 255)
    page = Image.new("RGB", (large.shape[1], CAPTION + large.shape[0]), "white")
    font = ImageFont.load_default(size=15)
    for column, name in enumerate(PAINTED):
        text = f"{name} x 8" if name == "difference" else name
        ImageDraw.Draw(page).text((2 * column * side + 3, 4), text, fill=(60, 60, 60), font=font)
    page.paste(Image.fromarray(large), (0, CAPTION))
    return with_palette(np.asarray(page))


def parts(folder: Path) -> Image.Image:
    """The upper half of the grid of parts, in fewer colours."""
    grid = np.asarray(Image.open(folder / "grid.png").convert("RGB"))
    return with_palette(grid[: len(grid) // 2])


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, metavar="RUN")
    parser.add_argument("--parts", type=Path, metavar="FOLDER")
    asked = parser.parse_args()
    pictures = {}
    if asked.pairs:
        pictures["synthesized_pairs"] = synthesized_pairs(asked.pairs)
    if asked.parts:
        pictures[asked.parts.resolve().name] = parts(asked.parts)
    drawn = (neighbours, drawn_birds, simclr_pairs)
    pictures = pictures or {draw.__name__: draw() for draw in drawn}
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        path = FOLDER / f"{name}.png"
        picture.save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
