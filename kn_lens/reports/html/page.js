"use strict";
// Theme, addresses within the page, printing, and the start.

const darkPreferred = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
let facts = null;

const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : darkPreferred.matches);

function nameTheme() {
  element("theme").textContent = isDark() ? "Light" : "Dark";
  element("theme").setAttribute("aria-label", isDark() ? "Light theme" : "Dark theme");
}

function setTheme(theme) {
  root.dataset.theme = theme;
  nameTheme();
  drawAgain();
}

function showTrouble(text) {
  element("trouble").textContent = text;
  element("trouble").hidden = false;
}

/** Show what the address says: a fact's page, facts found by a search, or a section. */
async function show() {
  const [kind, ...rest] = location.hash.slice(1).split("=");
  let value = rest.join("=");
  try {
    value = decodeURIComponent(value);
  } catch {
    // Not an address of ours: taken as it is.
  }
  const number = kind === "fact" && facts ? facts.places.get(value) : undefined;
  element("trouble").hidden = true;
  if (number !== undefined) {
    const address = location.hash;
    const children = await facts.page(number);
    if (location.hash !== address) return; // another was requested meanwhile
    element("page").replaceChildren(...children);
    element("overview").hidden = true;
    element("page").hidden = false;
    document.title = element("page-title").textContent;
    scrollTo({ top: 0, behavior: "instant" });
    element("page-title").focus({ preventScroll: true });
    return;
  }
  const wasHidden = element("overview").hidden;
  element("overview").hidden = false;
  element("page").hidden = true;
  element("page").replaceChildren();
  document.title = title;
  if (kind === "fact") showTrouble(`There is no fact ${value} in this report.`);
  if (kind === "search" && facts) {
    facts.table.find(value);
    facts.neurons.find(/^L\d+N\d+$/.test(value) ? value : "");
    element("facts").scrollIntoView({ behavior: "instant" });
    facts.table.search.focus({ preventScroll: true });
  } else if (wasHidden) {
    element(kind)?.scrollIntoView({ behavior: "instant" });
  }
}

const title = document.title;

async function start() {
  root.classList.add("script");
  nameTheme();
  element("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  darkPreferred.addEventListener("change", () => { nameTheme(); drawAgain(); });
  if (typeof DecompressionStream === "undefined") {
    showTrouble("This browser is too old for the figures, facts and neurons of this page; any browser of 2024 or later shows them.");
    return;
  }
  const core = await unpack("core");
  for (const into of document.querySelectorAll("[data-figure]")) plot(into, core.figures[into.dataset.figure]);
  if (core.facts) facts = new Facts(core);
  addEventListener("hashchange", show);
  addEventListener("beforeprint", () => {
    drawAll();
    for (const one of document.querySelectorAll("details")) one.open = true;
  });
  await show();
  root.dataset.ready = "";
}

start().catch((error) => {
  showTrouble(`This page could not be put together: ${error.message}`);
  throw error;
});
