"use strict";
// Tables: plain ones, and long ones with pages, a search and sorting.
//
// A column is an object with
//   title       the text of its header
//   cell(row)   the content of a cell: a text or an element
//   value(row)  what is sorted and saved as CSV; the cell's text by default
//   isNumber    whether it contains numbers
//   isLong      whether it contains long texts

const ROWS_PER_PAGE = 50;
/** The same on a phone, where each row takes several lines. */
const ROWS_PER_NARROW_PAGE = 10;
/** Number of rows on paper: what fits on two pages. */
const PRINTED_ROWS = 30;
/** Tables of more columns are stacked on a phone: each row becomes a block of named values. */
const MOST_COLUMNS_ABREAST = 3;

const narrowScreen = matchMedia("(max-width: 40rem)");
/** Whether the page is being printed. */
let isPrinting = false;

function cellClass(column) {
  if (column.isNumber) {
    return "number";
  }
  return column.isLong ? "long" : "text";
}

function cellValue(column, row) {
  return column.value ? column.value(row) : column.cell(row);
}

function headerCell(column, content) {
  const attributes = { scope: "col", role: "columnheader", class: column.isNumber ? "number" : null };
  return makeElement("th", attributes, content);
}

function bodyRow(columns, row) {
  const cells = columns.map((column) => {
    const attributes = { role: "cell", class: cellClass(column), "data-title": column.title };
    return makeElement("td", attributes, column.cell(row));
  });
  return makeElement("tr", { role: "row" }, ...cells);
}

/** Name the cells of a table of the document, and keep the roles of its parts when a phone stacks them. */
function nameCells(table) {
  const titles = [...table.querySelectorAll("thead th")].map((header) => header.textContent);
  table.setAttribute("role", "table");
  const roles = { thead: "rowgroup", tbody: "rowgroup", tr: "row", th: "columnheader", td: "cell" };
  for (const [tag, role] of Object.entries(roles)) {
    for (const part of table.querySelectorAll(tag)) {
      part.setAttribute("role", role);
    }
  }
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, number) => {
      cell.dataset.title = titles[number];
    });
  }
}

/** Return a table in a region that can be scrolled sideways. */
function scrollingTable(caption, headerCells, body) {
  const table = makeElement(
    "table",
    { role: "table", class: headerCells.length > MOST_COLUMNS_ABREAST ? "stack" : null },
    makeElement("caption", { class: "hidden" }, caption),
    makeElement("thead", { role: "rowgroup" }, makeElement("tr", { role: "row" }, ...headerCells)),
    body,
  );
  const attributes = { class: "scroll", tabindex: 0, role: "region", "aria-label": `Table: ${caption}` };
  return makeElement("div", attributes, table);
}

/** Return a table of a few rows. */
function plainTable(caption, columns, rows) {
  const headerCells = columns.map((column) => headerCell(column, column.title));
  const bodyRows = rows.map((row) => bodyRow(columns, row));
  return scrollingTable(caption, headerCells, makeElement("tbody", { role: "rowgroup" }, ...bodyRows));
}

/** A table of any number of rows, of which one page is in the document at a time. */
class LongTable {
  /**
   * Add a table to a container.
   *   caption     the caption of the table
   *   rowsName    what the rows are, in the plural
   *   texts(row)  texts that a search looks into
   *   names(row)  words that a search must match completely
   */
  constructor(container, { caption, rowsName, columns, rows, texts, names }) {
    this.columns = columns;
    this.rows = rows;
    this.rowsName = rowsName;
    this.texts = texts;
    this.names = names;
    this.shownRows = rows;
    this.pageNumber = 0;
    this.sortedColumn = null;
    this.isDescending = false;
    this.searchIndex = null;
    this.rowsPerPage = narrowScreen.matches ? ROWS_PER_NARROW_PAGE : ROWS_PER_PAGE;

    this.searchInput = makeElement("input", {
      type: "search",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => this.find(this.searchInput.value),
    });
    const saveButton = makeElement(
      "button",
      { type: "button", "aria-label": `Save the ${rowsName} as CSV`, onclick: () => this.save() },
      "CSV",
    );
    this.headerCells = columns.map((column) => {
      const sortButton = makeElement("button", { type: "button", onclick: () => this.sort(column) }, column.title);
      return headerCell(column, sortButton);
    });
    this.body = makeElement("tbody", { role: "rowgroup" });
    this.status = makeElement("p", { role: "status" });
    this.firstButton = this.pageButton("First", () => 0);
    this.previousButton = this.pageButton("Previous", () => this.pageNumber - 1);
    this.nextButton = this.pageButton("Next", () => this.pageNumber + 1);
    this.lastButton = this.pageButton("Last", () => this.lastPage());

    const searchLabel = makeElement("label", {}, `Search the ${rowsName}`, this.searchInput);
    const pageButtons = [this.firstButton, this.previousButton, this.nextButton, this.lastButton];
    container.append(
      makeElement("div", { class: "tools" }, searchLabel, saveButton),
      makeElement("div", { class: "sortable" }, scrollingTable(caption, this.headerCells, this.body)),
      makeElement("div", { class: "pages" }, this.status, ...pageButtons),
    );
    this.draw();
  }

  pageButton(label, target) {
    return makeElement("button", { type: "button", onclick: () => this.showPage(target()) }, label);
  }

  lastPage() {
    return Math.max(0, Math.ceil(this.shownRows.length / this.rowsPerPage) - 1);
  }

  showPage(number) {
    this.pageNumber = number;
    this.draw();
  }

  /** Show the page with a row, if the search found it. */
  showRow(row) {
    const number = this.shownRows.indexOf(row);
    if (number >= 0) {
      this.showPage(Math.floor(number / this.rowsPerPage));
    }
  }

  /** Show the rows that contain all words of a query. */
  find(query) {
    this.searchInput.value = query;
    this.searchIndex ??= this.rows.map((row) => ({
      text: this.texts(row).join(" ").toLowerCase(),
      names: new Set(this.names(row).map((name) => name.toLowerCase())),
    }));
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    this.shownRows = this.rows.filter((_, number) => {
      const { text, names } = this.searchIndex[number];
      return words.every((word) => names.has(word) || text.includes(word));
    });
    this.applyOrder();
  }

  /** Sort by a column, numbers from the largest; if the table is sorted by it already, reverse the order. */
  sort(column) {
    this.isDescending = this.sortedColumn === column ? !this.isDescending : Boolean(column.isNumber);
    this.sortedColumn = column;
    this.applyOrder();
  }

  applyOrder() {
    const column = this.sortedColumn;
    if (column !== null) {
      const collator = new Intl.Collator("en", { numeric: true });
      const compareValues = column.isNumber ? (first, second) => first - second : collator.compare;
      const sign = this.isDescending ? -1 : 1;
      const compareEntries = (first, second) => {
        if (isMissing(first.value) || isMissing(second.value)) {
          // Rows without a value come last in both directions.
          return isMissing(first.value) - isMissing(second.value);
        }
        return sign * compareValues(first.value, second.value);
      };
      const entries = this.shownRows.map((row) => ({ row, value: cellValue(column, row) }));
      entries.sort(compareEntries);
      this.shownRows = entries.map((entry) => entry.row);
    }
    this.showPage(0);
  }

  draw() {
    const start = this.pageNumber * this.rowsPerPage;
    const nRows = isPrinting ? PRINTED_ROWS : this.rowsPerPage;
    const rows = this.shownRows.slice(start, start + nRows);
    this.body.replaceChildren(...rows.map((row) => bodyRow(this.columns, row)));
    this.status.textContent = this.statusText(start, rows.length);
    this.columns.forEach((column, number) => {
      const header = this.headerCells[number];
      if (column === this.sortedColumn) {
        header.setAttribute("aria-sort", this.isDescending ? "descending" : "ascending");
      } else {
        header.removeAttribute("aria-sort");
      }
    });
    const isFirst = this.pageNumber === 0;
    const isLast = this.pageNumber === this.lastPage();
    this.firstButton.disabled = isFirst;
    this.previousButton.disabled = isFirst;
    this.nextButton.disabled = isLast;
    this.lastButton.disabled = isLast;
  }

  statusText(start, nRows) {
    const nAll = formatCount(this.rows.length);
    if (!nRows) {
      return `None of the ${nAll} ${this.rowsName} contains these words.`;
    }
    const range = `${formatCount(start + 1)} to ${formatCount(start + nRows)}`;
    const text = `${range} of ${formatCount(this.shownRows.length)} ${this.rowsName}`;
    return this.shownRows.length === this.rows.length ? text : `${text} found among ${nAll}`;
  }

  /** Save the rows that the search found, in their order, as CSV. */
  save() {
    const titles = this.columns.map((column) => column.title);
    const rows = this.shownRows.map((row) => this.columns.map((column) => cellValue(column, row)));
    saveCsv(`${this.rowsName}.csv`, toCsv([titles, ...rows]));
  }
}
