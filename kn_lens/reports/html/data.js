"use strict";
// Data and elements. All text from the data is inserted as text: `makeElement` builds elements, nothing is parsed.

const element = (id) => document.getElementById(id);

/** Return a new element. Children that are not elements become text; null children are left out. */
function makeElement(tag, attributes = {}, ...children) {
  const result = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "oninput") {
      result.addEventListener(name.slice(2), value);
    } else if (value === true) {
      result.setAttribute(name, "");
    } else if (value !== false && value != null) {
      result.setAttribute(name, value);
    }
  }
  result.append(...children.filter((child) => child != null));
  return result;
}

/** Return a part of the data, which is stored as JSON, compressed with gzip, in base64. */
async function unpack(name) {
  const packed = JSON.parse(element(`data-${name}`).textContent);
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(packed)
    : Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Return a text escaped for Plotly, which interprets tags. */
function escapeForPlotly(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// --- numbers as text: a dash for a missing value -----------------------------------------------------------

const DASH = "–";

const isMissing = (value) => value === null || value === undefined;

const formatProbability = (value) => (isMissing(value) ? DASH : value.toFixed(3));

const formatPercent = (value) => (isMissing(value) ? DASH : `${(100 * value).toFixed(0)}%`);

const formatCount = (value) => (isMissing(value) ? DASH : value.toLocaleString("en"));

/** Ranks count from 0 in the data and from 1 on the page. */
const formatRank = (rank) => (isMissing(rank) ? DASH : formatCount(rank + 1));

/** Return a number with three significant digits. */
function formatScore(value) {
  if (isMissing(value)) {
    return DASH;
  }
  return Number(value.toPrecision(3)).toString().replace("-", "−");
}

/** Return the name of a neuron; see kn_lens/_core/notation.py. */
function neuronName({ layer, expert, index }) {
  if (isMissing(expert)) {
    return `L${layer}N${index}`;
  }
  return expert < 0 ? `L${layer}SN${index}` : `L${layer}E${expert}N${index}`;
}

/** Return the neuron of a key: [layer, index], or [layer, expert, index]. */
function neuronOfKey(key) {
  const [layer, ...rest] = key;
  return { layer, expert: rest.length === 2 ? rest[0] : null, index: rest[rest.length - 1] };
}

// --- tables ------------------------------------------------------------------------------------------------

/** Return the rows of a table, one object each, from its columns by name. */
function rowsOf(columns) {
  const names = Object.keys(columns);
  const nRows = names.length ? columns[names[0]].length : 0;
  const rows = [];
  for (let number = 0; number < nRows; number += 1) {
    const row = {};
    for (const name of names) {
      row[name] = columns[name][number];
    }
    rows.push(row);
  }
  return rows;
}

/** Return a cell of a CSV file, quoted if it has to be. */
function csvCell(value) {
  const text = isMissing(value) ? "" : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Return rows of texts and numbers as CSV. */
function toCsv(rows) {
  const lines = rows.map((row) => row.map(csvCell).join(","));
  return `${lines.join("\r\n")}\r\n`;
}

/** Let the browser save a text as a CSV file. */
function saveCsv(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  makeElement("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
