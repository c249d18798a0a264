"use strict";
// Figures: drawn when they come into sight, in the colours of the theme.

const plots = new Map(); // by element: the figure as it was made

function themed(figure) {
  const style = getComputedStyle(document.documentElement);
  const probe = document.body.appendChild(make("span", { hidden: true }));
  const color = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const [back, text, grid, line] = ["back", "text", "grid", "line"].map(color);
  probe.remove();
  const dark = isDark();
  const layout = { ...figure.layout, paper_bgcolor: back, plot_bgcolor: back, title: undefined };
  layout.font = { ...layout.font, color: text, family: style.getPropertyValue("--font") };
  layout.margin = { ...layout.margin, t: layout.annotations ? 30 : 10 };
  layout.hoverlabel = { ...layout.hoverlabel, bgcolor: back, bordercolor: line, font: { color: text } };
  for (const name of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
    layout[name] = { ...layout[name], gridcolor: grid, linecolor: line, fixedrange: true };
  }
  const data = figure.data.map((trace) => (trace.type === "heatmap" && dark ? { ...trace, colorscale: figure.layout.meta.dark } : trace));
  return { data, layout };
}

function drawPlot(into) {
  const { data, layout } = themed(plots.get(into));
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: into.dataset.figure },
  };
  Plotly.react(into, data, layout, config);
}

const inSight = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      inSight.unobserve(target);
      drawPlot(target);
    }
  },
  { rootMargin: "300px" },
);

/** Draw a figure in an element, as soon as that comes near. */
function plot(into, figure) {
  plots.set(into, figure);
  into.style.minHeight = `${figure.layout.height}px`;
  inSight.observe(into);
}

/** Draw all figures anew, in other colours. */
function drawAgain() {
  for (const into of plots.keys()) {
    if (!into.isConnected) plots.delete(into);
    else if (into.classList.contains("js-plotly-plot")) drawPlot(into);
  }
}

/** Draw the figures that nobody has come near yet. */
function drawAll() {
  for (const into of plots.keys()) drawPlot(into);
}

/** A figure of rows like `pattern`, with other values in its traces and other names of its rows. */
function withRows(pattern, names, traces) {
  const height = names.map((_, row) => names.length - row);
  const { base, row } = pattern.layout.meta;
  const layout = { ...pattern.layout, height: base + row * Math.max(names.length, 2) };
  layout.yaxis = { ...layout.yaxis, tickvals: height, ticktext: names, range: [0.4, names.length + 0.6] };
  return { data: pattern.data.map((trace, number) => ({ ...trace, y: height, ...traces[number] })), layout };
}
