"""Release a trained folder as `published/NAME`, small enough for a code repository.

Matrices and kernels are stored in half precision. Vectors (biases, norms, running statistics) keep
their precision, since they are small and a running variance may overflow. A file above 50 MB is
split into parts. `pretraining/` is left out. The sha256 of the joined weights is written to the
recipe.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from fg_ssl_zoo.backbones.weights.folder import (
    CONFIG,
    INDEX,
    WEIGHTS,
    as_json,
    sha256_of,
    write_state,
)
from fg_ssl_zoo.config import Data, Recipe, Speed, as_dict, home_path, to_yaml
from fg_ssl_zoo.hub.card import render_card
from fg_ssl_zoo.hub.checks import TOLERANCE, check, distance
from fg_ssl_zoo.hub.export import (
    CARD,
    PICTURE,
    RECIPE,
    RESULTS,
    check_replaceable,
    replacing,
    trace,
)

LARGEST_FILE = 50_000_000
"""Size in bytes above which hosted git repositories warn."""


def release(
    folder: str | Path,
    root: str | Path,
    *,
    license: str | None = None,
    about: str | None = None,
    largest_file: int = LARGEST_FILE,
) -> Path:
    """Write the released form of a trained folder below `root`; an older one is replaced.

    Args:
        folder: An exported folder, or the folder of a run.
        root: `published/` of a checkout, or any folder to be FG_SSL_ZOO_DIR.
        license: SPDX name for weights whose recipe has none.
        about: First sentence of the card, such as which images it was trained on.
        largest_file: Largest size of a weight file in bytes; larger ones are split.

    Returns:
        `root/NAME`, as an absolute path.

    Raises:
        ValueError: It may not be published, or half precision changes its features.
    """
    found = check(folder, license, backbone_only=True)
    target = home_path(root).resolve() / found.recipe.name
    if target.parent.is_file():
        raise ValueError(f"--to: {root} is a file; name a folder")
    check_replaceable(target)
    weights = half_of(found.backbone.model.state_dict())
    before = trace(found.backbone)
    found.backbone.model.load_state_dict(weights)
    after = trace(found.backbone)
    error = distance(after, before)
    if error > TOLERANCE:
        raise ValueError(f"{found.folder}: half precision changes its features by {error:.1%}")
    config = {**found.config, "trace": after, "dtype": "float32"}  # for transformers
    results = {**found.results, "released": {"precision": "float16", "feature_error": error}}
    if about:
        results["about"] = about
    with replacing(target) as part:
        write_state(weights, part / WEIGHTS)
        shutil.copymode(found.folder / RECIPE, part / WEIGHTS)
        hub = replace(found.recipe.hub, sha256=sha256_of(part / WEIGHTS))
        recipe = replace(anywhere(found.recipe), hub=hub)
        if "recipe" in results:
            results["recipe"] = as_dict(recipe)
        if (part / WEIGHTS).stat().st_size > largest_file:
            _split(weights, part, largest_file)
        if (found.folder / PICTURE).is_file():
            shutil.copyfile(found.folder / PICTURE, part / PICTURE)
        (part / CONFIG).write_text(as_json(licensed(config, hub.license)), encoding="utf-8")
        (part / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
        (part / RESULTS).write_text(as_json(results), encoding="utf-8")
        (part / CARD).write_text(render_card(found.backbone, recipe, results), encoding="utf-8")
    return target


def anywhere(recipe: Recipe) -> Recipe:
    """The recipe without settings of one machine: folder of the images, processes, threads.

    The fingerprint in the results identifies the images.
    """
    data = replace(
        recipe.data,
        path=None,
        num_workers=Data.num_workers,
        cache=Data.cache,
        cache_gb=Data.cache_gb,
    )
    return replace(recipe, data=data, speed=replace(recipe.speed, threads=Speed.threads))


def half_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and kernels in float16, if all their values fit; the rest unchanged."""
    largest = torch.finfo(torch.float16).max
    return {
        key: value.half().contiguous()
        if value.is_floating_point() and value.ndim > 1 and value.abs().max() < largest
        else value.contiguous()
        for key, value in state.items()
    }


def _split(weights: Mapping[str, Tensor], folder: Path, largest_file: int) -> None:
    """Replace the weight file by parts and their index."""
    plan = split_torch_state_dict_into_shards(
        dict(weights), filename_pattern="model{suffix}.safetensors", max_shard_size=largest_file
    )
    if len(plan.filename_to_tensors) == 1:  # there is only one tensor
        return
    for name, keys in plan.filename_to_tensors.items():
        write_state({key: weights[key] for key in keys}, folder / name)
        shutil.copymode(folder / WEIGHTS, folder / name)
    index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
    (folder / INDEX).write_text(as_json(index), encoding="utf-8")
    (folder / WEIGHTS).unlink()


def licensed(config: Mapping[str, Any], license: str | None) -> dict[str, Any]:
    """The configuration with the chosen licence."""
    return {**config, "pretrained_cfg": {**config["pretrained_cfg"], "license": license}}


def pin(recipe_file: Path, sha256: str) -> bool:
    """Write `hub.sha256` into a recipe; comments and order are kept.

    Args:
        recipe_file: A YAML file whose `hub:` is `{...}` on one line, or missing.
        sha256: SHA-256 of the released weights.

    Returns:
        Whether it was written; a file of another form is not changed.
    """
    text = recipe_file.read_text(encoding="utf-8")
    wanted = yaml.safe_load(text)
    wanted["hub"] = {**(wanted.get("hub") or {}), "sha256": sha256}
    without = re.sub(r"""(?m)^(hub: \{.*?)(?:, *)?sha256: *"?\w+"?(?:, *)?""", r"\1", text)
    entry = f'sha256: "{sha256}"'  # quoted, since a hash of digits only would be a number
    new = re.sub(
        r"(?m)^hub: \{(.*?)\}",
        lambda m: f"hub: {{{', '.join(filter(None, [m[1], entry]))}}}",
        without,
    )
    if "hub" not in yaml.safe_load(text):
        new = f"{text.rstrip()}\nhub: {{{entry}}}\n"
    try:
        fits = yaml.safe_load(new) == wanted
    except yaml.YAMLError:
        return False
    if fits:
        recipe_file.write_text(new, encoding="utf-8")
    return fits
