"""Bokeh figures for a white and for a black page: no background, mid-grey lines and text.

CSS does not apply inside a canvas, so the page's script sets the text colours.
"""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.embed import components
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    PanTool,
    ResetTool,
    Span,
    TapTool,
    WheelZoomTool,
    ZoomInTool,
    ZoomOutTool,
)
from bokeh.plotting import figure
from bokeh.resources import Resources
from jaxtyping import Float

from fg_ssl_zoo.evaluation.report.curves import Line

GREY, FAINT = "#808080", "rgba(128, 128, 128, 0.22)"
FONT = "system-ui, sans-serif"

TOOLTIP = """
<div style="display:flex; gap:10px; align-items:center; max-width:290px; font:13px/1.4 system-ui">
  <img src="@image" alt="" width="64" height="64" style="border-radius:4px; flex:none">
  <div style="overflow-wrap:anywhere">
    {lines}<div style="opacity:.65; font-size:11px">@file</div>
  </div>
</div>
"""
CLASSES = "<b>@truth</b><div>@verdict</div>"


def scripts() -> str:
    """The scripts of Bokeh that the figures need, to be included in the page."""
    return Resources(mode="inline", components=["bokeh"]).render_js()


def embed(figures: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """One script for all figures, and for each name the element that it fills."""
    script, places = components(figures)
    return script, dict(places)


def class_colours(count: int) -> list[str]:
    """One colour per class: hues at steps of the golden angle, with three values of lightness."""
    colours = []
    for number in range(count):
        hue, lightness = (0.58 + number * 0.618034) % 1, (0.5, 0.62, 0.42)[number % 3]
        r, g, b = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.62))
        colours.append(f"#{r:02x}{g:02x}{b:02x}")
    return colours


def map_figure(
    points: Float[np.ndarray, "n 2"],
    pictures: Sequence[str],
    files: Sequence[str],
    *,
    classes: Sequence[str] = (),
    labels: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> Any:
    """A point for each image, which is shown under the mouse.

    Args:
        points: Positions of the points.
        pictures: Images as data URIs.
        files: File names.
        classes: Class names; empty without labels.
        labels: True classes. Circles are classified correctly, crosses are not.
        predicted: Classes that the linear probe predicts.
    """
    columns: dict[str, Any] = {
        "x": points[:, 0].round(2).tolist(),
        "y": points[:, 1].round(2).tolist(),
        "picture": list(pictures),
        "file": list(files),
        "alpha": [0.85] * len(points),
    }
    if labels is None or predicted is None:
        columns |= {"colour": ["#3b82c4"] * len(points), "mark": ["circle"] * len(points)}
    else:
        colours = class_colours(len(classes))
        right = labels == predicted
        columns |= {
            "label": labels.tolist(),
            "colour": [colours[label] for label in labels],
            "mark": ["circle" if good else "x" for good in right],
            "truth": [classes[label] for label in labels],
            "verdict": [
                "✓ recognised" if good else f"✗ taken for {classes[name]}"
                for good, name in zip(right, predicted, strict=True)
            ],
        }
    source = ColumnDataSource(columns, name="map")
    plot = _blank(
        tools=[
            PanTool(), BoxZoomTool(match_aspect=True), WheelZoomTool(modifiers="ctrl"),
            ZoomInTool(), ZoomOutTool(), ResetTool(),
        ],
        match_aspect=True,
        name="map-plot",
    )  # fmt: skip
    plot.axis.visible = False
    plot.grid.visible = False
    size = float(np.clip(260 / max(len(points), 1) ** 0.5, 6, 12))
    drawn = plot.scatter(
        "x", "y", source=source, size=size, marker="mark", fill_color="colour", line_color="colour",
        fill_alpha="alpha", line_alpha="alpha", line_width=1.6, name="points",
    )  # fmt: skip
    drawn.nonselection_glyph = drawn.selection_glyph = None  # a tap selects nothing
    plot.add_tools(TapTool(renderers=[drawn], visible=False))
    plot.image_url(
        "picture", "x", "y", source=source, w=28, h=28, w_units="screen", h_units="screen",
        anchor="center", global_alpha="alpha", visible=labels is None, name="pictures",
    )  # fmt: skip
    plot.add_tools(
        HoverTool(
            renderers=[drawn],
            visible=False,  # always on, so it needs no button
            point_policy="snap_to_data",
            tooltips=TOOLTIP.replace("{lines}", CLASSES if classes else ""),
        )
    )
    return plot


def label_figure(lines: Sequence[Line], chance: float) -> Any:
    """Accuracy over the number of labels per class, with the 95 % interval as a band."""
    plot = _lines(lines, x="labels per class", percent=True, log=True)
    plot.add_layout(
        Span(location=chance, dimension="width", line_color=GREY, line_dash="dotted", line_width=1)
    )
    ticks = sorted({x for line in lines for x in line.x})
    plot.xaxis.ticker = FixedTicker(ticks=ticks)
    plot.xgrid.visible = False
    plot.xaxis.major_label_overrides = {x: f"{x:.0f}" for x in ticks}
    return plot


def training_figure(lines: Sequence[Line], *, percent: bool) -> Any:
    """A logged value over the training steps."""
    return _lines(lines, x="step", percent=percent)


def _lines(lines: Sequence[Line], *, x: str, percent: bool, log: bool = False) -> Any:
    plot = _blank(tools=[], x_axis_type="log" if log else "linear")
    if percent:
        plot.yaxis.formatter = NumeralTickFormatter(format="0%")
    else:
        plot.yaxis.formatter = NumeralTickFormatter(format="0[.]0")
    plot.y_range.start = 0
    value = "@y{0.0%}" if percent else "@y{0.00}"
    dots = []
    for line in lines:
        source = ColumnDataSource({"x": line.x, "y": line.y, "name": [line.name] * len(line.x)})
        if line.low and not line.dashed:
            plot.varea(line.x, line.low, line.high, fill_color=line.colour, fill_alpha=0.14)
        plot.line(
            "x", "y", source=source, line_color=line.colour, line_width=2,
            line_dash="dashed" if line.dashed else "solid",
        )  # fmt: skip
        size = 6 if len(line.x) <= 12 else 3
        dots.append(
            plot.scatter("x", "y", source=source, size=size, color=line.colour, line_color=None)
        )
    tip = f'<div style="font:13px/1.4 system-ui"><b>@name</b><div>{value} at @x {x}</div></div>'
    plot.add_tools(HoverTool(renderers=dots, visible=False, tooltips=tip))
    return plot


def _blank(**options: Any) -> Any:
    plot = figure(
        sizing_mode="stretch_both",
        min_height=200,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        toolbar_location="above" if options.get("tools") else None,
        **options,
    )
    plot.toolbar.logo = None
    plot.toolbar.visible = bool(options.get("tools"))
    for axis in plot.axis:
        axis.axis_line_color = axis.major_tick_line_color = GREY
        axis.minor_tick_line_color = None
        axis.major_label_text_color = GREY
        axis.major_label_text_font = FONT
        axis.major_label_text_font_size = "12px"
    plot.grid.grid_line_color = FAINT
    return plot
