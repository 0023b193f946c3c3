"use strict";
for (const head of document.querySelectorAll("table.sortable th button")) {
  head.addEventListener("click", () => {
    const cell = head.parentElement, body = cell.closest("table").tBodies[0];
    const up = cell.getAttribute("aria-sort") === "descending" ? 1
      : cell.getAttribute("aria-sort") === "ascending" ? -1 : cell.classList.contains("number") ? -1 : 1;
    for (const other of cell.parentElement.cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
    const key = (row) => {
      const found = row.cells[cell.cellIndex], value = found.dataset.value;
      return value === undefined ? found.textContent.trim() : Number(value);
    };
    const compare = (a, b) => {
      if (typeof a === "number" && typeof b === "number") {
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return up * (a - b);
      }
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      return up * a.localeCompare(b, undefined, { numeric: true });
    };
    body.append(...[...body.rows].map((row) => [key(row), row])
      .sort((a, b) => compare(a[0], b[0])).map((pair) => pair[1]));
  });
}
for (const field of document.querySelectorAll("input.filter")) {
  field.hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of field.parentElement.querySelector("table").tBodies[0].rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
for (const choice of document.querySelectorAll("select.views")) {
  const views = choice.closest(".sweep").querySelectorAll(".view");
  const show = () => views.forEach((view, at) => { view.hidden = at !== choice.selectedIndex; });
  choice.closest("p").hidden = false;
  choice.addEventListener("change", show);
  show();
}
for (const picture of document.querySelectorAll("figure img"))
  picture.addEventListener("click", () => picture.classList.toggle("full"));
