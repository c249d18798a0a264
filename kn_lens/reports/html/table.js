"use strict";
// Tables: plain ones, and long ones with pages, a search and columns to sort by.

const ROWS_SHOWN = 50;

/**
 * A column: `title`; `cell(row)` its text or element; `value(row)` what is sorted by and written as CSV, its text without;
 * `number` where it holds numbers; `long` where it holds sentences.
 */
function cellOf(column, row) {
  return make("td", { class: column.number ? "number" : column.long ? "long" : "text" }, column.cell(row));
}

const valueOf = (column, row) => (column.value ? column.value(row) : column.cell(row));

/** A table of a few rows. */
function plainTable(caption, columns, rows) {
  const heads = columns.map((column) => make("th", { scope: "col", class: column.number ? "number" : null }, column.title));
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table: ${caption}` },
    make(
      "table",
      {},
      make("caption", { class: "hidden" }, caption),
      make("thead", {}, make("tr", {}, ...heads)),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...columns.map((column) => cellOf(column, row))))),
    ),
  );
}

/** A table of any number of rows, of which a page is in the document at a time. */
class LongTable {
  /** `texts(row)`: what is searched; `names(row)`: words that are found when given in full; `what`: the rows, in the plural. */
  constructor(into, { caption, what, columns, rows, texts, names }) {
    Object.assign(this, { columns, rows, what, page: 0, sorted: null, descending: false, texts, names });
    this.shown = rows;
    this.search = make("input", { type: "search", autocomplete: "off", spellcheck: "false", oninput: () => this.find(this.search.value) });
    const save = make("button", { type: "button", onclick: () => this.save() }, "CSV");
    save.setAttribute("aria-label", `Save the ${what} as CSV`);
    this.heads = columns.map((column, number) =>
      make(
        "th",
        { scope: "col", class: column.number ? "number" : null },
        make("button", { type: "button", onclick: () => this.sort(number) }, column.title),
      ),
    );
    this.body = make("tbody");
    this.status = make("p", { role: "status" });
    this.steps = [["First", () => 0], ["Previous", () => this.page - 1], ["Next", () => this.page + 1], ["Last", () => this.pages() - 1]].map(
      ([name, target]) => make("button", { type: "button", onclick: () => this.turn(target()) }, name),
    );
    into.append(
      make("div", { class: "tools" }, make("label", {}, `Search the ${what}`, this.search), save),
      make(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table: ${caption}` },
        make("table", {}, make("caption", { class: "hidden" }, caption), make("thead", {}, make("tr", {}, ...this.heads)), this.body),
      ),
      make("div", { class: "pages" }, this.status, ...this.steps),
    );
    this.draw();
  }

  pages() {
    return Math.max(1, Math.ceil(this.shown.length / ROWS_SHOWN));
  }

  turn(page) {
    this.page = page;
    this.draw();
  }

  /** Show the rows that have all words, somewhere. */
  find(query) {
    this.search.value = query;
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    this.searched ??= this.rows.map((row) => ({
      text: this.texts(row).join(" ").toLowerCase(),
      names: new Set(this.names(row).map((name) => name.toLowerCase())),
    }));
    this.shown = this.rows.filter((_, number) => {
      const { text, names } = this.searched[number];
      return words.every((word) => names.has(word) || text.includes(word));
    });
    this.order();
  }

  /** Sort by a column; again for the other direction. Numbers begin with the largest. */
  sort(number) {
    this.descending = this.sorted === number ? !this.descending : Boolean(this.columns[number].number);
    this.sorted = number;
    this.order();
  }

  order() {
    if (this.sorted !== null) {
      const column = this.columns[this.sorted];
      const sign = this.descending ? -1 : 1;
      const compare = column.number ? (a, b) => a - b : new Intl.Collator("en", { numeric: true }).compare;
      // Rows without a value come last in both directions.
      this.shown = this.shown
        .map((row) => [valueOf(column, row), row])
        .sort(([a], [b]) => missing(a) - missing(b) || (missing(a) ? 0 : sign * compare(a, b)))
        .map(([, row]) => row);
    }
    this.turn(0);
  }

  draw() {
    const first = this.page * ROWS_SHOWN;
    const rows = this.shown.slice(first, first + ROWS_SHOWN);
    this.body.replaceChildren(...rows.map((row) => make("tr", {}, ...this.columns.map((column) => cellOf(column, row)))));
    const all = this.shown.length === this.rows.length ? "" : ` found among ${whole(this.rows.length)}`;
    this.status.textContent = rows.length
      ? `${whole(first + 1)} to ${whole(first + rows.length)} of ${whole(this.shown.length)} ${this.what}${all}`
      : `None of the ${whole(this.rows.length)} ${this.what} has these words.`;
    this.heads.forEach((head, number) => {
      if (number === this.sorted) head.setAttribute("aria-sort", this.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const [start, back, on, end] = this.steps;
    start.disabled = back.disabled = this.page === 0;
    on.disabled = end.disabled = this.page === this.pages() - 1;
  }

  save() {
    const rows = this.shown.map((row) => this.columns.map((column) => valueOf(column, row)));
    download(`${this.what}.csv`, asCsv([this.columns.map((column) => column.title), ...rows]));
  }
}
