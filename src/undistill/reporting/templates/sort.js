"use strict";
// A click on a heading sorts the table by that column; another one turns it around. Without scripts the order is as written.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const key = (cell) => {
    const text = cell.textContent.trim().replaceAll("\u2212", "-").replaceAll(",", "");
    const number = Number.parseFloat(text);
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
  table.querySelectorAll("thead th").forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      table.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => down * order(key(a.cells[column]), key(b.cells[column])));
      body.append(...rows);
    });
  });
}
