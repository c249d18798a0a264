"use strict";
// The page as a whole: theme, addresses within the page, printing, start.

const darkPreference = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const reportTitle = document.title;
/** The facts of the report; null for a report without facts, and until they are unpacked. */
let facts = null;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : darkPreference.matches;
}

function updateThemeButton() {
  const otherTheme = isDark() ? "Light" : "Dark";
  element("theme").textContent = otherTheme;
  element("theme").setAttribute("aria-label", `${otherTheme} theme`);
}

function setTheme(theme) {
  root.dataset.theme = theme;
  updateThemeButton();
  redrawFigures();
}

function showMessage(text) {
  element("message").textContent = text;
  element("message").hidden = false;
}

/** Return the kind and the value of the page's address: "#fact=KEY", "#search=WORDS" or "#SECTION". */
function readAddress() {
  const [kind, ...rest] = location.hash.slice(1).split("=");
  const value = rest.join("=");
  try {
    return { kind, value: decodeURIComponent(value) };
  } catch {
    return { kind, value }; // not encoded by this page
  }
}

/** Show what the address names: a fact's page, facts found by a search, or a section. */
async function showAddress() {
  const { kind, value } = readAddress();
  element("message").hidden = true;
  if (kind === "fact" && facts?.numberOf.has(value)) {
    await showFact(facts.numberOf.get(value));
    return;
  }
  const wasHidden = element("overview").hidden;
  showOverview();
  if (kind === "fact") {
    showMessage(`There is no fact ${value} in this report.`);
  }
  if (kind === "search" && facts) {
    showSearch(value);
  } else if (wasHidden) {
    element(kind)?.scrollIntoView({ behavior: "instant" });
  }
}

async function showFact(number) {
  const address = location.hash;
  const children = await facts.page(number);
  if (location.hash !== address) {
    return; // the reader has gone elsewhere in the meantime
  }
  element("page").replaceChildren(...children);
  element("overview").hidden = true;
  element("page").hidden = false;
  document.title = element("page-title").textContent;
  scrollTo({ top: 0, behavior: "instant" });
  element("page-title").focus({ preventScroll: true });
}

function showOverview() {
  element("overview").hidden = false;
  element("page").hidden = true;
  element("page").replaceChildren();
  document.title = reportTitle;
}

/** Go from a fact's page to the table of facts, and to the fact in it, where the table shows it. */
function leaveFact() {
  const address = location.hash;
  const fact = facts.rows[facts.numberOf.get(readAddress().value)];
  location.hash = "#facts";
  showOverview();
  element("facts").scrollIntoView({ behavior: "instant" });
  facts.factTable.showRow(fact);
  const links = [...document.querySelectorAll("#facts-table tbody a")];
  const ownLink = links.find((link) => link.hash === address);
  (ownLink ?? facts.factTable.searchInput).focus();
}

function handleKey(event) {
  const isFactShown = !element("page").hidden;
  if (event.key === "Escape" && isFactShown && !event.defaultPrevented) {
    leaveFact();
  }
}

function showSearch(query) {
  const isNeuron = /^L\d+N\d+$/.test(query);
  facts.factTable.find(query);
  facts.neuronTable.find(isNeuron ? query : "");
  element("facts").scrollIntoView({ behavior: "instant" });
  facts.factTable.searchInput.focus({ preventScroll: true });
}

/** Width in pixels of figures on paper, which the style sheet reduces to half a page. */
const PRINTED_WIDTH = 480;
/** The theme that the reader chose, while the page is printed in the light one. */
let chosenTheme;

/** Draw all figures for white paper, and show fewer rows of long tables. Closed tables stay closed. */
function prepareForPrint() {
  chosenTheme = root.dataset.theme;
  root.dataset.theme = "light";
  setPrinting(true);
  drawAllFigures(PRINTED_WIDTH);
}

function restoreAfterPrint() {
  if (chosenTheme === undefined) {
    delete root.dataset.theme;
  } else {
    root.dataset.theme = chosenTheme;
  }
  setPrinting(false);
  drawAllFigures();
}

function setPrinting(value) {
  isPrinting = value;
  facts?.factTable.draw();
  facts?.neuronTable.draw();
}

/** Name the cells of the tables in an element, which phones show as blocks. */
function nameCellsIn(parent) {
  for (const table of parent.querySelectorAll("table.stack")) {
    nameCells(table);
  }
}

async function start() {
  root.classList.add("script");
  updateThemeButton();
  element("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  darkPreference.addEventListener("change", () => {
    updateThemeButton();
    redrawFigures();
  });
  if (typeof DecompressionStream === "undefined") {
    showMessage("Figures, facts and neurons need a browser of 2024 or later.");
    return;
  }
  const core = await unpack("core");
  for (const container of document.querySelectorAll("[data-figure]")) {
    addFigure(container, core.figures[container.dataset.figure]);
  }
  if (core.facts) {
    facts = new Facts(core);
  }
  addEventListener("hashchange", showAddress);
  addEventListener("beforeprint", prepareForPrint);
  addEventListener("afterprint", restoreAfterPrint);
  document.addEventListener("toggle", (event) => nameCellsIn(event.target), { capture: true });
  for (const group of document.querySelectorAll(".open-tables, details[open]")) {
    nameCellsIn(group);
  }
  addEventListener("keydown", handleKey);
  await showAddress();
  root.dataset.ready = "";
}

start().catch((error) => {
  showMessage(`The page could not be displayed: ${error.message}`);
  throw error;
});
