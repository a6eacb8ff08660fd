// Links below figures and tables: a figure as SVG in the light colors, a table as CSV and LaTeX.
(() => {
  const light = {};
  for (const [, name, value] of document.querySelector("style").textContent.matchAll(/(--[\w-]+):\s*(#\w+)/g))
    light[name] ??= value;

  const figure = svg => {
    const copy = svg.cloneNode(true);
    copy.removeAttribute("style");
    copy.setAttribute("font-family", "DejaVu Sans, Arial, sans-serif");
    return new XMLSerializer().serializeToString(copy).replace(/var\((--[\w-]+)\)/g, (all, name) => light[name] ?? all);
  };
  const cells = table => [...table.rows].map(row => [...row.cells].map(cell => cell.textContent.trim().replace(/\s+/g, " ")));
  const quoted = text => /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const csv = table => cells(table)
    .map(row => row.map(text => quoted(text === "–" ? "" : text.replace("−", "-"))).join(",") + "\n").join("");
  const special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "−": "$-$", "–": "--", "×": "$\\times$", "±": "$\\pm$"};
  const escaped = text => text.replace(/[\\~^−–×±&%#_${}]/g, found => special[found] ?? "\\" + found);
  const latex = table => {
    const rows = cells(table).map(row => row.map(escaped).join(" & ") + " \\\\");
    const columns = "l" + "r".repeat(table.rows[0].cells.length - 1);
    return ["% \\usepackage{booktabs}", `\\begin{tabular}{${columns}}`, "\\toprule", rows[0], "\\midrule",
      ...rows.slice(1), "\\bottomrule", "\\end{tabular}", ""].join("\n");
  };

  const used = {};
  const offer = (element, title, kinds) => {
    let name = title.toLowerCase().replace(/[^\p{L}\d]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "report";
    used[name] = (used[name] ?? 0) + 1;
    if (used[name] > 1) name += `-${used[name]}`;
    const line = document.createElement("div");
    line.className = "save";
    for (const [label, ending, type, make] of kinds) {
      const link = document.createElement("a");
      link.textContent = label;
      link.href = "#";
      link.addEventListener("click", event => {
        event.preventDefault();
        const file = document.createElement("a");
        file.download = `${name}.${ending}`;
        file.href = URL.createObjectURL(new Blob([make(element)], {type}));
        file.click();
        setTimeout(() => URL.revokeObjectURL(file.href), 1000);
      });
      line.append(link);
    }
    element.after(line);
  };
  for (const svg of document.querySelectorAll("svg[role=img]"))
    offer(svg, svg.getAttribute("aria-label"), [["SVG", "svg", "image/svg+xml", figure]]);
  let heading = "";
  for (const element of document.querySelectorAll("h2, h3, h4, table")) {
    if (element.tagName !== "TABLE") heading = element.textContent;
    else offer(element, heading, [["CSV", "csv", "text/csv", csv], ["LaTeX", "tex", "text/plain", latex]]);
  }
})();
