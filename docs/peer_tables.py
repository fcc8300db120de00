"""Tables and figure of `benchmarks/peers.py`, from its results files.

`docs/make_tables.py` writes them into docs/performance.md and docs/images/peers_*.png.
"""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from fg_ssl_zoo.ops.tables import markdown_table

COLUMNS = {
    "step, ResNet-18": ("step_resnet18", "step"),
    "step, ViT-Ti": ("step_vit_tiny", "step"),
    "step, ResNet-50": ("step_resnet50", "step"),
    "data, 96 px": ("data_96", "data"),
    "data, 96 px, 2 workers": ("data_96_workers", "data"),
    "data, 224 px": ("data_224", "data"),
    "data, 224 px, 2 workers": ("data_224_workers", "data"),
    "end to end, ResNet-18": ("step_resnet18", "run"),
    "CPU-s to the first step": ("step_resnet18", "first_step"),
}
"""Title of a column -> row of the measurement and its figure."""

BASE = "lightly"
"""All ratios are relative to it."""


def tables(results: Mapping[str, Any]) -> str:
    """Figures, ratios to lightly, and what is missing."""
    titles = [title for title, (row, _) in COLUMNS.items() if row in results["rows"]]
    blocks = [
        about(results),
        table(results, titles, figure_cell),
        f"Ratio to {BASE}: median of the turns (smallest to largest, if there are several).",
        table(results, titles, ratio_cell),
    ]
    failed = [
        f"- {name}, {row}: failed: {known[-1]['failed']}"
        for row, found in results["rows"].items()
        for name, known in found.items()
        if known and "failed" in known[-1]
    ]
    return "\n\n".join(blocks + (["\n".join(failed)] if failed else []))


def about(results: Mapping[str, Any]) -> str:
    """One paragraph on machine, images and versions."""
    images, versions = results["images"], results["versions"]
    torch = sorted({found["torch"] for found in versions.values() if "torch" in found})
    libraries = {
        f"{name} {found[name]}"
        for found in versions.values()
        for name in ("lightly", "lightly-train", "stable-pretraining")
        if name in found
    }
    return (
        f"{results['hardware']}, {results['cores']} cores, one thread, torch {', '.join(torch)}, "
        f"{', '.join(sorted(libraries))}. {images['number']:,} JPEGs of {images['name']} "
        f"({images['pixels'][0]} x {images['pixels'][1]} pixels, {images['kilobytes']} kB on "
        f"average). {results['turns']} turns, commit {results['commit']}."
    )


def table(results: Mapping[str, Any], titles: list[str], cell: Any) -> str:
    """A row for each library; one that did not run says why."""
    lines = []
    for name in results["contestants"]:
        if name in results["missing"]:
            cells = [f"not measured: {results['missing'][name]}", *[""] * (len(titles) - 1)]
        else:
            cells = [cell(results, name, *COLUMNS[title]) for title in titles]
        lines.append([name, *cells])
    return markdown_table(["", *titles], lines)


def figures(results: Mapping[str, Any], name: str, row: str, figure: str) -> list[float]:
    """One for each turn; none where a library was not measured."""
    known = results["rows"].get(row, {}).get(name, [])
    return [] if any("failed" in turn for turn in known) else [turn[figure] for turn in known]


def ratios(results: Mapping[str, Any], name: str, row: str, figure: str) -> list[float]:
    """This library's figure divided by that of lightly in the same turn."""
    own, base = (figures(results, who, row, figure) for who in (name, BASE))
    return [a / b for a, b in zip(own, base, strict=False)]


def figure_cell(results: Mapping[str, Any], name: str, row: str, figure: str) -> str:
    """Median, without the decimals that mean nothing."""
    found = figures(results, name, row, figure)
    if not found:
        return "failed" if results["rows"].get(row, {}).get(name) else "-"
    return f"{median(found):,.0f}" if median(found) >= 100 else f"{median(found):.1f}"


def ratio_cell(results: Mapping[str, Any], name: str, row: str, figure: str) -> str:
    """Median and range."""
    found = ratios(results, name, row, figure)
    if len(found) < 2:  # one turn has no range
        return f"{found[0]:.2f}" if found else "-"
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """A panel for each column: ratios to lightly with their range."""
    import matplotlib.pyplot as plt

    shown = [name for name in results["contestants"] if name not in results["missing"]]
    titles = [title for title, (row, _) in COLUMNS.items() if row in results["rows"]]
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2 + 3 * columns, 2.4 * lines), squeeze=False, sharey=True
    )
    for axis, title in zip(axes.flat, titles, strict=False):
        for place, name in enumerate(shown):
            found = ratios(results, name, *COLUMNS[title])
            if found:
                middle = median(found)
                spread = [[middle - min(found)], [max(found) - middle]]
                color = {"ours": "#0a6ebd", "bare loop": "0.4"}.get(name, "0.7")
                axis.barh(place, middle, color=color, xerr=spread, error_kw={"elinewidth": 1})
        axis.axvline(1, color="0.2", linewidth=0.8, linestyle="--")
        axis.set_title(f"{title} (less is better)" if "CPU-s" in title else title, fontsize=9)
        axis.set_yticks(range(len(shown)), shown, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    axes[0][0].invert_yaxis()
    figure.supxlabel(f"ratio to {BASE}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
