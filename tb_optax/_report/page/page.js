"use strict";
document.documentElement.classList.add("scripted");
const table = document.querySelector("#layers table"), body = table.tBodies[0];
const number = (row, column) => {
  const cell = row.cells[column];
  return column === 0 ? Number(row.dataset.place) : cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};
const known = (value) => !Number.isNaN(value);
table.tHead.addEventListener("click", (event) => {
  const head = event.target.closest("th");
  if (!head) return;
  const down = head.getAttribute("aria-sort") === "ascending", column = head.cellIndex;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...body.rows].sort((a, b) => {
    const [left, right] = [number(a, column), number(b, column)];
    if (known(left) !== known(right)) return known(left) ? -1 : 1; // What is missing comes last, either way.
    const order = typeof left === "string" ? left.localeCompare(right, undefined, {numeric: true}) : left - right;
    return down ? -order : order;
  });
  body.append(...rows);
});
document.querySelector("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase();
  for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(words);
});
const dialog = document.querySelector("dialog"), spectrum = dialog.querySelector("figure");
const open = (place) => {
  const kept = document.getElementById("layer-" + place);
  if (!kept) return false;
  const figure = kept.matches("figure") ? kept : kept.querySelector("figure");
  spectrum.replaceChildren(...[...figure.children].map((child) => child.cloneNode(true)));
  dialog.showModal();
  return true;
};
body.addEventListener("click", (event) => {
  if (open(event.target.closest("tr").dataset.place)) event.preventDefault();
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
// A layer's point in the drawing and its row in the table are one thing.
const marks = new Map([...document.querySelectorAll("[data-row]")].map((mark) => [mark.dataset.row, mark]));
for (const mark of marks.values()) mark.addEventListener("click", () => open(mark.dataset.row));
for (const row of body.rows) {
  const mark = marks.get(row.dataset.place);
  row.addEventListener("pointerenter", () => mark && mark.classList.add("told"));
  row.addEventListener("pointerleave", () => mark && mark.classList.remove("told"));
}
// Where a card's content goes on to the right, the card says so.
const cards = [...document.querySelectorAll(".frame > .scroll")];
const more = (inner) => inner.parentElement.classList.toggle("more", inner.scrollWidth - inner.clientWidth - inner.scrollLeft > 1);
const measure = () => cards.forEach(more);
for (const inner of cards) inner.addEventListener("scroll", () => more(inner), {passive: true});
window.addEventListener("resize", measure);
measure();
