"use strict";
// Data and elements. Whatever comes from the data becomes text: elements are made by `make`, never parsed.

const element = (id) => document.getElementById(id);

/** Make an element with attributes and children; children that are no elements become text. */
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "oninput") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

/** Unpack a part of the data: JSON, compressed with gzip, written in base64. */
async function unpack(name) {
  const packed = JSON.parse(element(`data-${name}`).textContent);
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(packed)
    : Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Text as Plotly shows it, which reads tags in it otherwise. */
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const missing = (value) => value === null || value === undefined;
const probability = (value) => (missing(value) ? "–" : value.toFixed(3));
const percent = (value) => (missing(value) ? "–" : `${(100 * value).toFixed(0)}%`);
const digits = (value) => (missing(value) ? "–" : Number(value.toPrecision(3)).toString().replace("-", "−"));
const whole = (value) => (missing(value) ? "–" : value.toLocaleString("en"));
const place = (rank) => (missing(rank) ? "–" : whole(rank + 1));
const neuronName = ([layer, index]) => `L${layer}N${index}`;

/** The rows of columns as one object each. */
function rowsOf(columns) {
  const names = Object.keys(columns);
  return (columns[names[0]] ?? []).map((_, row) => Object.fromEntries(names.map((name) => [name, columns[name][row]])));
}

/** Offer text as a file. */
function download(name, text) {
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Rows of texts and numbers as CSV. */
function asCsv(rows) {
  const cell = (value) => {
    const text = missing(value) ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
