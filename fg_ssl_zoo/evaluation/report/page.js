"use strict";
(() => {
  // A canvas does not read CSS: text and lines follow the colour scheme from here.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const ink = () => {
    const colour = dark.matches ? "#a3aab2" : "#5b636c";
    for (const document_ of Bokeh.documents) {
      for (const plot of document_.roots()) {
        for (const axis of [...plot.below, ...plot.left]) {
          axis.major_label_text_color = colour;
        }
      }
    }
  };

  const named = (name) => {
    for (const document_ of Bokeh.documents) {
      const found = document_.get_model_by_name(name);
      if (found) return found;
    }
  };

  // Classes that stay bright on the map; an empty list is all of them.
  const show = (classes) => {
    const points = named("map");
    const chosen = new Set(classes);
    points.data.alpha = Array.from(points.data.label, (label) =>
      chosen.size === 0 ? 0.85 : chosen.has(label) ? 1 : 0.07);
    points.change.emit();
    const select = document.getElementById("classes-on-map");
    select.value = classes.length === 1 ? String(classes[0]) : "";
    document.getElementById("all-on-map").hidden = chosen.size === 0;
    document.getElementById("shown-on-map").replaceChildren(...classes.map((label) => {
      const item = document.createElement("span");
      const dot = document.createElement("i");
      dot.textContent = "●";
      dot.style.color = points.data.colour[Array.from(points.data.label).indexOf(label)];
      item.append(dot, " ", select.options[label + 1].textContent);
      return item;
    }));
  };

  // A finger scrolls the page; it has smaller points and zooms with the tools.
  const touch = () => {
    const points = named("points");
    const plot = named("map-plot");
    if (matchMedia("(max-width: 760px)").matches) points.glyph.size = { value: 6 };
    if (matchMedia("(pointer: coarse)").matches) {
      for (const tool of plot.toolbar.tools) {
        if (tool.type === "PanTool" || tool.type === "HoverTool") tool.active = false;
      }
    }
  };

  // The image that was clicked or tapped, below the map.
  const pick = () => {
    const points = named("map");
    const [row] = points.selected.indices;
    if (row === undefined) return;
    points.selected.indices = [];
    const panel = document.getElementById("picked");
    panel.hidden = false;
    const said = (column) => (column in points.data ? points.data[column][row] : "");
    const [truth, verdict, file] = panel.querySelectorAll("b, span, small");
    truth.textContent = said("truth");
    verdict.textContent = said("verdict");
    file.textContent = said("file");
    panel.querySelector("img").src = said("picture");
  };

  const toggle = (pictures) => {
    pictures.visible = !pictures.visible;
    label(pictures);
  };

  const label = (pictures) => {
    const button = document.getElementById("pictures-on-map");
    button.textContent = pictures.visible ? "Show points" : "Show the images themselves";
  };

  const ready = () => {
    if (typeof Bokeh === "undefined" || !named("map")) return setTimeout(ready, 50);
    ink();
    touch();
    dark.addEventListener("change", ink);
    named("map").selected.properties.indices.change.connect(pick);
    const pictures = named("pictures");
    label(pictures);
    document.getElementById("pictures-on-map").addEventListener("click", () => toggle(pictures));
    const select = document.getElementById("classes-on-map");
    if (!select) return;
    select.addEventListener("change", () => show(select.value === "" ? [] : [Number(select.value)]));
    document.getElementById("all-on-map").addEventListener("click", () => show([]));
    for (const button of document.querySelectorAll(".on-map")) {
      button.addEventListener("click", () => {
        show(button.dataset.classes.split(",").map(Number));
        document.getElementById("map").scrollIntoView({ behavior: "smooth" });
      });
    }
  };
  ready();
})();
