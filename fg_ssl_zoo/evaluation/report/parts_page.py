"""The page of `fgssl parts`: discovered parts as images.

    grid.png      some images, and their parts in colour for each model
    rounds.png    images of a run, and its parts before training, after each round and at the end
    part_03.png   one part in many images, each cropped to the part
    features.png  patch features as colours: their first three principal components
    index.html    all of these on one page that makes no requests

A part has the same colour in all images. Parts of different models or rounds that cover the same
pixels have the same colour.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Integer, UInt8
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.config import Data, encodable, home_path, load_recipe
from fg_ssl_zoo.data.contact_sheet import contact_sheet, save_png
from fg_ssl_zoo.data.datasets import Subset, all_splits, load_splits
from fg_ssl_zoo.data.fixed_views import WholeView
from fg_ssl_zoo.data.loader import resolve_num_workers
from fg_ssl_zoo.data.sample import CorruptImage, Images, WrongMask
from fg_ssl_zoo.engine.run_folder import RunFolder
from fg_ssl_zoo.evaluation.candidates import opened, row_name
from fg_ssl_zoo.evaluation.parts.scores import contingency, part_agreement, stretched
from fg_ssl_zoo.evaluation.report.attribution import enlarged, patch_colours, patch_maps
from fg_ssl_zoo.evaluation.report.templates import rendered
from fg_ssl_zoo.features.extract import evenly, ready
from fg_ssl_zoo.ops.distributed import world_size
from fg_ssl_zoo.parts import Discovery, discover_parts, discovery_for

GRID, MONTAGE, COLOURED = 24, 30, 16
"""Number of images of the grid, of a part's montage, and of the features."""

SIDE = 192
"""Longer side of an image on the page in pixels."""

COVER = 0.55
"""Opacity of a part's colour over the image."""

GOLDEN = 0.618033988749895
"""Step of the hue from one part to the next, in turns; few parts always differ clearly."""


@dataclass(frozen=True)
class Found:
    """The parts of one model or one round.

    Attributes:
        name: Name of the model, as shown on the page.
        maps: (n, m, m) part number of every pixel of every image.
        has_background: Whether 0 is the background and not a part.
        scores: `part_agreement`, if the images have masks or keypoints.
    """

    name: str
    maps: Tensor
    has_background: bool
    scores: Mapping[str, float]


def write_part_pictures(
    models: Sequence[str],
    data: Data,
    out: Path,
    accelerator: Accelerator,
    *,
    changes: Mapping[str, Any] | None = None,
    num_pictures: int = 300,
    image_size: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Discover parts in test images and write the page; on the main process only.

    Args:
        models: Texts for `open_backbone`. Montages and features show the first one, and so do
            rounds, if it is the folder of a run with stored notes.
        data: Data set; its test images are used, or all images without a test split.
        out: Folder for PNGs and `index.html`.
        accelerator: Device, precision and processes.
        changes: Fields of `Discovery` other than `discovery_for`'s.
        num_pictures: Largest number of images, evenly spaced over the data set.
        image_size: Side of the input in pixels; each model's own when not given.
        seed: Seed of untrained weights and drawn images.
        cache: Folder of part maps.
        say: Called with a line before each piece of work.

    Returns:
        The page.

    Raises:
        ValueError: No such model or images, or discovery options that do not fit the network.
    """
    splits = all_splits(data, seed=seed, hold_out=False)
    images = readable_subset(splits.get("test", splits["train"]), num_pictures)
    told = rounds_of_run(home_path(models[0]))
    opened_models = [opened(words, image_size, seed=seed) for words in models]
    found: list[Found] = []
    for words, (backbone, _) in zip(models, opened_models, strict=True):
        how = discovery_for(backbone, changes)
        name = row_name(words, backbone, pretrained=True, taken=[other.name for other in found])
        say(f"{name}: parts of {len(images)} images, {backbone.image_size} px")
        found.append(_discovered(name, backbone, images, how, accelerator, cache))
    if not accelerator.is_main_process:
        return out / "index.html"
    say(f"{found[0].name}: images")
    found = _all_matched(found)
    names = ", then ".join(each.name for each in found)
    text = f"An image, then its parts by {names}."
    figures = [grid("grid.png", "Parts in images", text, images, found)]
    if told:
        names = ", then ".join(each.name for each in told[1])
        text = f"An image, then its parts at {names}."
        title = "Round by round"
        figures.append(grid("rounds.png", title, text, told[0], _all_matched(told[1])))
    figures += montages(images, found[0])
    figures.append(features_figure(images, opened_models[0][0], accelerator.device))
    for figure in figures:
        save_png(out / figure.file, figure.picture)
    page = out / "index.html"
    content = {
        "found": found, "data_name": images.name, "count": len(images), "figures": figures,
    }  # fmt: skip
    page.write_text(encodable(rendered("parts.html.jinja", content)), encoding="utf-8")
    return page


def readable_subset(images: Images, most: int) -> Subset:
    """Evenly spaced images, without unreadable ones.

    Raises:
        ValueError: All are unreadable, or a part mask does not fit its image.
    """
    good = []
    for index in evenly(len(images), most):
        try:
            images[index]
        except WrongMask:
            raise
        except CorruptImage:
            continue
        good.append(index)
    if not good:
        raise ValueError(f"{images.name}: none of the images can be decoded")
    return Subset(images, np.array(good))


def _discovered(
    name: str,
    backbone: Backbone,
    images: Images,
    how: Discovery,
    accelerator: Accelerator,
    cache: Path | None,
) -> Found:
    workers = resolve_num_workers("auto", world_size())
    ready(backbone, accelerator)
    maps = discover_parts(backbone, images, accelerator, how, num_workers=workers, cache=cache)
    scores = part_agreement(maps, images) if how.scope == "dataset" else {}
    return Found(name, maps, how.foreground, scores)


def rounds_of_run(run: Path) -> tuple[Images, list[Found]] | None:
    """Some images of a run, with its parts before each round and at the end.

    Test images, if the run had some. `None` if the folder is not a run or has no stored parts.

    Args:
        run: Folder of the run.

    Raises:
        ValueError: The images of the run have changed or are missing.
    """
    folder = RunFolder(run)
    shown = sorted(folder.notes.glob("shown_stage*.safetensors"), key=_stage_and_round)
    if not folder.recipe.is_file() or not shown:
        return None
    recipe = load_recipe(folder.recipe)
    train, test = load_splits(recipe.data, seed=recipe.seed)
    with safe_open(shown[0], framework="pt") as file:
        images = test if file.metadata()["split"] == "test" else train
        indices = file.get_tensor("indices")
    if images is None or int(indices.max()) >= len(images):
        raise ValueError(f"{run}: it was trained on other images than {recipe.data.name} has now")
    some = readable_subset(Subset(images, indices.numpy()), len(indices))
    rows = torch.from_numpy(some.indices)
    return some, [Found(_title(path), load_file(path)["parts"][rows], True, {}) for path in shown]


def _stage_and_round(path: Path) -> tuple[int, float]:
    """Stage and round in the name of a parts file, from 0; the end sorts after all rounds."""
    stage, at = path.stem.removeprefix("shown_stage").split("_")
    return int(stage), math.inf if at == "end" else int(at.removeprefix("round"))


def _title(path: Path) -> str:
    stage, number = _stage_and_round(path)
    where = f"of stage {stage + 1}"
    return f"the end {where}" if number == math.inf else f"the start of round {number + 1} {where}"


def _all_matched(found: Sequence[Found]) -> list[Found]:
    return [found[0], *(matched(other, found[0]) for other in found[1:])]


def matched(found: Found, to: Found) -> Found:
    """Renumber parts by the largest overlap with the parts of `to`.

    The background keeps its number and is not matched with a part. Parts without a partner get
    the remaining numbers.
    """
    count = int(max(found.maps.max(), to.maps.max())) + 1
    small = to.maps[:, :: to.maps.shape[1] // 16 or 1, :: to.maps.shape[2] // 16 or 1]
    sizes = small.shape[1:]
    mine = torch.nn.functional.interpolate(found.maps[:, None].float(), size=sizes)[:, 0].long()
    overlap = contingency(mine.flatten(), small.flatten(), (count, count)).double()
    if found.has_background or to.has_background:
        overlap[0], overlap[:, 0] = -1, -1
        overlap[0, 0] = float("inf")
    table = torch.zeros(count, dtype=torch.int64)
    for _ in range(count):
        own, theirs = divmod(int(overlap.argmax()), count)
        table[own] = theirs
        overlap[own], overlap[:, theirs] = -2, -2
    return Found(found.name, table[found.maps.long()], found.has_background, found.scores)


# --------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class Figure:
    """A figure of the page with its title and text."""

    file: str
    title: str
    text: str
    picture: np.ndarray


def grid(file: str, title: str, text: str, images: Images, found: Sequence[Found]) -> Figure:
    """Two images per row, each followed by its parts for every model."""
    cells = []
    for row in evenly(len(images), GRID):
        picture = small(images[row]["image"])
        cells.append([picture, *(painted(picture, f.maps[row], f.has_background) for f in found)])
    pairs = [[*left, *right] for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=[])]
    return Figure(file, title, text, contact_sheet(pairs))


def montages(images: Images, found: Found) -> list[Figure]:
    """For every part, a figure of images in which it has about its usual area."""
    numbers = found.maps.unique().tolist()
    figures = []
    for part in numbers[1:] if found.has_background and numbers[0] == 0 else numbers:
        area = (found.maps == part).flatten(1).double().mean(dim=1)
        there = (area > 0).nonzero().flatten()
        typical = there[area[there] >= area[there].median() / 2]
        rows = [int(typical[i]) for i in evenly(len(typical), MONTAGE)]
        cells = [cut_to_part(images[row]["image"], found.maps[row], part) for row in rows]
        lines = [cells[i : i + 10] for i in range(0, len(cells), 10)]
        share = f"in {len(there)} of {len(area)} images, {area[there].mean():.0%} of their area"
        text = f"{share}, by {found.name}."
        figures.append(
            Figure(f"part_{part:02}.png", f"Part {part}", text, contact_sheet(lines, cell=96))
        )
    return figures


def features_figure(images: Images, backbone: Backbone, device: torch.device) -> Figure:
    """Images, and the first three principal components of their patches as red, green, blue."""
    rows, size = evenly(len(images), COLOURED), backbone.image_size
    view, nothing = WholeView(size, backbone.interpolation), np.random.default_rng(0)
    pixels = np.stack([view(images[row], nothing)["image"] for row in rows])
    maps = patch_maps(backbone, backbone.normalize(torch.from_numpy(pixels).to(device)))
    cells = []
    for row, colours in zip(rows, patch_colours(maps), strict=True):
        picture = small(images[row]["image"])
        height, width = picture.shape[:2]
        cells += [picture, cv2.resize(enlarged(colours, SIDE), (width, height))]
    lines = [cells[i : i + 8] for i in range(0, len(cells), 8)]
    text = "Equal colours are equal features: one basis for all images."
    return Figure("features.png", "Patch features as colours", text, contact_sheet(lines))


# --------------------------------------------------------------------------- painting


def part_colour(part: int) -> Float[np.ndarray, "3"]:
    """RGB in 0..255 of a part; it does not depend on the other parts."""
    hue = 360 * ((part * GOLDEN) % 1)
    saturation, value = (0.85, 1.0) if part % 2 else (0.65, 0.8)
    hsv = np.array([[[hue, saturation, value]]], np.float32)
    return 255.0 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)


def small(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """The image resized to a longer side of `SIDE`; the aspect ratio is kept."""
    scale = SIDE / max(image.shape[:2])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how)


def painted(
    picture: UInt8[np.ndarray, "h w 3"],
    part_map: Integer[Tensor, "m m"],
    has_background: bool,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in grey under the colours of its parts, with white borders between parts."""
    numbers = stretched(part_map, *picture.shape[:2]).numpy()
    colours = np.stack([part_colour(part) for part in range(int(numbers.max()) + 1)])
    grey = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    cover = np.full((*numbers.shape, 1), COVER)
    if has_background:
        cover[numbers == 0] = 0
    mixed = (1 - cover) * grey + cover * colours[numbers]
    cross = np.ones((3, 3), np.uint8)
    borders = cv2.dilate(numbers.astype(np.uint8), cross) != numbers
    mixed[borders] = 255
    return mixed.round().astype(np.uint8)


def cut_to_part(
    image: UInt8[np.ndarray, "h w 3"], part_map: Integer[Tensor, "m m"], part: int
) -> UInt8[np.ndarray, "y x 3"]:
    """A square crop around the largest connected piece of a part; other pixels are darker.

    Args:
        image: The whole image.
        part_map: Part map of the image, of any size; contains the part.
        part: Number of the part.
    """
    picture = small(image)
    member = (stretched(part_map, *picture.shape[:2]) == part).numpy().astype(np.uint8)
    _, _, pieces, _ = cv2.connectedComponentsWithStats(member)
    if len(pieces) < 2:  # so thin that resizing has removed it
        return picture
    x, y, w, h, _ = pieces[1 + int(pieces[1:, cv2.CC_STAT_AREA].argmax())]
    half = max(w, h) * 5 // 8 + 4
    top, left = max(0, y + h // 2 - half), max(0, x + w // 2 - half)
    place = slice(top, y + h // 2 + half), slice(left, x + w // 2 + half)
    shade = np.where(member[place], 1.0, 0.45)[..., None]
    return (picture[place] * shade).astype(np.uint8)
