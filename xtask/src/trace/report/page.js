"use strict";
// Sorting: a click on a column's head sorts by it, another click turns the order round.
document.querySelectorAll("table").forEach((table) => {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const down = before === null ? numeric : before === "ascending";
      table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return numeric ? Number(cell.dataset.v) : cell.textContent;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        return numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
      };
      const rows = Array.from(body.rows).sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
});
