// Hoverable head maps, and tables that sort, filter and can be saved as CSV. Everything is read from the page's own folder; without scripts the maps are
// pictures and the tables stay as they are.
(() => {
  const folder = document.currentScript.src.replace(/book\.js.*$/, "");
  const text = () => getComputedStyle(document.documentElement).getPropertyValue("--pst-color-text-base") || "#333";

  function load(name) {
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      Object.assign(script, { src: folder + name, onload: done, onerror: failed });
      document.head.append(script);
    });
  }

  const MAPS = { "attention mass": "induction score (attention mass)", "FV score": "FV score" }; // column, title

  function heads(table) { // the rows of the table of all heads, by the names of its columns
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    return [...table.tBodies[0].rows].map((row) => Object.fromEntries(
      names.map((name, i) => [name, row.cells[i].textContent.trim()])));
  }

  function told(head) {
    return `L${head.layer}H${head.head}<br>attention mass ${head["attention mass"]} (rank ${head["rank by attention mass"]})`
      + `<br>prefix matching ${head["prefix matching"]}<br>FV score ${head["FV score"]} (rank ${head["rank by FV score"]})`;
  }

  function panel(heads, name, place) {
    const column = (name) => heads.map((head) => Number(head[name]));
    const signed = name === "FV score", largest = Math.max(...column(name).map(Math.abs));
    const scale = signed ? [[0, "#5E3C99"], [0.5, "#F4F4F4"], [1, "#D55E00"]] : [[0, "#F4F4F4"], [1, "#0072B2"]];
    return {
      type: "heatmap", x: column("head"), y: column("layer"), z: column(name), text: heads.map(told),
      hoverinfo: "text", xgap: 1, ygap: 1, xaxis: "x" + place, yaxis: "y" + place, colorscale: scale,
      zmin: signed ? -largest : 0, zmax: largest,
      colorbar: { thickness: 10, len: 0.8, x: place === "" ? 0.43 : 1 },
    };
  }

  function draw(box) {
    const rows = heads(box.nextElementSibling.querySelector("table"));
    const target = document.createElement("div");
    target.className = "map";
    target.setAttribute("role", "img");
    target.setAttribute("aria-label", box.querySelector("img").alt);
    const layout = {
      height: 360, margin: { l: 40, r: 10, t: 40, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text() }, grid: { rows: 1, columns: 2, pattern: "independent", xgap: 0.25 },
      annotations: Object.values(MAPS).map((text, i) => ({
        text, x: i ? 0.78 : 0.21, y: 1.1, xref: "paper", yref: "paper", showarrow: false,
      })),
    };
    for (const end of ["", "2"]) {
      layout["xaxis" + end] = { title: { text: "head" }, dtick: 1, fixedrange: true };
      layout["yaxis" + end] = { title: { text: end ? "" : "layer" }, dtick: 1, fixedrange: true };
    }
    box.querySelector("img").replaceWith(target);
    Plotly.newPlot(target, Object.keys(MAPS).map((name, i) => panel(rows, name, i ? "2" : "")), layout,
      { responsive: true, displayModeBar: false });
    new MutationObserver(() => Plotly.relayout(target, { "font.color": text() }))
      .observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  }

  function reachable(box) { // a table wider than the page scrolls, by keyboard too
    const caption = box.querySelector("caption, figcaption");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", caption ? caption.textContent.trim().split(". ")[0] : "table");
  }

  function sortable(table) {
    table.querySelectorAll("thead th").forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "descending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "ascending" : "descending");
        const key = (row) => row.cells[column].textContent.trim();
        const order = (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
        const number = (a, b) => Number(key(a)) - Number(key(b));
        const body = table.tBodies[0];
        const rows = [...body.rows];
        rows.sort(rows.every((row) => key(row) !== "" && !isNaN(key(row))) ? number : order);
        body.append(...(down ? rows : rows.reverse()));
      });
    });
  }

  function csv(table) {
    const cell = (c) => (/[",\n]/.test(c) ? `"${c.replace(/"/g, '""')}"` : c);
    const words = (c) => cell(c.innerText.trim().replace(/\s*\n\s*/g, "; "));
    const rows = [...table.rows].map((row) => [...row.cells].flatMap((c) => [words(c), ...Array(c.colSpan - 1).fill("")]));
    return rows.map((row) => row.join(",")).join("\n") + "\n";
  }

  function tools(table, number) { // above each table of results: its CSV, and a filter where it is long
    const bar = document.createElement("div");
    bar.className = "table-tools";
    if (table.tBodies[0].rows.length > 15) {
      const filter = Object.assign(document.createElement("input"), { type: "search", placeholder: "filter rows" });
      filter.setAttribute("aria-label", "filter the rows of the table below");
      filter.addEventListener("input", () => {
        for (const row of table.tBodies[0].rows)
          row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase());
      });
      bar.append(filter);
    }
    const page = location.pathname.split("/").pop().replace(".html", "");
    const link = Object.assign(document.createElement("a"), { textContent: "CSV", download: `${page}-table-${number}.csv` });
    link.setAttribute("aria-label", "the table below as CSV");
    link.href = "#";
    link.addEventListener("click", () => {
      link.href = "data:text/csv;charset=utf-8," + encodeURIComponent(csv(table));
    });
    bar.append(link);
    table.before(bar);
  }

  document.addEventListener("DOMContentLoaded", () => {
    const results = [...document.querySelectorAll("table.dataframe, table.sortable, table.ledger")];
    results.forEach((table, i) => tools(table, i + 1));
    results.filter((table) => table.tHead.rows.length === 1 && !table.querySelector("tbody [rowspan]")).forEach(sortable);
    document.querySelectorAll(".pst-scrollable-table-container").forEach(reachable);
    document.querySelectorAll("figure").forEach((figure) => {
      const image = figure.querySelector("img.figure");
      if (image) new ResizeObserver(() => { // by keyboard too
        if (figure.scrollWidth > figure.clientWidth) reachable(figure);
      }).observe(image);
    });
    const maps = document.querySelectorAll(".head-map");
    if (maps.length) load("plotly.min.js").then(() => maps.forEach(draw));
  });
})();
