"""The model card: `MODEL_CARD.md` filled from the recipe and the results.

Every score comes from the results and every setting from the recipe; missing ones are left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from fg_ssl_zoo.backbones.backbone import Backbone
from fg_ssl_zoo.backbones.fgssl_models import hub_repo, is_stock, published_as, stock_of
from fg_ssl_zoo.config import Recipe, as_dict, encodable, flatten, of_package
from fg_ssl_zoo.metrics import KNN, LINEAR, ON_CARDS, metric_of
from fg_ssl_zoo.ops.tables import markdown_table

USAGE = """\
{imports}import timm
from transformers import AutoImageProcessor, AutoModel

# timm: model(transform(image)[None]) is one row of {num_features} features
model = timm.create_model({timm_name}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))

# transformers: model(**processor(image)).pooler_output is the same row
processor = AutoImageProcessor.from_pretrained({transformers_name})
model = AutoModel.from_pretrained({transformers_name})
"""

IMPORT = "import fg_ssl_zoo  # gives timm this architecture\n"
"""First line of the usage for an architecture that stock timm does not have."""

ACCURACIES = {KNN: "knn", LINEAR: "linear"}
"""Metrics that go into the card's model-index -> their protocol in the results."""

NOT_COMPARED = "Near-duplicates between pretraining and test images: not checked"
"""Text if the results have no `overlap`, which `fgssl compare-splits` writes."""

_LABELS = ("name", "init")


class Score(NamedTuple):
    """A score of a network, the data set if it is not the run's, and the protocol's settings."""

    value: float
    data: str | None
    settings: dict[str, Any]


def usage(*, timm_name: str, transformers_name: str, num_features: int, architecture: str) -> str:
    """Python lines that load a published model, without fg_ssl_zoo if timm has its architecture.

    Args:
        timm_name: `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        transformers_name: `FOLDER` or `OWNER/NAME`.
        num_features: Width of the pooled feature.
        architecture: Architecture in `config.json`.
    """
    return USAGE.format(
        imports="" if is_stock(architecture) else IMPORT,
        timm_name=_quoted(timm_name),
        transformers_name=_quoted(transformers_name),
        num_features=num_features,
    )


def usage_by_name(name: str, repo: str) -> str:
    """The line that loads a published model with fg_ssl_zoo.

    Args:
        name: Name of the model; the name of a recipe in `hub_configs/` is a timm name.
        repo: `OWNER/NAME`, which may differ from the default repository of the name.
    """
    ours = published_as(name)
    if ours is None:
        return f"fg_ssl_zoo.load({_quoted(f'hf-hub:{repo}')})"
    registered: Any = get_pretrained_cfg(ours.name)
    overlay = f", pretrained_cfg_overlay=dict(hf_hub_id={_quoted(repo)})"
    elsewhere = overlay if registered.hf_hub_id != repo else ""
    return f"timm.create_model({_quoted(name)}, pretrained=True{elsewhere})"


def _quoted(text: str) -> str:
    """A Python string literal with double quotes; quotes inside are escaped."""
    return json.dumps(text, ensure_ascii=False)


def render_card(backbone: Backbone, recipe: Recipe, results: Mapping[str, Any]) -> str:
    """The README of a published folder.

    Args:
        backbone: The trained backbone.
        recipe: The resolved recipe.
        results: Content of `results.json`; all parts except the name may be missing.
    """
    results = _on_lines(results)
    repo = hub_repo(recipe.name, recipe.hub.repo)
    architecture = stock_of(backbone.name, backbone.model)[0]
    lines = usage(
        timm_name=f"hf-hub:{repo}",
        transformers_name=repo,
        num_features=backbone.num_features,
        architecture=architecture,
    )
    card = ModelCard.from_template(
        card_data(recipe, results),
        template_path=str(of_package("MODEL_CARD.md")),
        recipe=_on_lines(as_dict(recipe)),
        results=results,
        repo=repo,
        by_name=usage_by_name(recipe.name, repo),
        is_name=published_as(recipe.name) is not None,
        duration=_duration(results.get("train", {}).get("seconds")),
        architecture=architecture,
        stock=is_stock(architecture),
        num_features=backbone.num_features,
        num_parameters=sum(p.numel() for p in backbone.model.parameters()),
        usage=lines.strip(),
        methods=", then ".join(dict.fromkeys(_on_lines(s.method) for s in recipe.stages)),
        table=results_table(results.get("rows", ())),
        before=_row_before(results),
        evaluations=[
            {**entry, "table": results_table(_evaluated_rows(entry))}
            for entry in results.get("evaluations", {}).values()
        ],
        settings=_on_lines(_settings(recipe)),
        with_labels=results.get("with_labels", False),
        data=results.get("data", {}),
        knn=_knn_protocol(results),
        overlap=results.get("overlap", {}).get("summary", NOT_COMPARED),
    )
    return encodable(str(card).rstrip()) + "\n"


def _duration(seconds: float | None) -> str:
    """A duration in a suitable unit; empty if it was not measured."""
    if not seconds:
        return ""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _on_lines(content: Any) -> Any:
    """Plain data without line breaks, table bars and backticks, which break markdown."""
    if isinstance(content, Mapping):
        return {key: _on_lines(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_on_lines(value) for value in content]
    if isinstance(content, str):
        return " ".join(content.split()).replace("|", "/").replace("`", "'").replace("<", "&lt;")
    return content


def card_data(recipe: Recipe, results: Mapping[str, Any]) -> ModelCardData:
    """The card's YAML header, with the trained row's accuracies as model-index."""
    evaluated = _eval_results(recipe, results)
    hub_id = _hub_id(recipe, results)
    methods = [stage.method for stage in recipe.stages]
    kind = "supervised" if results.get("with_labels") else "self-supervised"
    words = ["timm", "transformers", kind, "fine-grained", *methods, recipe.data.name]
    return ModelCardData(
        license=recipe.hub.license,
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        tags=[*words, *recipe.hub.tags],
        datasets=[hub_id] if hub_id else None,
        base_model=_base_model(recipe) if _starts_as(recipe, results) else None,
        model_name=recipe.name,
        eval_results=evaluated or None,
    )


def _hub_id(recipe: Recipe, results: Mapping[str, Any]) -> str | None:
    """Hub id of the images; `None` for a local folder, which has precedence."""
    own = None if recipe.data.path else recipe.data.hub_id
    return results.get("data", {}).get("hub_id") or own


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of all rows; a metric that no row has gets no column.

    Args:
        rows: `{"name": ..., metric: value, ...}`.
    """
    metrics = list(dict.fromkeys(key for row in rows for key in row if key not in _LABELS))
    order = [metric.name for metric in ON_CARDS]
    metrics.sort(key=lambda name: [*order, name].index(name))
    if not metrics:
        return ""
    titles = ["", *(metric_of(name, ON_CARDS).title for name in metrics)]
    cells = [
        [str(row["name"]), *(_cell(metric, row.get(metric)) for metric in metrics)] for row in rows
    ]
    return markdown_table(titles, cells, spaced=True)


def _evaluated_rows(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `fgssl eval` for the card; metrics without a title are left out."""
    rows, known = evaluation["rows"], {metric.name for metric in ON_CARDS}
    return [
        {"name": f"{row['name']}, {row['image_size']} px"}
        | {metric: score["value"] for metric, score in row["scores"].items() if metric in known}
        for row in rows
    ]


def _cell(metric: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, int | float):
        return str(value)
    return metric_of(metric, ON_CARDS).format.format(value)


def trained_scores(results: Mapping[str, Any]) -> dict[str, Score]:
    """Metric -> score of the trained network, from its run and from its first `fgssl eval`.

    The run's score counts, but not one of a sample (`monitor.max_images`) if `fgssl eval` scored
    the same data set: one of this name, or one of these test images under another name.
    """
    trained = next((row for row in results.get("rows", ()) if row.get("name") == "trained"), {})
    protocols = results.get("protocol") or {}
    own = {
        metric.name: Score(trained[metric.name], None, dict(protocols.get(protocol) or {}))
        for metric, protocol in ACCURACIES.items()
        if isinstance(trained.get(metric.name), int | float)
    }
    data, scores = next(_evaluated(results), ({}, {}))
    evaluated = {
        name: Score(score["value"], str(data["name"]), dict(score.get("settings") or {}))
        for name, score in scores.items()
        if isinstance(score.get("value"), int | float)
    }
    used = results.get("data") or {}
    same = any(data.get(k) == used.get(k) is not None for k in ("name", "test_fingerprint"))
    kept = {k: v for k, v in own.items() if not (same and v.settings.get("max_images"))}
    return {**own, **evaluated, **kept}


def _evaluated(
    results: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Data set and scores of the model in each `fgssl eval`; incomplete ones are left out."""
    for entry in (results.get("evaluations") or {}).values():
        data, rows = entry.get("data") or {}, entry.get("rows") or [{}]
        if data.get("name") and rows[0].get("scores"):
            yield data, rows[0]["scores"]


def _eval_results(recipe: Recipe, results: Mapping[str, Any]) -> list[EvalResult]:
    found = trained_scores(results)
    return [
        EvalResult(
            task_type="image-classification",
            task_name=f"{protocol} classification of frozen features",
            dataset_type=score.data or _hub_id(recipe, results) or recipe.data.name,
            dataset_name=score.data or recipe.data.name,
            dataset_split=None if score.data else recipe.data.test_split,
            metric_type="accuracy",
            metric_name=metric.title,
            metric_value=round(score.value, 4),
            metric_args=score.settings or None,
        )
        for metric, protocol in ACCURACIES.items()
        if (score := found.get(metric.name)) is not None
    ]


def _row_before(results: Mapping[str, Any]) -> str:
    """Name of the row measured before the first step: `untrained`, or `start` after an init."""
    names = [str(row["name"]) for row in results.get("rows", ())]
    return next((name for name in ("untrained", "start") if name in names), "")


def _knn_protocol(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the kNN scores; empty if there are none, as for unlabelled images."""
    scored = any(row.get("knn_top1") is not None for row in results.get("rows", ()))
    return results.get("protocol", {}).get("knn", {}) if scored else {}


def _starts_as(recipe: Recipe, results: Mapping[str, Any]) -> bool:
    """Whether these weights started from the recipe's `init`.

    A companion may be another network, such as a discriminator.
    """
    started = {row.get("init") for row in results.get("rows", ())}
    return not results.get("companion") or started == {recipe.init}


def _base_model(recipe: Recipe) -> str | None:
    """Hub id of the start weights, if they are on the Hub."""
    if recipe.init.startswith("hf-hub:"):
        return recipe.init.removeprefix("hf-hub:").partition("@")[0]
    if ours := published_as(recipe.init):
        return ours[1]
    start = get_arch_pretrained_cfgs(recipe.backbone).get(f"{recipe.backbone}.{recipe.init}")
    return start.hf_hub_id if start else None


def _settings(recipe: Recipe) -> list[tuple[str, str]]:
    """Rows of the training table, one stage after the other."""
    rows = []
    for number, stage in enumerate(recipe.stages, start=1):
        prefix = f"stage {number}: " if len(recipe.stages) > 1 else ""
        options = ", ".join(f"{k} {v}" for k, v in flatten(stage.options).items() if k)
        train = stage.train
        length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
        rate = f"learning rate {train.lr:g} ({train.lr_scaling} scaling of a batch of 256)"
        rows += [
            (f"{prefix}method", stage.method + (f" ({options})" if options else "")),
            (f"{prefix}length", length + (f", {stage.rounds} rounds" if stage.rounds > 1 else "")),
            (f"{prefix}batch size", str(train.batch_size)),
            (
                f"{prefix}optimizer",
                f"{train.optimizer}, {rate}, weight decay {train.weight_decay:g}",
            ),
        ]
    return rows
