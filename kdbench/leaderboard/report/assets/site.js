// What pages do beyond showing text: the theme, tables that sort and filter, charts, and the comparison of two methods.
// Everything that a page says is there without this script, but for the comparison. Texts of results are only ever
// put into the page as text. Loaded in the head and not deferred, so that the theme is there before anything is shown.
"use strict";

(() => {
  const root = document.documentElement;
  const find = (selector, within = document) => [...within.querySelectorAll(selector)];
  const kdbench = (window.kdbench ??= {});
  kdbench.data ??= {};

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // --- theme ---------------------------------------------------------------------------------------------------------

  const THEMES = ["auto", "light", "dark"];
  const KEY = "kdbench-theme";
  const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

  function storedTheme() {
    try {
      const theme = localStorage.getItem(KEY);
      return THEMES.includes(theme) ? theme : "auto";
    } catch {
      return "auto"; // pages that were opened as files may have no storage: the choice lasts for the page
    }
  }

  function setTheme(theme) {
    root.dataset.theme = theme;
    // the styles of the table library ask for this class
    root.classList.toggle("dark", theme === "dark" || (theme === "auto" && darkSystem.matches));
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = `Theme: ${theme}`;
      button.setAttribute("aria-label", `Colour theme: ${theme === "auto" ? "as the system" : theme}`);
    }
  }

  function nextTheme() {
    const theme = THEMES[(THEMES.indexOf(root.dataset.theme) + 1) % THEMES.length];
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // see storedTheme
    }
    setTheme(theme);
  }

  setTheme(storedTheme());
  darkSystem.addEventListener("change", () => setTheme(root.dataset.theme));

  // --- tables --------------------------------------------------------------------------------------------------------

  const text = (html) => html.replace(/<[^>]*>/g, "").trim();

  // Cells without a value come last, whichever way a column is sorted.
  function missingLast(compare) {
    return (a, b) => (a === null ? (b === null ? 0 : 1) : b === null ? -1 : compare(a, b));
  }

  function defineTypes() {
    const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
    const types = {
      number: [(value) => (value === "" || Number.isNaN(Number(value)) ? null : Number(value)), (a, b) => a - b],
      text: [(value) => text(String(value)) || null, collator.compare],
    };
    for (const [name, [pre, compare]] of Object.entries(types)) {
      DataTable.type(name, "order", {
        pre,
        asc: missingLast(compare),
        desc: missingLast((a, b) => compare(b, a)),
      });
    }
    DataTable.type("number", "className", "dt-type-numeric");
    DataTable.ext.errMode = "throw"; // an alert would stop the page
  }

  function makeTable(table) {
    const { orderCol, orderDir } = table.dataset;
    const label = table.getAttribute("aria-label") ?? table.caption?.textContent ?? "";
    const made = new DataTable(table, {
      autoWidth: false,
      paging: false, // pages are searched and printed as a whole
      order: orderCol === undefined ? [] : [[Number(orderCol), orderDir ?? "asc"]],
      layout: { topStart: null, topEnd: null, top: "search", bottomStart: "info", bottomEnd: null },
      language: {
        search: "Filter rows:",
        info: "_TOTAL_ rows",
        infoEmpty: "no rows",
        infoFiltered: "of _MAX_",
        zeroRecords: "No row fits the filters.",
      },
    });
    // headers are buttons, which the library lets answer to Enter alone
    table.tHead.addEventListener("keydown", (event) => {
      if (event.key === " " && event.target.matches("[role=button]")) {
        event.preventDefault();
        event.target.click();
      }
    });
    const container = made.table().container();
    find("input[type=search]", container).forEach((input) => {
      if (label) input.setAttribute("aria-label", `Filter rows: ${label.trim()}`);
    });
    const heads = [...table.tHead.rows[0].cells];
    const filters = heads.flatMap((head, column) => ("filter" in head.dataset ? columnFilter(made, head, column) : []));
    if (filters.length) {
      container.prepend(element("div", { className: "filters" }, ...filters));
    }
  }

  function columnFilter(table, head, column) {
    const choice = (cell) => cell.dataset.filter ?? cell.textContent.trim();
    const choices = new Set(table.column(column).nodes().toArray().map(choice));
    if (choices.size < 2) {
      return [];
    }
    const select = element("select", {}, element("option", { value: "", textContent: "all" }));
    for (const value of [...choices].filter(Boolean).sort()) {
      select.append(element("option", { value, textContent: value }));
    }
    select.addEventListener("change", () => {
      const wanted = select.value;
      const fits = (_text, _data, row) => choice(table.cell(row, column).node()) === wanted;
      table.column(column).search.fixed("choice", wanted === "" ? null : fits).draw();
    });
    return [element("label", {}, `${head.dataset.filter || head.textContent.trim()}: `, select)];
  }

  // --- charts --------------------------------------------------------------------------------------------------------

  const LINE = { domainColor: "currentColor", tickColor: "currentColor", domainOpacity: 0.5, tickOpacity: 0.5 };
  const TEXT = { labelColor: "currentColor", titleColor: "currentColor", titleFontWeight: "normal", titleLimit: 300 };
  const CONFIG = {
    background: "transparent",
    axis: { ...LINE, ...TEXT, gridColor: "currentColor", labelFontSize: 11, titleFontSize: 12 },
    legend: { ...TEXT },
    view: { stroke: null },
  };

  const json = (id) => JSON.parse(document.getElementById(id).textContent);
  const drawn = new Map(); // figure -> what vegaEmbed returned for it

  async function draw(figure) {
    const { spec: id, rows } = figure.dataset;
    const spec = json(id);
    if (rows) {
      spec.datasets = { ...spec.datasets, rows: json(rows) };
    }
    let plot = figure.querySelector(":scope > .plot");
    if (!plot) {
      plot = element("div", { className: "plot" });
      figure.prepend(plot);
    }
    drawn.get(figure)?.finalize();
    drawn.delete(figure);
    const made = await vegaEmbed(plot, spec, {
      actions: false,
      ast: true, // expressions are interpreted: the page's policy does not allow code out of strings
      config: { ...CONFIG, font: getComputedStyle(figure).fontFamily }, // by name: room for texts is measured with it
      defaultStyle: false, // and no inline styles: see charts.css
      renderer: "svg",
      tooltip: { disableDefaultStyle: true },
    });
    if (figure.dataset.spec === id && figure.dataset.rows === rows) {
      drawn.set(figure, made);
    } else {
      made.finalize(); // another choice was made meanwhile, and draws itself
    }
  }

  async function drawAll(figures) {
    for (const figure of figures) {
      if (!drawn.has(figure) && !figure.closest("details:not([open])")) {
        await draw(figure);
      }
    }
  }

  function choices(attribute, property) {
    for (const select of find(`select[data-${attribute}]`)) {
      const figure = document.getElementById(select.getAttribute(`data-${attribute}`));
      select.value = figure.dataset[property]; // browsers keep what was chosen before a reload
      select.addEventListener("change", () => {
        figure.dataset[property] = select.value;
        draw(figure);
      });
    }
  }

  function startCharts() {
    choices("chart", "spec");
    choices("chart-rows", "rows");
    // what is closed has no width to draw in
    document.addEventListener("toggle", (event) => drawAll(find("figure.chart", event.target)), true);
    return drawAll(find("figure.chart"));
  }

  // --- comparison of two methods -------------------------------------------------------------------------------------

  const isNumber = (value) => typeof value === "number";
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // Student's paired interval: kdbench.leaderboard.statistics.paired_difference
  function pairedDifference(a, b, task, about) {
    const pairs = a.map((value, seed) => [value, b[seed]]).filter(([x, y]) => isNumber(x) && isNumber(y));
    const n = pairs.length;
    if (n === 0) {
      return { n };
    }
    const differences = pairs.map(([x, y]) => x - y);
    const difference = mean(differences);
    const sign = task.direction === "min" ? -1 : 1;
    const wins = differences.filter((value) => sign * value > 0).length;
    const losses = differences.filter((value) => sign * value < 0).length;
    const found = { n, wins, losses, difference, a: mean(pairs.map(([x]) => x)), b: mean(pairs.map(([, y]) => y)) };
    if (n < 2) {
      return found;
    }
    const spread = Math.sqrt(differences.reduce((sum, value) => sum + (value - difference) ** 2, 0) / (n - 1));
    const rounding = 1e-12 * Math.max(...pairs.flat().map(Math.abs)); // differences below it are none
    const least = spread <= rounding ? 0 : spread;
    const half = (about.quantiles[n] * Math.max(least, task.resolution)) / Math.sqrt(n);
    // equal differences are a test only of several seeds
    const tested = half > 0 || n >= about.fewest || Math.abs(difference) <= rounding;
    return { ...found, half, tested, separated: tested && Math.abs(difference) > Math.max(half, rounding) };
  }

  function shown(value, half) {
    if (!half) {
      return Number(value.toPrecision(4)).toString();
    }
    return value.toFixed(Math.min(Math.max(1 - Math.floor(Math.log10(half)), 0), 6));
  }

  function verdict(found, task) {
    if (found.n === 0) return "no common seed";
    if (found.half === undefined) return "one common seed";
    if (task.direction === null) return "metric has no direction";
    if (!found.separated) return "not separated";
    return (task.direction === "min") === found.difference < 0 ? "A better" : "B better";
  }

  function comparisonRow([task, valuesA, failedA], [, valuesB, failedB], about) {
    const { title, page, metric, unit, factor, refused } = about.tasks[task];
    const found = pairedDifference(valuesA, valuesB, about.tasks[task], about);
    const cell = (value, content = value) => {
      const made = element("td", {}, content);
      made.dataset.order = value;
      made.className = "n";
      return made;
    };
    const score = (value, failed) => {
      const parts = [isNumber(value) ? shown(factor * value, half) : "–"];
      return cell(value ?? "", parts.concat(failed ? `${failed} failed` : []).join(", "));
    };
    const half = factor * (found.half ?? 0);
    const difference = [
      isNumber(found.difference) ? shown(factor * found.difference, half) : "–",
      ...(found.half === undefined ? [] : ["±", half ? shown(half, half) : "0"]),
    ];
    const decision = verdict(found, about.tasks[task]);
    const row = element(
      "tr",
      {},
      element("td", {}, element("a", { href: page, textContent: title }), refused ? " (the task refuses a board)" : ""),
      element("td", { textContent: unit ? `${metric} (${unit})` : metric }),
      cell(found.n),
      score(found.a, failedA),
      score(found.b, failedB),
      cell(found.difference ?? "", difference.join(" ")),
      cell(found.wins ?? "", found.n ? `${found.wins} / ${found.losses}` : "–"),
      element("td", { textContent: decision }),
    );
    for (const name of ["n", "a", "b", "difference", "half", "wins", "losses"]) {
      if (found[name] !== undefined) row.dataset[name] = found[name]; // unrounded, for whoever reads the page by program
    }
    return [row, decision];
  }

  // A file's page may not fetch: its data are scripts.
  function load(name) {
    if (kdbench.data[name]) {
      return Promise.resolve(kdbench.data[name]);
    }
    return new Promise((resolve, reject) => {
      const script = element("script", { src: `assets/data/${name}.js` });
      script.addEventListener("load", () => resolve(kdbench.data[name]));
      script.addEventListener("error", () => reject(new Error(`assets/data/${name}.js is missing`)));
      document.head.append(script);
    });
  }

  function startComparison() {
    const table = document.getElementById("comparison");
    if (!table) {
      return;
    }
    const about = kdbench.data.compare;
    const summary = document.getElementById("comparison-summary");
    const selects = ["a", "b"].map((id) => document.getElementById(id));
    const byName = new Map(about.methods.map((method) => [method[0], method]));
    let sorted = null; // the DataTable
    let asked = 0;

    async function compare() {
      const turn = ++asked;
      const [a, b] = selects.map((select) => byName.get(select.value));
      if (!a || !b) {
        return;
      }
      const [valuesA, valuesB] = await Promise.all([load(a[2]), load(b[2])]);
      if (turn !== asked) {
        return; // another pair was chosen while the data came
      }
      const tasksB = new Map(valuesB.map((entry) => [entry[0], entry]));
      const results = valuesA
        .filter(([task]) => tasksB.has(task))
        .map((entry) => comparisonRow(entry, tasksB.get(entry[0]), about));
      sorted?.destroy();
      table.tBodies[0].replaceChildren(...results.map(([row]) => row));
      sorted = new DataTable(table, { autoWidth: false, paging: false, searching: false, info: false, order: [] });
      const count = (wanted) => results.filter(([, decision]) => decision === wanted).length;
      const undecided = results.length - count("A better") - count("B better");
      const link = ([name, page]) => element("a", { href: page, textContent: name });
      summary.replaceChildren(
        ...["A is ", link(a), ", B is ", link(b), ". "],
        results.length
          ? `${results.length} tasks in common: A better on ${count("A better")}, B better on ${count("B better")}, ` +
              `undecided on ${undecided} (95 % t intervals of paired differences, not corrected for the number of tasks).`
          : "They have no task in common.",
      );
      const chosen = new URLSearchParams({ a: a[0], b: b[0] });
      history.replaceState(null, "", `#${chosen}`);
    }

    function fill(select, filter) {
      const wanted = filter.toLowerCase();
      const kept = select.value;
      const names = about.methods.map(([name]) => name).filter((name) => name.toLowerCase().includes(wanted));
      select.replaceChildren(...names.map((name) => element("option", { value: name, textContent: name })));
      if (names.includes(kept)) {
        select.value = kept;
      }
    }

    function chosenInAddress() {
      const chosen = new URLSearchParams(location.search);
      for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
        chosen.set(name, value);
      }
      for (const select of selects) {
        if (byName.has(chosen.get(select.id))) select.value = chosen.get(select.id);
      }
    }

    selects.forEach((select, index) => {
      fill(select, "");
      select.selectedIndex = Math.min(index, select.length - 1);
      select.addEventListener("change", compare);
    });
    for (const input of find("input[data-filters]")) {
      const select = document.getElementById(input.dataset.filters);
      input.addEventListener("input", () => {
        const before = select.value;
        fill(select, input.value);
        if (select.value !== before) compare();
      });
    }
    addEventListener("hashchange", () => {
      chosenInAddress();
      compare();
    });
    chosenInAddress();
    return compare();
  }

  // Deferred scripts have run by now.
  document.addEventListener("DOMContentLoaded", async () => {
    setTheme(root.dataset.theme);
    document.getElementById("theme")?.addEventListener("click", nextTheme);
    if (window.DataTable) {
      defineTypes();
      find("table.sortable").forEach(makeTable);
    }
    await startComparison();
    if (window.vegaEmbed) {
      await startCharts();
    }
    root.dataset.ready = "true"; // for whoever drives the page by program
  });
})();
