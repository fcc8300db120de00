"""List the models of the zoo: one row per name and tag, with the source of its weights."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from fg_ssl_zoo.backbones.fgssl_models import Published, own_recipes, published_as
from fg_ssl_zoo.backbones.weights.folder import CONFIG, WEIGHTS, has_weights, weight_files
from fg_ssl_zoo.backbones.weights.locate import (
    TRAIN,
    PretrainedWeightsError,
    cached_folder,
    check_download,
    explain,
    local_place,
    patience,
)
from fg_ssl_zoo.config import load_recipe, nearest, recipe_files
from fg_ssl_zoo.hub.card import trained_scores
from fg_ssl_zoo.hub.export import CARD, PICTURE, RECIPE, RESULTS
from fg_ssl_zoo.hub.pretraining import FOLDER as PRETRAINING
from fg_ssl_zoo.metrics import KNN, LINEAR
from fg_ssl_zoo.ops.tables import columns

NOTHING, UNKNOWN = "nothing yet", "Hub did not answer"
_PULLED = [CONFIG, WEIGHTS, CARD, RECIPE, RESULTS, PICTURE]


@dataclass(frozen=True)
class Entry:
    """A row of `fgssl list`.

    Attributes:
        name: Architecture and tag: the name in timm, of the recipe and on the Hub.
        backbone, method, data, init, image_size: Values of its recipe.
        parameters: Number of parameters of the backbone.
        knn, linear: Accuracies in 0..1, if its results are available.
        bytes: Size of the weights in bytes, if they are on this machine.
        source: `folder`, `checkout`, `cache`, `Hub`, or why there is none.
        place: The folder or the repository.
    """

    name: str
    backbone: str
    method: str
    data: str
    init: str
    image_size: int
    parameters: int
    knn: float | None
    linear: float | None
    bytes: int | None
    source: str
    place: str


def entries(*, ask_hub: bool = True) -> Iterator[Entry]:
    """All models with a recipe, in the package or in FG_SSL_ZOO_DIR, by name.

    Args:
        ask_hub: Whether to ask the Hub for models that are in no folder and not in the cache.
    """
    on_hub = _OnHub() if ask_hub else None
    for name, path in sorted({**recipe_files(), **own_recipes()}.items()):
        published = published_as(name)
        if published is None:  # its recipe cannot be read, which was logged
            continue
        recipe = load_recipe(path)
        source, place, results = _source(published, on_hub)
        folder = Path(place) if source in ("folder", "checkout", "cache") else None
        yield Entry(
            name=name,
            backbone=recipe.backbone,
            method=", ".join(dict.fromkeys(stage.method for stage in recipe.stages)),
            data=recipe.data.name,
            init=recipe.init,
            image_size=recipe.data.image_size,
            parameters=_num_parameters(recipe.backbone, _frozen(recipe.backbone_options)),
            knn=results.get(KNN.name),
            linear=results.get(LINEAR.name),
            bytes=sum(p.stat().st_size for p in weight_files(folder)) if folder else None,
            source=source,
            place=place,
        )


def _source(published: Published, on_hub: "_OnHub | None") -> tuple[str, str, Mapping[str, Any]]:
    """Source of the weights, its place, and the trained row of the results."""
    place, _ = local_place(published.name)
    if place:
        return place.kind, str(place.path), _trained_row(place.path)
    cached = cached_folder(published.repo)
    if cached:
        return "cache", str(cached), _trained_row(cached)
    if on_hub is None:
        return NOTHING, "", {}
    found = on_hub.scores(published.repo)
    if found is None:
        return (NOTHING if on_hub.answered else UNKNOWN), "", {}
    return "Hub", published.repo, found


class _OnHub:
    """Models of owners on the Hub: one request per owner, and none after a failure."""

    def __init__(self) -> None:
        self.answered = not constants.HF_HUB_OFFLINE
        self._models: dict[str, dict[str, Mapping[str, Any]]] = {}

    def scores(self, repo: str) -> Mapping[str, Any] | None:
        """Accuracies on the card of a repository; `None` if it does not exist."""
        owner = repo.partition("/")[0]
        if owner not in self._models and self.answered:
            self._models[owner] = self._ask(owner)
        return self._models.get(owner, {}).get(repo)

    def _ask(self, owner: str) -> dict[str, Mapping[str, Any]]:
        try:
            if not _answers():
                raise ConnectionError
            models = HfApi().list_models(author=owner, cardData=True)
            return {model.id: _on_card(model.card_data) for model in models}
        except Exception:  # the client raises those of its HTTP library too
            self.answered = False
            return {}


def _answers() -> bool:
    """Whether the Hub answers: a single request, since the client would retry for half a minute."""
    from huggingface_hub import get_session

    reply = get_session().get(
        f"{constants.ENDPOINT}/api/models", params={"limit": "1"}, timeout=patience()
    )
    return reply.is_success


def _on_card(card: Any) -> dict[str, float]:
    results = getattr(card, "eval_results", None) or []
    names = {metric.title: metric.name for metric in (KNN, LINEAR)}
    return {names[r.metric_name]: r.metric_value for r in results if r.metric_name in names}


def _trained_row(folder: Path) -> Mapping[str, float]:
    """Metric -> value of the trained network."""
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        return {name: score.value for name, score in trained_scores(results).items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _frozen(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True)


@cache
def _num_parameters(backbone: str, options: str) -> int:
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=0, **json.loads(options))
    return sum(parameter.numel() for parameter in model.parameters())


def as_text(rows: list[Entry]) -> str:
    """A table of the usable models, then the training command of each other model."""
    usable = [row for row in rows if row.source not in (NOTHING, UNKNOWN)]
    others = [row for row in rows if row.source in (NOTHING, UNKNOWN)]
    lines = [as_table(usable) if usable else "no weights on this machine or on the Hub"]
    if others:
        reason = "; the Hub did not answer" if others[0].source == UNKNOWN else ""
        title = f"recipes without weights{reason}: {len(others)} (--all shows them in the table)"
        lines += ["", title]
        lines += [TRAIN.format(row.name) for row in others]
    return "\n".join(lines)


def as_table(rows: list[Entry]) -> str:
    """The rows as aligned columns for a terminal."""
    titles = [
        "name",
        "backbone",
        "method",
        "data",
        "init",
        "px",
        "params",
        "kNN",
        "linear",
        "MB",
        "from",
    ]
    cells = [
        [
            row.name, row.backbone, row.method, row.data, row.init, str(row.image_size),
            f"{row.parameters / 1e6:.1f} M", _percent(row.knn), _percent(row.linear),
            f"{row.bytes / 1e6:.0f}" if row.bytes else "", row.source,
        ]
        for row in rows
    ]  # fmt: skip
    return "\n".join(columns([titles, *cells]))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def as_plain(entry: Entry) -> dict[str, Any]:
    """A row as plain data."""
    return asdict(entry)


# --------------------------------------------------------------------------- one model


def resolve(name: str) -> Published:
    """Where one of our models is published.

    Args:
        name: Name with or without its tag, or with `@REVISION`.

    Raises:
        ValueError: Unknown name; names the nearest.
    """
    published = published_as(name)
    if published is None:
        others = "; `hf download OWNER/NAME` brings a repository that has no name here"
        hint = others if "/" in name else nearest(name, timm.list_pretrained("fgssl*"))
        raise ValueError(f"no model '{name}'{hint}")
    return published


def card_folder(name: str) -> Path:
    """A folder with the card of a model, and its results if they are published.

    Raises:
        ValueError: Unknown name, or not published.
    """
    published = resolve(name)
    place = None if published.revision else local_place(published.name)[0]
    if place and (place.path / CARD).is_file():
        return place.path
    try:
        try:
            hf_hub_download(published.repo, RESULTS, revision=published.revision)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            pass
        return Path(hf_hub_download(published.repo, CARD, revision=published.revision)).parent
    except Exception as error:  # the client raises those of its HTTP library too
        raise ValueError(
            f"no card of {published.name}: {constants.ENDPOINT}/{published.repo} ({explain(error)})"
        ) from error


def pull(name: str, *, pretraining: bool = False) -> Path:
    """Download a model with its card into the Hub's cache, with a progress bar, and check it.

    Args:
        name: With or without its tag, or with `@REVISION`.
        pretraining: Whether to download `pretraining/` too, which is larger than the model.

    Returns:
        The folder in the cache, or the local folder of this name.

    Raises:
        ValueError: Unknown name, weights that differ from the published ones, or no
            `pretraining/`.
        PretrainedWeightsError: It is not available.
    """
    published = resolve(name)
    place = None if published.revision else local_place(published.name)[0]
    if place and (has_weights(place.path / PRETRAINING) or not pretraining):
        return place.path
    wanted = [*_PULLED, *([f"{PRETRAINING}/*"] if pretraining else [])]
    try:
        folder = Path(
            snapshot_download(published.repo, revision=published.revision, allow_patterns=wanted)
        )
    except Exception as error:  # the client raises those of its HTTP library too
        raise PretrainedWeightsError(
            f"{published.name}: {constants.ENDPOINT}/{published.repo} ({explain(error)})"
        ) from error
    if not (folder / WEIGHTS).is_file():
        raise PretrainedWeightsError(f"{published.repo} has no {WEIGHTS}")
    check_download(folder, published.sha256)
    if pretraining:
        if not has_weights(folder / PRETRAINING):
            raise ValueError(f"{published.repo} was published without {PRETRAINING}/")
        check_download(folder / PRETRAINING)
    return folder
