"""Checks of a folder before it is published; all run before anything is sent.

files       only files of an export, no links, nothing that looks like an access token
network     timm builds it from config.json with the features of the trained backbone
pretraining belongs to this backbone, if it exists
licence     set, and allowed by the terms of the images
results     every accuracy has its protocol
card        the Hub can read its header, which has the same licence
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.create import open_backbone
from fg_ssl_zoo.backbones.weights.config import read_config
from fg_ssl_zoo.backbones.weights.folder import (
    SAFE_NAME,
    WEIGHTS,
    check_sha256,
    has_weights,
    read_state,
    whole,
)
from fg_ssl_zoo.config import Recipe, load_recipe
from fg_ssl_zoo.data.catalog import CATALOG
from fg_ssl_zoo.hub.card import ACCURACIES
from fg_ssl_zoo.hub.export import (
    CARD,
    RECIPE,
    RESULTS,
    check_rebuilds,
    exported,
    is_part_of_export,
    read_results,
    trace,
)
from fg_ssl_zoo.hub.pretraining import FILES as PRETRAINING_FILES
from fg_ssl_zoo.hub.pretraining import FOLDER, check_belongs

TOLERANCE = 0.01
"""Largest distance of the features from the trained ones, relative to their length.

Half precision and other hardware cause much smaller differences.
"""

_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class Checked:
    """A folder that may be published.

    Attributes:
        folder: The exported folder.
        recipe: The recipe, with the chosen licence.
        results: Content of `results.json`.
        config: Content of `config.json`.
        backbone: Built by timm from the folder, in evaluation mode.
    """

    folder: Path
    recipe: Recipe
    results: Mapping[str, Any]
    config: Mapping[str, Any]
    backbone: Backbone


def check(
    folder: str | Path, license: str | None = None, *, backbone_only: bool = False
) -> Checked:
    """Read a folder without trusting it, and refuse it with the first problem found.

    Args:
        folder: An exported folder, or the folder of a run.
        license: SPDX name for weights whose recipe has none.
        backbone_only: Whether to leave out `pretraining/`.

    Raises:
        ValueError: Names the problem and the remedy.
    """
    folder = exported(folder).resolve()
    _check_files(folder)
    recipe, results, config = (
        load_recipe(folder / RECIPE),
        read_results(folder),
        read_config(folder),
    )
    if not SAFE_NAME.fullmatch(recipe.name):
        raise ValueError(f"{folder / RECIPE}: name: {recipe.name!r} cannot name a repository")
    recipe = replace(recipe, hub=replace(recipe.hub, license=license or recipe.hub.license))
    check_license(recipe, results)
    _check_results(folder, results)
    backbone = _check_network(folder, recipe, config)
    if backbone_only:
        results = {key: value for key, value in results.items() if key != FOLDER}
    else:
        _check_pretraining(folder, results, config)
    if license is None:
        _check_card(folder, recipe)
    return Checked(folder, recipe, results, config, backbone)


def check_license(recipe: Recipe, results: Mapping[str, Any] | None = None) -> None:
    """Refuse weights without a licence, or with a licence that the terms of the images forbid.

    Args:
        recipe: Recipe with licence and images.
        results: Results of the run, which contain the terms of the images.

    Raises:
        ValueError: Quotes the terms of the images.
    """
    entry = CATALOG.get(recipe.data.name)
    terms = (results or {}).get("data", {}).get("terms") or (entry.terms if entry else None)
    said = f"the images of {recipe.data.name}: {terms or 'terms unknown to us, ask their owner'}"
    license = recipe.hub.license
    if not license:
        raise ValueError(f"hub.license is missing ({said}); choose one with --license")
    if not _LICENSE.fullmatch(license):
        raise ValueError(f"hub.license: {license!r} is no SPDX name in lower case (cc-by-nc-4.0)")
    if "non-commercial" in (terms or "") and "-nc" not in license and license != "other":
        raise ValueError(f"hub.license: {license} allows commercial use ({said}); use cc-by-nc-4.0")


def _check_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if not is_part_of_export(path.name):
            raise ValueError(f"{folder} holds {path.name}, which no export writes; move it away")
        if path.name == FOLDER and path.is_dir() and not path.is_symlink():
            for inner in sorted(path.iterdir()):
                if inner.name not in PRETRAINING_FILES:
                    raise ValueError(f"{path} holds {inner.name}, which no export writes")
                _check_file(inner)
        else:
            _check_file(path)
    lacking = [CARD] if not (folder / CARD).is_file() else []
    lacking += [WEIGHTS] if not has_weights(folder) else []
    if lacking:
        raise ValueError(f"{folder} lacks {' and '.join(lacking)}")


def _check_file(path: Path) -> None:
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path} is a link or a folder; only files are published")
    if path.suffix != ".safetensors" and (found := _TOKEN.search(path.read_bytes())):
        at = path.read_bytes()[: found.start()].count(b"\n") + 1
        raise ValueError(f"{path}, line {at}: this looks like an access token; remove it")


def _check_results(folder: Path, results: Mapping[str, Any]) -> None:
    protocols = results.get("protocol") or {}
    measured = {key for row in results.get("rows") or () for key in row}
    named = {metric.name: protocol for metric, protocol in ACCURACIES.items()}
    lacking = [p for name, p in named.items() if name in measured and not protocols.get(p)]
    if lacking or not protocols:
        raise ValueError(
            f"{folder / RESULTS} lacks the protocol of {' and '.join(lacking) or 'its scores'} "
            "(`protocol`), without which they cannot be compared; measure again with this version"
        )


def _check_network(folder: Path, recipe: Recipe, config: Mapping[str, Any]) -> Backbone:
    """The network that timm builds from the configuration, after a check of its features."""
    state = read_state(folder)
    check_rebuilds(config, state)
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{folder}: {broken[0]} has values that are not finite")
    if recipe.hub.sha256:
        weights = whole(folder) / WEIGHTS
        check_sha256(weights, recipe.hub.sha256, f"{folder / RECIPE} says so (hub.sha256)")
    backbone = open_backbone(f"local-dir:{whole(folder)}")
    backbone.eval()
    found, kept = trace(backbone), config.get("trace")
    if backbone.num_features != config.get("num_features"):
        raise ValueError(
            f"{folder}: the network has {backbone.num_features} features, config.json says "
            f"{config.get('num_features')}"
        )
    if not isinstance(kept, list) or distance(found, kept) > TOLERANCE:
        raise ValueError(
            f"{folder}: the network that timm builds from config.json has other features than the "
            "trained network (`trace`); export it again"
        )
    return backbone


def _check_pretraining(folder: Path, results: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Check that `pretraining/` exists if the results name it, and belongs to the backbone."""
    named, there = FOLDER in results, (folder / FOLDER).is_dir()
    if named and not there:
        raise ValueError(f"{folder} lacks {FOLDER}/, which {RESULTS} names; or use --backbone-only")
    if there and not named:
        raise ValueError(f"{folder} holds {FOLDER}/, which {RESULTS} does not name; move it away")
    if there:
        check_belongs(folder, config, read_state(folder))


def distance(found: list[float], kept: list[Any]) -> float:
    """Distance of two traces, relative to the length of the second."""
    if len(found) != len(kept) or not all(isinstance(n, int | float) for n in kept):
        return math.inf
    moved = math.dist(found, kept) / max(math.hypot(*kept), 1e-12)
    return moved if math.isfinite(moved) else math.inf


def _check_card(folder: Path, recipe: Recipe) -> None:
    try:
        header: Any = ModelCard((folder / CARD).read_text(encoding="utf-8")).data
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder / CARD}: the Hub cannot read its header ({error})") from error
    if header.license != recipe.hub.license:
        raise ValueError(
            f"{folder / CARD} says license {header.license}, {RECIPE} says {recipe.hub.license}"
        )


def read_card(folder: Path) -> str:
    """The card of a published folder."""
    return (folder / CARD).read_text(encoding="utf-8")


def as_plain(card: str) -> dict[str, Any]:
    """The header of a card."""
    return json.loads(json.dumps(ModelCard(card).data.to_dict(), default=str))
