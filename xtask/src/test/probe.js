"use strict";
// What a page of the report has to be in a browser. The verdict goes into the document, which the
// browser prints. DARK, WIDTH and SECTIONS are set before this.
{
  const bad = [];
  const check = (holds, what) => {
    if (!holds && bad.length < 10) bad.push(what);
  };
  const root = document.documentElement;
  check(matchMedia("(prefers-color-scheme: dark)").matches === DARK, "another colour scheme");
  check(innerWidth === WIDTH, `the window is ${innerWidth} wide`);
  check(root.scrollWidth <= innerWidth, `the page is ${root.scrollWidth} wide`);
  check(window.failures.length === 0, `script failed: ${window.failures}`);
  check(performance.getEntriesByType("resource").length === 0, "something was fetched");
  check((document.querySelector("h1")?.textContent ?? "") !== "", "no title");
  SECTIONS.forEach((id) => check(document.querySelector(`section#${id} > h2`), `there is no section ${id}`));
  document.querySelectorAll("section").forEach((s) => check(s.offsetHeight > 20, `${s.id} is not seen`));

  // Contrast of text with what is behind it (WCAG 2.1, 1.4.3).
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (text) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = text;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => {
    const part = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const seen = new Set();
  document.querySelectorAll("h1, h2, h3, p, li, b, span, th, td, code, pre, caption, figcaption").forEach((e) => {
    const kind = `${e.tagName} ${e.className} in ${e.parentElement.className}`;
    if (seen.has(kind) || e.textContent.trim() === "") return;
    seen.add(kind);
    const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    check(ratio >= 4.5, `contrast ${ratio.toFixed(1)} of ${kind}`);
  });

  // What can be pressed or scrolled is reached by the keyboard, and has a name.
  document.querySelectorAll("button, pre, [role=img]").forEach((e) => {
    const isPicture = e.getAttribute("role") === "img";
    check(isPicture || e.tabIndex === 0, `the keyboard does not reach a ${e.tagName}`);
    const name = e.getAttribute("aria-label") ?? e.textContent;
    check(name.trim() !== "", `a ${e.tagName} has no name`);
  });

  // Every column sorts, both ways.
  document.querySelectorAll("table").forEach((table) => {
    table.querySelectorAll("th").forEach((head, column) => {
      if (!head.classList.contains("n")) return;
      const values = () => Array.from(table.tBodies[0].rows, (row) => Number(row.cells[column].dataset.v));
      const before = values().length;
      for (const order of [(a, b) => a >= b, (a, b) => a <= b]) {
        head.querySelector("button").click();
        const now = values();
        const sorted = now.length === before && now.every((v, n) => n === 0 || order(now[n - 1], v));
        check(sorted, `${table.caption.textContent}: column ${column} does not sort`);
      }
    });
  });
  // A narrow page is in a frame of the document that is printed.
  parent.document.documentElement.dataset.verdict = bad.length === 0 ? "good" : bad.join("; ");
}
