"use strict";
// Figures: drawn when they come into view, in the colours of the theme.

/** The figures, without the colours of a theme, by the element in which they are drawn. */
const figureOf = new Map();

/** Return the value of a colour of the theme, such as "text", as the browser computes it. */
function themeColor(name) {
  const probe = document.body.appendChild(makeElement("span", { hidden: true }));
  probe.style.color = `var(--${name})`;
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

/** Return the traces and the layout of a figure in the colours of the theme. */
function applyTheme(figure) {
  const background = themeColor("back");
  const text = themeColor("text");
  const line = themeColor("line");
  const grid = themeColor("grid");
  const family = getComputedStyle(document.documentElement).getPropertyValue("--font");

  const layout = { ...figure.layout, paper_bgcolor: background, plot_bgcolor: background, title: undefined };
  layout.font = { ...layout.font, color: text, family };
  layout.margin = { ...layout.margin, t: layout.annotations ? 30 : 10 };
  layout.hoverlabel = { ...layout.hoverlabel, bgcolor: background, bordercolor: line, font: { color: text } };
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis/.test(name)) {
      layout[name] = { ...layout[name], gridcolor: grid, linecolor: line, fixedrange: true };
    }
  }
  const data = figure.data.map((trace) => {
    if (trace.type === "heatmap" && isDark()) {
      return { ...trace, colorscale: figure.layout.meta.dark };
    }
    return trace;
  });
  return { data, layout };
}

/** Draw a figure in its container, as wide as the container or with a width in pixels. */
function drawFigure(container, width) {
  const { data, layout } = applyTheme(figureOf.get(container));
  layout.width = width;
  const config = {
    responsive: true,
    displaylogo: false,
    modeBarButtons: [["toImage"]],
    toImageButtonOptions: { format: "svg", filename: container.dataset.figure },
  };
  Plotly.react(container, data, layout, config);
}

function drawVisibleFigures(entries) {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      viewObserver.unobserve(entry.target);
      drawFigure(entry.target);
    }
  }
}

const viewObserver = new IntersectionObserver(drawVisibleFigures, { rootMargin: "300px" });

/** Draw a figure in a container as soon as the container is about to be seen. */
function addFigure(container, figure) {
  figureOf.set(container, figure);
  container.style.minHeight = `${figure.layout.height}px`;
  viewObserver.observe(container);
}

/** Draw the figures that are drawn already again, in the colours of another theme. */
function redrawFigures() {
  for (const container of figureOf.keys()) {
    if (!container.isConnected) {
      figureOf.delete(container);
    } else if (container.classList.contains("js-plotly-plot")) {
      drawFigure(container);
    }
  }
}

/** Draw all figures, also those that were never in view, as wide as their containers or with a width in pixels. */
function drawAllFigures(width) {
  for (const container of figureOf.keys()) {
    Plotly.purge(container); // a figure that exists keeps its width
    drawFigure(container, width);
  }
}

/** Return a copy of the figure `pattern` with named rows and, for each of its traces, the given values. */
function figureWithRows(pattern, names, traces) {
  const heights = rowHeights(names.length);
  const { base, row } = pattern.layout.meta;
  const layout = { ...pattern.layout, height: base + row * Math.max(names.length, 2) };
  layout.yaxis = { ...layout.yaxis, tickvals: heights, ticktext: names, range: [0.4, names.length + 0.6] };
  const data = pattern.data.map((trace, number) => ({ ...trace, y: heights, ...traces[number] }));
  return { data, layout };
}

/** Return the positions of rows on the vertical axis, the first row at the top. */
function rowHeights(nRows) {
  return Array.from({ length: nRows }, (_, number) => nRows - number);
}
