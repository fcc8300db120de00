"""Write the tables and curves of the README and of docs/results.md from results files.

    python docs/make_tables.py

It reads benchmarks/results/*.json and writes README.md and docs/images/knn_curve.png; the models of
published/ and what their results files say of them, and their networks before any training in
benchmarks/results/untrained/*.json, for README.md and docs/results.md; and it reads
benchmarks/results/evaluation/*.json, which `fgssl eval` wrote, for docs/results.md.
A results file is the `results.json` of a run, as it is. Comparisons of methods are folders of
benchmarks/results/comparisons/: DATA.json is what `fgssl eval` wrote, and
trained/ROW.json the results of the run behind a row. benchmarks/results/steps/*.json are what
`benchmarks/step.py --out` wrote, and benchmarks/results/peers/*.json are what `benchmarks/peers.py
--out` wrote, for docs/performance.md and docs/images/peers_*.png (`docs/peer_tables.py`).
`docs/option_tables.py` makes the tables of protocols, options and recipe keys. Only the text
between `<!-- NAME -->` and `<!-- end of NAME -->` of a page is replaced.
"""

import json
import re
import runpy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from fg_ssl_zoo.config import as_dict, parse_recipe
from fg_ssl_zoo.evaluation.protocols import DEFAULT, PROTOCOLS, metric
from fg_ssl_zoo.evaluation.table import cells, floors, markdown, metrics_of
from fg_ssl_zoo.ops.tables import markdown_table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MAIN = [found.name for name in DEFAULT for found in PROTOCOLS[name].metrics if found.main]
"""Metrics of the table of released models."""

LOOSE = ("name", "seed", "output", "hub", "monitor")
"""Keys of a recipe in which the runs of one row may differ."""


def load() -> list[dict[str, Any]]:
    """All results, by file name."""
    return [read(path) for path in sorted(RESULTS.glob("*.json"))]


def read(path: Path) -> dict[str, Any]:
    """The content of one results file."""
    return json.loads(path.read_text(encoding="utf-8"))


def table(results: list[dict[str, Any]]) -> str:
    """A markdown row for each training: what was trained, and kNN and RankMe before and after.

    Runs that differ in seed and threads alone are one row, with mean and standard deviation.
    """
    titles = ["images", "backbone, px", "start", "runs", "steps x batch"]
    figures = ["kNN before", "kNN after", "RankMe", "minutes"]
    return markdown_table([*titles, *figures], [row_of(g) for g in trainings(results)], len(titles))


def trainings(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs of each training together."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(training_of(result), []).append(result)
    return list(groups.values())


def training_of(result: dict[str, Any]) -> str:
    """What was trained, whatever the seed, the threads and the folder."""
    whole = as_dict(parse_recipe(result["recipe"]))  # with the defaults of keys that are younger
    recipe = {k: v for k, v in whole.items() if k not in LOOSE}
    speed = {k: v for k, v in recipe.get("speed", {}).items() if k != "threads"}
    data = {k: v for k, v in recipe["data"].items() if k not in ("num_workers", "path")}
    return json.dumps({**recipe, "speed": speed, "data": data}, sort_keys=True)


def row_of(group: list[dict[str, Any]]) -> list[str]:
    """Cells of the runs of one training."""
    result = group[0]
    recipe, train, data = result["recipe"], result["train"], result["data"]
    batch = recipe["stages"][-1]["train"]["batch_size"]
    before, after = ([run["rows"][i] for run in group] for i in (0, 1))
    knn = [spread([100 * row["knn_top1"] for row in rows]) for rows in (before, after)]
    rank = [f"{mean(row['rankme'] for row in rows):.0f}" for rows in (before, after)]
    return [
        f"{data['name']} ({data['num_classes']} classes, {data['num_train']} train / "
        f"{data['num_test']} test)",
        f"{recipe['backbone']}, {data['image_size']}",
        recipe["init"],
        which(group),
        f"{train['steps']} x {batch}",
        knn[0],
        f"**{knn[1]}**",
        " -> ".join(rank),
        f"{mean(run['train']['seconds'] for run in group) / 60:.1f}",
    ]


def which(group: list[dict[str, Any]]) -> str:
    """Seeds and, where they differ, threads of some runs."""
    seeds = ", ".join(map(str, sorted({run["seed"] for run in group})))
    found = {re.search(r"(\d+) threads", run["hardware"]) for run in group}
    threads = sorted({int(match[1]) for match in found if match})
    text = f"seed{'s' if ',' in seeds else ''} {seeds}"
    return text + (f"; {' and '.join(map(str, threads))} threads" if len(threads) > 1 else "")


def spread(values: list[float]) -> str:
    """Mean and standard deviation of several runs in percent, the value of a single one."""
    if len(values) == 1:
        return f"{values[0]:.1f}%"
    return f"{mean(values):.1f}% +- {stdev(values):.1f}"


def released() -> dict[str, list[dict[str, Any]]]:
    """The evaluations in each folder of published/, those on the model's own kind of data first."""
    folders = sorted(path for path in (ROOT / "published").iterdir() if path.is_dir())
    found = {path.name: read(path / "results.json").get("evaluations", {}) for path in folders}
    return {name: list(evaluations.values()) for name, evaluations in found.items()}


def models(whole: bool) -> str:
    """A markdown row for each released model: its size, its scores, and kNN of what it was before.

    Args:
        whole: All data sets and metrics that it was measured on, not its own and the chief ones.
    """
    metrics = MAIN if whole else ["knn_top1", "linear_top1", "retrieval_rank1"]
    shown = [metric(key).title for key in metrics]
    titles = ["model", "MB", "evaluated on, px", *shown, "start, kNN", "untrained, kNN"]
    lines = []
    for name, evaluations in released().items():
        files = (ROOT / "published" / name).glob("*.safetensors")
        size = f"{sum(file.stat().st_size for file in files) / 1e6:.0f}"
        for evaluation in evaluations if whole else evaluations[:1]:
            own, *others = evaluation["rows"]
            scores = {row["name"].rpartition(", ")[2]: row["scores"] for row in others}
            before = [scores.get("start", {}), scores.get("untrained") or untrained(evaluation)]
            lines.append(
                [
                    f"`{name}`",
                    size,
                    f"{evaluation['data']['name']}, {own['image_size']}",
                    *(score_of(own["scores"], key) for key in metrics),
                    *(score_of(each, "knn_top1") for each in before),
                ]
            )
    return markdown_table(titles, lines)


def untrained(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Scores of the random network of an evaluation's first row, measured in one of its own.

    `benchmarks/results/untrained/` holds what these commands write, with the options and the size
    of the model; empty if there is no such file. Such a network has ImageNet's mean and std.

    fgssl eval ARCHITECTURE@scratch --data DATA --protocols knn --no-untrained --out FOLDER
    """

    def which(found: dict[str, Any]) -> list[Any]:
        row = found["rows"][0]
        data = found["data"]
        images = [data[key] for key in ("name", "train_fingerprint", "test_fingerprint")]
        view = ("image_size", "crop_pct", "interpolation", "crop_mode", "feature_map")
        return [*images, *(row[key] for key in ("architecture", "options", *view))]

    for found in map(read, sorted((RESULTS / "untrained").glob("*.json"))):
        if which(found) == which(evaluation):
            return found["rows"][0]["scores"]
    return {}


def score_of(scores: Mapping[str, Any], metric: str) -> str:
    """In percent, with half the 95 % interval; a dash where it was not measured."""
    if metric not in scores:
        return "-"
    score = scores[metric]
    return f"{100 * score['value']:.1f} ± {50 * (score['high'] - score['low']):.1f} %"


def draw_curves(results: list[dict[str, Any]], path: Path) -> None:
    """KNN accuracy over the images seen, with the backbone before training as a line."""
    figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.2), squeeze=False)
    for axis, result in zip(axes[0], results, strict=True):
        batch = result["recipe"]["stages"][-1]["train"]["batch_size"]
        seen = [point["step"] * batch / 1000 for point in result["curve"]]
        knn = [100 * point["eval/knn_top1"] for point in result["curve"]]
        before = result["rows"][0]["name"]
        axis.axhline(knn[0], color="0.6", linestyle="--", linewidth=1, label=before)
        axis.plot(seen, knn, marker="o", markersize=3, color="#0a6ebd", label="SimCLR")
        axis.set(
            title=f"{result['data']['name']}, {result['recipe']['backbone']}",
            xlabel="thousand images seen",
            ylabel="kNN top-1, %",
            ylim=(0, None),
        )
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def evaluations() -> str:
    """A section for each data set that models were compared on."""
    files = sorted((RESULTS / "evaluation").glob("*.json"))
    sections = []
    for results in map(read, files):
        about = f"Seed {results['seed']}, commit {results['commit']}, {results['hardware']}."
        sections.append(
            f"## {results['data']['name']}\n\n{markdown(results, main_metrics(results))}\n{about}"
        )
    return "\n\n".join(sections)


def main_metrics(results: dict[str, Any]) -> list[str]:
    """Metrics of a table: the main ones that some row has, found parts last; files hold more."""
    found = [name for name in metrics_of(results) if metric(name).main]
    return sorted(found, key=lambda name: name.startswith("parts_"))


def comparison(folder: Path) -> str:
    """A table for each data set, with the minutes of training behind each row.

    Rows of `NAME_untrained.json`, which were scored in an evaluation of their own, stand below
    those of `NAME.json`.
    """
    runs = {path.stem: read(path) for path in sorted((folder / "trained").glob("*.json"))}
    found = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    return "\n\n".join(
        compared(results, runs, found.get(f"{name}_untrained"))
        for name, results in found.items()
        if not name.endswith("_untrained")
    )


def compared(
    results: dict[str, Any],
    runs: Mapping[str, dict[str, Any]],
    untrained: dict[str, Any] | None = None,
) -> str:
    """One data set: what `fgssl eval` said, and steps and minutes of the runs."""
    data = results["data"]
    metrics = main_metrics(results)
    titles, *rows = cells(results, metrics)
    if untrained:  # best of themselves, which says nothing here
        apart = cells(untrained, metrics)[1:]
        rows += [[cell.removesuffix(" *") for cell in row] for row in apart]
    lines, shown = [], short_names([row[0] for row in rows])
    for row in rows:
        run = runs.get(row[0]) or runs.get(row[0].rpartition("_")[0])
        train = run["train"] if run else {}
        cost = [str(train["steps"]), f"{train['seconds'] / 60:.1f}"] if train else ["", ""]
        lines.append([shown[row[0]], *row[2:], *cost])
    titles = ["", *titles[2:], "steps", "minutes"]
    size = results["rows"][0]["image_size"]
    said = f"{floors(results)}{by_place(results, metrics)}"
    page = f"### {data['name']}, {size} px\n\n{markdown_table(titles, lines)}\n\n{said}"
    return page + over_seeds(results["rows"], metrics)


def short_names(names: list[str]) -> dict[str, str]:
    """The last word of `FAMILY.DATA.METHOD`, or all of them where two rows share it."""
    last = {name: name.rpartition(".")[2] for name in names}
    shared = Counter(last.values())
    return {name: word if shared[word] == 1 else name for name, word in last.items()}


def over_seeds(rows: list[dict[str, Any]], metrics: list[str]) -> str:
    """Mean and standard deviation of the rows that differ in the seed alone; `_seed1` ends a name.

    Where there are none, nothing.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(re.sub(r"_seed\d+$", "", row["name"]), []).append(row["scores"])
    lines = []
    for name, scores in groups.items():
        if len(scores) > 1:
            values = [[100 * score[metric]["value"] for score in scores] for metric in metrics]
            shown = [f"{mean(found):.1f}% +- {stdev(found):.1f}" for found in values]
            lines.append([name.rpartition(".")[2], str(len(scores)), *shown])
    if not lines:
        return ""
    return "\n\n" + markdown_table(["over seeds", "runs", *metrics], lines)


PARTS_AGAINST = ("moco", "detcon", "grid", "particle1")
"""Rows of the comparisons of PARTICLE: instance contrast, segments, squares, discovered parts."""


def when_particle() -> str:
    """KNN of PARTICLE and what it is compared with, for each start and data set of its comparisons.

    Mean and standard deviation where there are several seeds. Rows of another rate are left out.
    """
    lines = []
    for kind in ("particle_resnet", "particle_hybrid", "particle_distilled"):
        for path in sorted((RESULTS / "comparisons" / kind).glob("*.json")):
            first, *rows = read(path)["rows"]
            groups: dict[str, list[float]] = {}
            for row in rows:
                method = re.sub(r"_seed\d+$", "", row["name"])
                if "knn_top1" in row["scores"] and "_1e-4" not in method:
                    value = 100 * row["scores"]["knn_top1"]["value"]
                    groups.setdefault(method.rpartition(".")[2], []).append(value)
            if "particle1" in groups:
                scores = [spread(groups[m]) if m in groups else "-" for m in PARTS_AGAINST]
                start = spread([100 * first["scores"]["knn_top1"]["value"]])
                pictures = f"{path.stem}, {first['image_size']} px"
                lines.append([first["name"], pictures, start, *scores])
    methods = ["MoCo", "DetCon", "squares", "PARTICLE"]
    return markdown_table(["start", "images", "start, kNN", *methods], lines, 2)


def by_place(results: dict[str, Any], metrics: list[str]) -> str:
    """What pieces of the frame score, where parts were discovered."""
    scores = results["rows"][0]["scores"]
    found = {
        metric: scores[metric]["settings"]["by_place"]
        for metric in metrics
        if "by_place" in scores.get(metric, {}).get("settings", {})
    }
    said = ", ".join(f"{metric} {100 * value:.1f}%" for metric, value in found.items())
    return f"\nFixed pieces of the frame, which do not depend on the image: {said}." if said else ""


def draw_learning(folder: Path, path: Path) -> None:
    """The kNN accuracy of every run of a comparison while it trained, a panel for each data set."""
    runs = [read(file) for file in sorted((folder / "trained").glob("*.json"))]
    names = sorted({run["data"]["name"] for run in runs})
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for run in (run for run in runs if run["data"]["name"] == name):
            steps = [point["step"] for point in run["curve"]]
            knn = [100 * point["eval/knn_top1"] for point in run["curve"]]
            label = " + ".join(stage["method"] for stage in run["recipe"]["stages"])
            axis.plot(steps, knn, marker="o", markersize=3, linewidth=1.2, label=label)
        axis.axhline(knn[0], color="0.6", linestyle="--", linewidth=1, label="start")
        axis.set(title=name, xlabel="steps", ylabel="kNN top-1, %")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][-1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def steps() -> str:
    """What a step of each method costs, as `benchmarks/step.py --out` wrote it; a table a file."""
    files = sorted((RESULTS / "steps").glob("*.json"))
    shown = runpy.run_path(str(ROOT / "benchmarks" / "step.py"))["table"]
    tables = []
    for found in map(read, files):
        size = f"{found['image_size']} px, batch {found['batch_size']}"
        about = f"{found['backbone']}, {size} ({found['hardware']}, {found['rounds']} turns):"
        tables.append(f"{about}\n\n{shown(found['rows'], 'cpu')}")
    return "\n\n".join(tables)


def peers() -> str:
    """Other libraries beside ours, as `benchmarks/peers.py --out` measured them."""
    tables = runpy.run_path(str(ROOT / "docs" / "peer_tables.py"))["tables"]
    return "\n\n".join(
        f"{tables(read(file))}\n\n![The same ratios as bars](images/peers_{file.stem}.png)"
        for file in peer_files()
    )


def peer_files() -> list[Path]:
    """Results of `benchmarks/peers.py`."""
    return sorted((RESULTS / "peers").glob("*.json"))


def replace(page: Path, content: str, name: str = "results") -> None:
    """Put the content between the marks of a page."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{page} has no {begin} ... {end} to write between")
    page.write_text(f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    """Replace the tables of the pages and the image of the curves."""
    results = load()
    replace(ROOT / "README.md", table(results))
    replace(ROOT / "README.md", models(whole=False), "models")
    replace(ROOT / "docs" / "results.md", models(whole=True), "models")
    replace(ROOT / "docs" / "results.md", evaluations())
    for folder in sorted((RESULTS / "comparisons").iterdir()):
        replace(ROOT / "docs" / "results.md", comparison(folder), folder.name)
        if folder.name == "base":
            draw_learning(folder, ROOT / "docs" / "images" / "base_curves.png")
    replace(ROOT / "docs" / "results.md", when_particle(), "when_particle")
    replace(ROOT / "docs" / "performance.md", steps(), "steps")
    replace(ROOT / "docs" / "performance.md", peers(), "peers")
    tables = runpy.run_path(str(ROOT / "docs" / "option_tables.py"))["pages"]()
    for page, contents in tables.items():
        for name, content in contents.items():
            replace(ROOT / "docs" / page, content, name)
    several = [runs[0] for runs in trainings(results) if len(runs[0]["curve"]) > 2]
    if several:
        draw_curves(several, ROOT / "docs" / "images" / "knn_curve.png")
    draw_peers = runpy.run_path(str(ROOT / "docs" / "peer_tables.py"))["draw"]
    for file in peer_files():
        draw_peers(read(file), ROOT / "docs" / "images" / f"peers_{file.stem}.png")


if __name__ == "__main__":
    main()
