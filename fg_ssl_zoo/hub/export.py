"""Export a backbone as a folder that timm and transformers open without this package.

    config.json         the stock architecture and its preprocessing
    model.safetensors   the backbone under timm's keys; nothing of the method
    README.md           the card, see `card.py`
    recipe.yaml         the resolved recipe; `train.py FOLDER/recipe.yaml` repeats the run
    results.json        every score of the card, with commit and seed
    picture.png         an image of parts or neighbours, if `add_picture` was called
    pretraining/        the whole method, to continue its training, see `pretraining.py`

`config.json` also contains the length and a few values of the features of one test pattern. With
them, `fgssl publish` checks that the network built from the folder is the trained one.

config.json has no `num_classes` in the `model_args` (timm 1.0.31's own writer puts it there) and no
`model_type`, since transformers could not load them.

Exception: a folder with one of our own architectures (`backbones/networks/`) opens only after
`import fg_ssl_zoo`, as the usage lines and the card say.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.fgssl_models import stock_of, timm_cfg
from fg_ssl_zoo.backbones.weights.folder import (
    CONFIG,
    INDEX,
    RECIPE,
    WEIGHTS,
    as_json,
    write_network,
)
from fg_ssl_zoo.config import (
    PARTIAL,
    Recipe,
    home_path,
    in_use,
    load_recipe,
    to_yaml,
    write_whole,
)
from fg_ssl_zoo.hub.card import render_card, usage
from fg_ssl_zoo.hub.pretraining import FOLDER, Pretraining, write_pretraining
from fg_ssl_zoo.layers.modes import evaluating

CARD = "README.md"
RESULTS = "results.json"
PICTURE = "picture.png"
FILES = frozenset({CONFIG, WEIGHTS, CARD, RECIPE, RESULTS})

NUM_TRACED = 8
"""Number of feature values in `config.json`."""


def export(
    backbone: Backbone,
    folder: str | Path,
    recipe: Recipe,
    results: Mapping[str, Any],
    pretraining: Pretraining | None = None,
) -> Path:
    """Write a published folder; an older export there is replaced once the new one is complete.

    Args:
        backbone: Not changed.
        folder: New or empty folder, or an earlier export.
        recipe: The resolved recipe, whose name is the name of the model.
        results: Content of `results.json`; the card shows its `rows`.
        pretraining: The method around the backbone, to continue its training.

    Returns:
        The folder, as an absolute path.

    Raises:
        ValueError: The folder contains other files, or timm cannot rebuild the backbone.
    """
    folder = home_path(folder).resolve()
    check_replaceable(folder)
    hub = replace(recipe.hub, sha256=None)  # hash of released weights
    recipe = replace(recipe, hub=hub, output=None, overwrite=False)  # of this machine
    config, weights = model_config(backbone, recipe), _weights(backbone)
    check_rebuilds(config, weights)
    network, config["trace"] = dict(config), trace(backbone)
    if pretraining:
        results = {**results, "pretraining": pretraining.method}
    with replacing(folder) as part:
        write_network(part, config, weights)
        (part / CARD).write_text(render_card(backbone, recipe, results), encoding="utf-8")
        (part / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
        (part / RESULTS).write_text(as_json(results), encoding="utf-8")
        if pretraining:
            write_pretraining(part, network, pretraining)
    return folder


def amend_results(folder: str | Path, entries: Mapping[str, Any]) -> Path:
    """Add entries to the results of an exported folder and render its card anew.

    Args:
        folder: Folder that `export` returned, or the folder of its run.
        entries: Keys of `results.json` with their new content.

    Returns:
        The card.

    Raises:
        ValueError: No export is there.
    """
    folder = exported(folder)
    results = {**read_results(folder), **entries}
    recipe = load_recipe(folder / RECIPE)
    card = render_card(open_backbone(str(folder)), recipe, results)
    write_whole(folder / RESULTS, as_json(results))
    write_whole(folder / CARD, card)
    return folder / CARD


def add_picture(folder: str | Path, picture: str | Path, caption: str) -> Path:
    """Show an image, such as parts or neighbours, on the card of an exported folder.

    Args:
        folder: Folder that `export` returned, or the folder of its run.
        picture: A PNG file.
        caption: What it shows.

    Returns:
        The card.

    Raises:
        ValueError: There is no export, or the file is not a PNG.
    """
    content = home_path(picture).read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{picture} is not a PNG file")
    write_whole(exported(folder) / PICTURE, content)
    return amend_results(folder, {"picture": caption})


def add_evaluation(folder: str | Path, evaluation: Mapping[str, Any]) -> Path:
    """Put the table of an evaluation on the card of an exported folder.

    An earlier table for a data set of the same name is replaced. The first row is the folder's
    model and gets its name.

    Args:
        folder: Folder that `export` returned, or the folder of its run.
        evaluation: Content of the results file of `fgssl eval`.

    Returns:
        The card.

    Raises:
        ValueError: No export is there.
    """
    folder = exported(folder)
    own = evaluation["rows"][0]["name"]
    entry = {
        evaluation["data"]["name"]: _renamed(evaluation, own, load_recipe(folder / RECIPE).name)
    }
    earlier = read_results(folder).get("evaluations", {})
    return amend_results(folder, {"evaluations": {**earlier, **entry}})


def _renamed(content: Any, old: str, new: str) -> Any:
    """Plain data in which one text is replaced by another."""
    if isinstance(content, Mapping):
        return {key: _renamed(value, old, new) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_renamed(value, old, new) for value in content]
    return new if content == old else content


def read_results(folder: str | Path) -> dict[str, Any]:
    """The results of an exported folder, or of the folder of its run.

    Raises:
        ValueError: There is no export, or its results cannot be read.
    """
    path = exported(folder) / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); export the run again") from error
    if not isinstance(results, dict):
        raise ValueError(f"{path} is not a JSON object; export the run again")
    return results


def exported(folder: str | Path) -> Path:
    """The exported folder: this folder, or `export` inside a run's folder.

    Raises:
        ValueError: No export is there.
    """
    folder = home_path(folder)
    for place in (folder, folder / "export"):
        if all((place / file).is_file() for file in (CONFIG, RECIPE, RESULTS)):
            return place
    places = f"{folder}, nor in {folder / 'export'}; a run exports when it ends"
    why = places if folder.is_dir() else f"{folder}, as there is no such folder"
    raise ValueError(f"there is no exported backbone in {why}")


def usage_lines(folder: str | Path) -> str:
    """The Python lines that load an exported folder with timm and with transformers.

    Args:
        folder: Folder that `export` returned.
    """
    folder = home_path(folder).resolve()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return usage(
        timm_name=f"local-dir:{folder}",
        transformers_name=str(folder),
        num_features=config["num_features"],
        architecture=config["architecture"],
    )


def model_config(backbone: Backbone, recipe: Recipe) -> dict[str, Any]:
    """`config.json` for timm's `local-dir:` and `hf-hub:` and transformers' TimmWrapper.

    Args:
        backbone: Backbone with architecture, input and width.
        recipe: Recipe with tag, crop and license.
    """
    tag = recipe.name.partition(".")[2]
    return stock_config(backbone, tag, recipe.data.crop_pct, recipe.hub.license)


def stock_config(
    backbone: Backbone, tag: str, crop_pct: float | None, license: str | None
) -> dict[str, Any]:
    """`config.json` of a network without classifier, independent of a recipe.

    Args:
        backbone: As for `model_config`.
        tag: Tag of the pretrained configuration.
        crop_pct: Share of the shorter side that the centre crop keeps.
        license: SPDX name, if any.
    """
    architecture, options = stock_of(backbone.name, backbone.model)
    cfg = timm_cfg(
        architecture,
        backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        crop_pct=crop_pct,
        license=license,
    )
    options = {**options, **backbone.options}
    if cfg["fixed_input_size"]:
        options["img_size"] = backbone.image_size
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": options,  # even if empty, since transformers would pass null to timm
        "pretrained_cfg": {"tag": tag, **cfg},
    }


def trace(backbone: Backbone) -> list[float]:
    """Length and a few values of the features of one test pattern, to identify the network.

    Args:
        backbone: Not changed.
    """
    size = backbone.image_size
    device = next(backbone.parameters()).device
    pattern = (torch.arange(3 * size * size, dtype=torch.float32) / 10).sin()
    with evaluating(backbone), torch.no_grad():
        feature = backbone(pattern.view(1, 3, size, size).to(device))[0].float().cpu()
    return [round(float(number), 6) for number in [feature.norm(), *_spread(feature)]]


def _spread(feature: Float[Tensor, " d"]) -> Float[Tensor, " n"]:
    """At most `NUM_TRACED` values, evenly spaced from the first to the last."""
    return feature[torch.linspace(0, len(feature) - 1, min(NUM_TRACED, len(feature))).long()]


def _weights(backbone: Backbone) -> dict[str, Tensor]:
    """Weights on the CPU in the default memory layout; safetensors refuses channels-last."""
    state = backbone.model.state_dict()
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def check_rebuilds(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights whose keys or shapes differ from those of the stock model.

    Args:
        config: Content of `config.json`.
        weights: Weights under timm's keys.

    Raises:
        ValueError: The first key that differs.
    """
    architecture = config["architecture"]
    with torch.device("meta"):
        stock = timm.create_model(architecture, num_classes=0, **config.get("model_args", {}))
    wanted = {key: tuple(value.shape) for key, value in stock.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise ValueError(
                f"the backbone is not a stock {architecture}: {key} is {found.get(key, 'missing')} "
                f"here and {wanted.get(key, 'missing')} there; export the backbone alone, unwrapped"
            )


def is_part_of_export(name: str) -> bool:
    """Whether this is the name of a file of a published folder, including parts of weights."""
    parts = name.startswith("model-") and name.endswith(".safetensors")
    return name in FILES or name in (INDEX, PICTURE, FOLDER) or parts


def names_in(folder: Path, wanted: str) -> set[str]:
    """Names of all entries of a folder, if it exists; a file is refused, with what is needed."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; {wanted}")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def check_replaceable(folder: Path) -> None:
    """Refuse a folder with other files than an export.

    Raises:
        ValueError: Names these files.
    """
    found = names_in(folder, "export writes a folder")
    left = re.compile(rf"(\.\d+)?{re.escape(PARTIAL)}$")  # left by a killed command
    foreign = sorted(name for name in found if not is_part_of_export(left.sub("", name)))
    if foreign or (found and not {CONFIG, RECIPE} <= found):
        raise ValueError(
            f"{folder} holds {', '.join(foreign[:3] or sorted(found))}, which no export writes; "
            "name a new folder, or move those files away"
        )


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces an older one at the end of the context.

    If anything fails, the older folder is kept and the temporary one is removed.

    Args:
        folder: Absolute path; it need not exist.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}")  # a sibling: the swap is a rename
    shutil.rmtree(part, ignore_errors=True)  # of a killed process with this id
    part.mkdir(parents=True)
    try:
        yield part
        _swap(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _remove_stale(folder)


def _swap(part: Path, folder: Path) -> None:
    """Replace an older folder by a complete one; if this fails, the older one is restored."""
    old = part.with_name(f"{part.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        part.rename(folder)
    except BaseException:  # a signal too
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(folder: Path) -> None:
    """Remove temporary folders that killed processes have left beside this folder."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.[0-9]*"):
        process = path.name.removeprefix(f".{folder.name}.").removesuffix(".old")
        if not in_use(process):
            shutil.rmtree(path, ignore_errors=True)
