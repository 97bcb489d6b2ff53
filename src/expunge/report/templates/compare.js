// Sorts tables by a column and filters runs. Without it the page is the same, in the order in which it was written.
"use strict";
{
  const value = cell => cell.dataset.value ?? cell.textContent.trim();

  // Numbers by size where all are numbers, else text; what is missing stays last, ties keep the page's order.
  const sorted = (rows, column, up) => {
    const keyed = rows.map(row => [value(row.cells[column]), row]);
    const numeric = keyed.every(([key]) => key === "" || Number.isFinite(Number(key)));
    const order = numeric ? (a, b) => Number(a) - Number(b) : (a, b) => a.localeCompare(b, "en");
    keyed.sort(([a], [b]) => (a === "") - (b === "") || (a === "" ? 0 : (up ? order(a, b) : order(b, a))));
    return keyed.map(([, row]) => row);
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        table.tBodies[0].append(...sorted(rows, column, up));
      });
    });
  }

  const filter = document.getElementById("filter");
  const [text, verdict, status] = ["input", "select", "[role=status]"].map(part => filter.querySelector(part));
  const lines = [...document.querySelectorAll(".compare tbody tr")];
  const narrow = () => {
    const sought = text.value.trim().toLowerCase();
    const shown = new Set(lines.filter(line =>
      (!verdict.value || line.dataset.verdict === verdict.value) && line.textContent.toLowerCase().includes(sought)
    ).map(line => line.dataset.run));
    document.querySelectorAll("[data-run]").forEach(part => part.toggleAttribute("hidden", !shown.has(part.dataset.run)));
    status.textContent = `${shown.size} of ${lines.length} runs`;
  };
  text.addEventListener("input", narrow);
  verdict.addEventListener("input", narrow);
  filter.hidden = false;
  narrow();
}
