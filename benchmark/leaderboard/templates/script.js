"use strict";

// Light or dark: the reader's choice, saved if the browser lets a page save it.
const root = document.documentElement;
const toggle = document.getElementById("theme");
const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
const label = () => { toggle.textContent = dark() ? "Light colours" : "Dark colours"; };
try {
  const kept = localStorage.getItem("theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
} catch { /* no storage: use the system's choice */ }
toggle.hidden = false;
label();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
toggle.addEventListener("click", () => {
  root.dataset.theme = dark() ? "light" : "dark";
  label();
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* as above */ }
});

// Sort by each cell's data-value; cells without one come last in both directions.
const order = (a, b, way) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  const numbers = [Number(a), Number(b)];
  return way * (numbers.some(Number.isNaN) ? a.localeCompare(b) : numbers[0] - numbers[1]);
};
const sort = (table, column, way) => {
  const value = (row) => row.cells[column].dataset.value ?? "";
  for (const body of table.tBodies) {  // a body is a level: its rows stay together, below its title
    const rows = [...body.rows].filter((row) => !row.classList.contains("level"));
    body.append(...rows.sort((a, b) => order(value(a), value(b), way)));
  }
};
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const way = head.ariaSort === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      sort(table, column, way);
    });
  });
}

// Filter: a form shows the matching rows of the table that it names, and their marks in the figure.
const marks = new Map([...document.querySelectorAll("svg [data-row]")].map((mark) => [mark.dataset.row, mark]));
const apply = (form) => {
  const table = document.getElementById(form.dataset.filters);
  const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const knows = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const defense = form.elements.defense?.value ?? "";
  let shown = 0;
  const rows = [...table.querySelectorAll("tbody tr:not(.level)")];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = words.every((word) => text.includes(word))
      && (boxes.length === 0 || knows.has(row.dataset.knows))
      && (defense === "" || row.dataset.defense === defense);
    row.hidden = !fits;
    shown += fits;
    marks.get(row.id)?.toggleAttribute("hidden", !fits);
  }
  for (const body of table.tBodies) body.hidden = rows.every((row) => row.parentElement !== body || row.hidden);
  form.querySelector("output").textContent = `${shown} of ${rows.length} shown`;
  table.parentElement.querySelector(".empty").hidden = shown > 0;
};
const forms = [...document.querySelectorAll("form[data-filters]")];
for (const form of forms) {
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => apply(form));
  form.addEventListener("reset", () => setTimeout(() => apply(form)));
  apply(form);
}

// A link to the cells of a defense shows only these.
const follow = () => {
  const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const form = forms.find((one) => one.elements.defense);
  if (!form || !row?.dataset.defense || row.closest("table").id !== form.dataset.filters) return;
  form.elements.words.value = "";
  form.elements.defense.value = row.dataset.defense;
  apply(form);
  document.getElementById("cells-title").focus();
};
addEventListener("hashchange", follow);
follow();
