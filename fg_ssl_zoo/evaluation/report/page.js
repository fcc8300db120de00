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
          axis.axis_label_text_color = colour;
        }
      }
    }
  };

  const source = () => {
    for (const document_ of Bokeh.documents) {
      const found = document_.get_model_by_name("map");
      if (found) return found;
    }
  };

  // Classes that stay bright on the map; an empty list is all of them.
  const show = (classes) => {
    const points = source();
    if (!points || !points.data.label) return;
    const chosen = new Set(classes);
    points.data.alpha = Array.from(points.data.label, (label) =>
      chosen.size === 0 ? 0.85 : chosen.has(label) ? 1 : 0.07);
    points.change.emit();
    const select = document.getElementById("classes-on-map");
    if (select) select.value = classes.length === 1 ? String(classes[0]) : "";
  };

  const ready = () => {
    if (typeof Bokeh === "undefined" || !source()) return setTimeout(ready, 50);
    ink();
    dark.addEventListener("change", ink);
    const select = document.getElementById("classes-on-map");
    if (select) {
      select.addEventListener("change", () => show(select.value === "" ? [] : [Number(select.value)]));
    }
    for (const button of document.querySelectorAll(".on-map")) {
      button.addEventListener("click", () => {
        show(button.dataset.classes.split(",").map(Number));
        document.getElementById("map").scrollIntoView({ behavior: "smooth" });
      });
    }
  };
  ready();
})();
