// The leaderboard: columns that sort, rows and columns that filters leave out, scores that open their questions.
(function () {
  "use strict";
  const { el, text, number, signed, known } = FP;

  const state = { sort: null, up: false, methods: new Set(), budgets: new Set(), tasks: new Set(), search: "", under: "interval" };
  const UNDER = [["interval", "95 % interval"], ["error", "standard error"], ["delta", "Δ to the baseline"], ["nothing", "nothing"]];
  const STATES = { waiting: "waiting", submitted: "for its server", missing: "–" };
  const ARROWS = { better: " ↑", worse: " ↓" };
  const narrow = matchMedia("(max-width: 640px)");
  let place;

  const opens = (row, task) =>
    typeof FP.openQuestions === "function" && FP.has("q/index") && (!FP.hasQuestions || FP.hasQuestions(row.key, task));

  function range(one, digits) {
    return known(one.low) && known(one.high) ? `${number(one.low, digits)} to ${number(one.high, digits)}` : null;
  }

  function under(one, digits) {
    if (state.under === "interval") return el("span", { class: "under" }, range(one, digits) || (known(one.error) ? `± ${number(one.error, digits)}` : ""));
    if (state.under === "error") return el("span", { class: "under" }, known(one.error) ? `± ${number(one.error, digits)}` : "± –");
    if (state.under !== "delta") return null;
    const delta = one.delta;
    if (!delta || !known(delta.shown)) return el("span", { class: "under" }, "");
    const better = delta.mark ? (delta.shown > 0 ? "good" : "bad") : "";
    return el("span", { class: `under ${better}`, title: difference(delta) }, `${signed(delta.shown, digits)}${ARROWS[delta.mark] || ""}`);
  }

  const count = (value) => number(value, Number.isInteger(value) ? 0 : 1);

  function difference(delta) {
    const to = delta.baseline ? FP.row(delta.baseline) : null, digits = FP.decimals(delta.error);
    const parts = [`Δ ${signed(delta.shown, digits)}${to ? ` to ${FP.label(to)}` : ""}`];
    if (known(delta.low)) parts.push(`95 %: ${signed(delta.low, digits)} to ${signed(delta.high, digits)}`);
    if (known(delta.p)) parts.push(`p = ${delta.p < 0.001 ? "< 0.001" : number(delta.p, 3)}`);
    if (known(delta.p_adjusted)) parts.push(`adjusted (Holm) ${delta.p_adjusted < 0.001 ? "< 0.001" : number(delta.p_adjusted, 3)}`);
    if (known(delta.won)) parts.push(`${count(delta.won)} won, ${count(delta.lost)} lost`);
    return parts.join("; ");
  }

  function about(one, digits) {
    const parts = [];
    if (range(one, digits)) parts.push(`95 % interval ${range(one, digits)}`);
    if (known(one.questions)) parts.push(`${one.questions} questions`);
    if (known(one.images)) parts.push(`${one.images} images`);
    if (one.delta && known(one.delta.shown)) parts.push(difference(one.delta));
    return parts.join("; ");
  }

  // as many decimals in a whole column as show two digits of its smallest error
  function digitsOf(all) {
    const errors = all.map((one) => one && one.error).filter((error) => known(error) && error > 0);
    return errors.length ? FP.decimals(Math.min(...errors)) : 1;
  }

  function cell(row, task, one, digits) {
    if (!one || one.state) return el("td", null, STATES[one ? one.state : "missing"]);
    const shown = number(one.shown, digits);
    const best = one.best ? "best" : "";
    const title = about(one, digits);
    const value = task && opens(row, task.name)
      ? el("button", {
          type: "button", class: `score ${best}`, tabindex: "-1", title,
          "aria-label": `${text(row.label, 120)}, ${text(task.title, 80)}: ${shown}${one.best ? ", best" : ""}. Open its questions`,
          on: { click: () => FP.openQuestions(row.key, task.name, row.baseline) },
        }, shown)
      : el("span", { class: best, title }, shown);
    return el("td", { class: "numbers" }, value, under(one, digits));
  }

  function columns(data) {
    const made = [{
      id: "name", title: "method", text: true, of: (row) => FP.label(row).toLowerCase(),
      cell: (row) => el("th", { scope: "row", class: "name", title: text(row.label) },
        el("span", { class: "swatch", style: { background: FP.color(row) }, "aria-hidden": "true" }), el("bdi", null, text(row.method, 60)),
        row.seeds ? el("span", { class: "note" }, ` (${row.seeds} seeds)`) : null,
        narrow.matches && Object.keys(row.given).length ? el("span", { class: "under", dir: "auto" }, text(FP.brief(Object.entries(row.given).map(([name, value]) => `${name}=${value}`).join(" ")), 60)) : null,
        row.study ? el("span", { class: "under" }, el("bdi", null, text(row.study, 60))) : null),
    }, {
      id: "budget", title: "budget", of: (row) => row.tokens, cell: (row) => el("td", { class: "numbers" }, text(row.budget, 40)),
    }];
    for (const name of narrow.matches ? [] : data.parameters) // on a phone they stand under the method
      made.push({
        id: `p:${name}`, title: text(name, 40), text: true,
        of: (row) => { const value = row.parameters[name]; return value === undefined ? null : known(+value) && value !== "" ? +value : text(value, 80); },
        cell: (row) => el("td", { class: "text", dir: "auto" }, text(row.parameters[name] ?? "", 60)),
      });
    for (const task of data.tasks.filter((one) => !state.tasks.size || state.tasks.has(one.name))) {
      const digits = digitsOf(data.rows.map((row) => row.scores[task.name]));
      made.push({
        id: `t:${task.name}`, title: text(task.title, 40), unit: task.unit, higher: task.higher,
        of: (row) => { const one = row.scores[task.name]; return one && !one.state ? one.shown : null; },
        cell: (row) => cell(row, task, row.scores[task.name], digits),
      });
    }
    for (const name of ["average", "relative"]) {
      if (!data.rows.some((row) => row[name])) continue;
      const digits = digitsOf(data.rows.map((row) => row[name]));
      made.push({ id: name, title: name, unit: "%", of: (row) => row[name] && row[name].shown, cell: (row) => cell(row, null, row[name], digits) });
    }
    for (const [id, title, of, show] of COSTS)
      if (data.rows.some((row) => known(of(row))))
        made.push({ id, title, cost: true, of, cell: (row) => el("td", { class: "numbers" }, known(of(row)) ? show(of(row)) : "–") });
    return made;
  }

  const cost = (key) => (row) => (row.cost ? row.cost[key] : null);
  const measured = (key) => (row) => (row.measured ? row.measured[key] : null);
  const operations = (value) => (value >= 1e11 ? `${number(value / 1e12, 3)} T` : `${number(value / 1e9, 3)} G`);
  const COSTS = [
    ["c:tokens", "tokens", cost("visual_tokens"), (value) => number(value, 1)],
    ["c:macs", "FLOPs", cost("macs_3"), operations],
    ["c:kv", "KV cache", cost("kv_bytes"), (value) => `${number(value / 2 ** 20, 2)} MiB`],
    ["c:ttft", "TTFT", measured("first_token_p50"), (value) => `${number(1e3 * value, 1)} ms`],
    ["c:rate", "questions/s", measured("questions_per_second"), (value) => number(value, 1)],
    ["c:peak", "memory", measured("peak_bytes"), (value) => `${number(value / 2 ** 30, 2)} GiB`],
  ];

  function visible(row) {
    if (state.methods.size && !state.methods.has(row.method)) return false;
    if (state.budgets.size && !state.budgets.has(row.budget)) return false;
    const searched = state.search.trim().toLowerCase();
    return !searched || searched.split(/\s+/).every((word) => `${row.label} ${row.study || ""}`.toLowerCase().includes(word));
  }

  function sorted(rows, column) {
    if (!column) return rows;
    const sign = state.up ? 1 : -1;
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0);
    return [...rows].sort((a, b) => {
      const x = column.of(a) ?? null, y = column.of(b) ?? null; // what is missing stays below, whichever way
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * order(x, y);
    });
  }

  function draw(data) {
    const shown = columns(data);
    const sort = shown.find((column) => column.id === state.sort);
    const rows = sorted(data.rows.filter(visible), sort);
    const head = el("tr", null, shown.map((column) =>
      el("th", {
        scope: "col", class: column.id === "name" ? "name" : column.text ? "text" : "", dir: "auto",
        "aria-sort": column === sort ? (state.up ? "ascending" : "descending") : null,
      }, el("button", { type: "button", class: "sort", dataset: { column: column.id }, on: { click: () => by(column, data) } },
        column.title, column.unit && column.unit !== "%" ? el("span", { class: "note" }, ` ${column.unit}`) : null))));
    const bodies = [];
    let budget;
    for (const row of rows) {
      if (!bodies.length || (!sort && row.budget !== budget)) bodies.push(el("tbody", { class: "group" }));
      budget = row.budget;
      bodies[bodies.length - 1].append(el("tr", { dataset: { row: row.key } }, shown.map((column) => column.cell(row))));
    }
    const table = el("table", { class: "board" },
      el("caption", { class: "visually-hidden" }, "Scores by method and budget. The buttons in the head sort."), el("thead", null, head), bodies);
    const before = document.activeElement && place.contains(document.activeElement) ? document.activeElement.dataset.column : null;
    const framed = rows.length ? FP.scroll("Leaderboard: table", table) : null, aside = place.querySelector(".scroll")?.scrollLeft || 0;
    framed?.classList.add("tall");
    place.replaceChildren(framed || el("p", { class: "empty" }, "No row is left: the filters leave out all of them."));
    if (framed) framed.firstChild.scrollLeft = aside; // who sorts by a column goes on looking at it
    place.append(el("p", { class: "note scroll-hint no-print" }, "The table goes on to the side: scroll it, or use the arrow keys in it."));
    if (before) place.querySelector(`[data-column="${CSS.escape(before)}"]`)?.focus();
    rove(table);
    return rows.length;
  }

  function by(column, data) {
    const first = column.text || column.cost ? true : column.higher === false; // scores: the best first
    if (state.sort !== column.id) [state.sort, state.up] = [column.id, first];
    else if (state.up === first) state.up = !first;
    else state.sort = null;
    draw(data);
    FP.announce(state.sort ? `Sorted by ${column.title}, ${state.up ? "ascending" : "descending"}` : "In the order of the budgets");
  }

  // one stop for the Tab key; arrows go from score to score
  function rove(table) {
    const at = (line, column) => table.rows[line]?.cells[column]?.querySelector("button.score");
    table.querySelector("button.score")?.setAttribute("tabindex", "0");
    table.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      const here = event.target.closest("td");
      if (!step || !here || !event.target.matches("button.score")) return;
      let [line, column] = [here.parentNode.rowIndex, here.cellIndex];
      while (table.rows[(line += step[0])]?.cells[(column += step[1])]) {
        const next = at(line, column);
        if (!next) continue;
        event.target.setAttribute("tabindex", "-1");
        next.setAttribute("tabindex", "0");
        next.focus();
        event.preventDefault();
        return;
      }
    });
  }

  FP.part((data) => {
    const body = document.getElementById("leaderboard-body");
    place = el("div", null);
    const again = () => FP.announce(`${draw(data)} of ${data.rows.length} rows`);
    const several = (values) => [...new Set(values)].length > 1;
    const search = el("input", { type: "search", id: "search", placeholder: "fastv heads=16", on: { input: () => { state.search = search.value; again(); } } });
    const budgets = [...new Set(data.rows.map((row) => row.budget))].filter((budget) => budget !== "");
    body.append(el("div", { class: "panel" },
      el("div", { class: "controls no-print" },
        el("label", { class: "field" }, el("span", null, "Search rows"), search),
        FP.field("Under each score", UNDER, state.under, (value) => { state.under = value; again(); })),
      el("div", { class: "controls no-print" },
        several(FP.methods) ? FP.chips("Method", FP.methods.map((name) => [name, text(name, 60)]), state.methods, again) : null,
        several(budgets) ? FP.chips("Budget", budgets.map((name) => [name, text(name, 30)]), state.budgets, again) : null,
        several(data.tasks.map((task) => task.name)) ? FP.chips("Task", data.tasks.map((task) => [task.name, text(task.title, 40)]), state.tasks, again) : null),
      place, data.notes.map((line) => el("p", { class: "note", dir: "auto" }, text(line)))));
    if (data.cost_notes.length)
      body.append(el("details", null, el("summary", null, "What the cost columns are"), data.cost_notes.map((line) => el("p", { class: "note", dir: "auto" }, text(line)))));
    draw(data);
    FP.onRedraw(() => draw(data));
    narrow.addEventListener("change", () => draw(data));
  });
})();
