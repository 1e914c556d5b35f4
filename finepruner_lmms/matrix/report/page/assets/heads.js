// Heads: strategies compared, each head alone, which heads were chosen and how often, and consensus over the questions.
(function () {
  "use strict";
  const { el, text, number, signed, known } = FP;

  const axis = (more) => ({ label: null, ...more });
  const shade = (value, low, high) => (high > low ? (value - low) / (high - low) : 0.5);
  const scale = (share) => d3.interpolateCividis(share);
  const inkOn = (share) => (d3.lab(scale(share)).l > 55 ? "#000" : "#fff");

  // a table of shaded cells: `cells` {x, y, value}; texts in them where there is room
  function map({ width, cells, xs, ys, show, x, cell = 26, title }) {
    const values = cells.map((one) => one.value).filter(known), low = Math.min(...values), high = Math.max(...values);
    const of = (one) => shade(one.value, low, high);
    const longest = (list) => Math.max(...list.map((one) => [...String(one)].length));
    const left = Math.min(0.45 * width, 24 + 6.6 * longest(ys)), wide = (width - left - 12) / xs.length;
    const turned = wide < 8 + 6.4 * Math.min(14, longest(xs)), below = turned ? 16 + 4.6 * Math.min(14, longest(xs)) : 14;
    return Plot.plot({
      width, height: 40 + cell * ys.length + below, marginLeft: left, marginTop: 12, marginBottom: 28 + below, style: FP.plotStyle(),
      x: axis({ domain: xs, tickFormat: (value) => FP.short(value, 14), tickSize: 0, tickRotate: turned ? -40 : 0, label: x, labelOffset: 24 + below, labelAnchor: "center", labelArrow: "none" }),
      y: axis({ domain: ys, tickFormat: (value) => FP.short(value, Math.floor(left / 7)), tickSize: 0 }),
      marks: [
        Plot.cell(cells, { x: (d) => d.x, y: (d) => d.y, fill: (d) => scale(of(d)), inset: 0.5, title, tip: { fill: FP.css("--panel"), stroke: FP.css("--line") } }),
        wide > 30 && show ? Plot.text(cells, { x: (d) => d.x, y: (d) => d.y, text: (d) => show(d.value), fill: (d) => inkOn(of(d)), fontSize: 11 }) : null,
      ],
      color: { type: "identity" },
    });
  }

  const spread = (list, key) => [...new Set(list.map(key))];

  function study(data) {
    const found = data.heads.study.map((one) => ({ ...one, row: FP.row(one.key) })).filter((one) => one.row);
    if (found.length < 2) return [];
    const columns = [["average", "average of all tasks"], ...data.tasks.map((task) => [task.name, text(task.title, 60)])];
    const score = (one, column) => { const s = column === "average" ? one.row.average : one.row.scores[column]; return s && !s.state && known(s.shown) ? s : null; };
    const others = spread(found, (one) => one.others);
    const state = { column: columns.find(([name]) => found.some((one) => score(one, name)))?.[0], others: others[0] };
    if (!state.column) return [];
    const shown = () => found.filter((one) => one.others === state.others && score(one, state.column));
    const setting = (one) => `${one.row.budget} · ${one.heads}`;
    const settings = (list) => spread([...list].sort((a, b) => b.row.tokens - a.row.tokens || +b.heads - +a.heads), setting);
    const controls = (again) => [
      FP.field("Score", columns.filter(([name]) => found.some((one) => score(one, name))), state.column, (value) => { state.column = value; again(); }),
      others.length > 1 ? FP.field("Other parameters", others.map((one) => [one, text(one || "none", 80)]), state.others, (value) => { state.others = value; again(); }) : null,
    ];
    const made = [];
    const all = () => made.forEach((one) => one.again());
    made.push(FP.figure({
      title: "Strategies by budget and number of heads", controls: controls(all),
      draw: (width) => {
        const list = shown();
        if (list.length < 2) return null;
        const cells = list.map((one) => ({ x: setting(one), y: one.strategy, value: score(one, state.column).shown, one }));
        return map({ width, cells, xs: settings(list), ys: spread(list, (one) => one.strategy), show: (value) => number(value, 1), x: "budget · heads",
          title: (d) => `${FP.label(d.one.row)}\n${number(d.value, 2)} (95 %: ${FP.interval(score(d.one, state.column))})` });
      },
      caption: "Lighter is higher.",
      rows: () => [["row", "score", "95 % interval"], ...shown().map((one) => [FP.label(one.row), number(score(one, state.column).shown, 2), FP.interval(score(one, state.column))])],
    }));
    // lines and strips say something only where there is more than one point for each
    if (spread(found, (one) => one.row.tokens).length > 1) {
      made.push(FP.figure({
        title: "Strategies over budgets, by number of heads",
        draw: (width) => {
          const list = shown(), narrow = width < 520, right = narrow ? 96 : 130;
          if (spread(list, (one) => one.row.tokens).length < 2) return null;
          const ticks = spread(list, (one) => one.row.tokens).sort((a, b) => a - b);
          const names = spread(list, (one) => one.strategy), heads = spread(list, (one) => one.heads);
          const color = (one) => paint(names.indexOf(one.strategy));
          const lines = d3.groups(list, (one) => one.strategy, (one) => one.heads).flatMap(([, inner]) => inner.map(([, curve]) => curve.sort((a, b) => a.row.tokens - b.row.tokens)));
          const value = (one) => score(one, state.column).shown;
          const drawn = Plot.plot({
            width, height: 340, marginLeft: 46, marginRight: right, marginBottom: 42, style: FP.plotStyle(),
            x: { type: "log", base: 2, ticks, tickFormat: (tick) => `${+tick.toFixed(1)}`, domain: [ticks[0], ticks[ticks.length - 1]], inset: 12, label: "visual tokens (log scale)", labelAnchor: "center", labelArrow: "none" },
            y: { grid: true, domain: FP.zoomed(list.map(value), []), label: "score", labelArrow: "none" },
            marks: lines.flatMap((curve) => [
              Plot.line(curve, { x: (d) => d.row.tokens, y: value, stroke: color(curve[0]), strokeDasharray: ["", "5 3", "2 3", "8 3 2 3"][heads.indexOf(curve[0].heads) % 4] || null }),
              Plot.dot(curve, { x: (d) => d.row.tokens, y: value, r: 3.5, fill: color(curve[0]), title: (d) => `${FP.label(d.row)}\n${number(value(d), 2)}`, tip: { fill: FP.css("--panel"), stroke: FP.css("--line") } }),
            ]),
          });
          const last = lines.map((curve) => curve[curve.length - 1]);
          FP.labelEnds(drawn, last.slice(0, 24).map((one) => ({ x: one.row.tokens, y: value(one), label: FP.short(`${one.strategy} ${one.heads}`, narrow ? 13 : 18), color: color(one) })), width - right + 10);
          return drawn;
        },
        caption: "Each number of heads is a line of its own; none is picked.",
        rows: () => [["row", "tokens", "score"], ...shown().map((one) => [FP.label(one.row), String(one.row.tokens), number(score(one, state.column).shown, 2)])],
      }));
    }
    if (data.heads.ranking.length) {
      const ranked = [...data.heads.ranking].sort((a, b) => b.shown - a.shown), most = Math.max(60, ...ranked.map((one) => 7 * FP.short(one.strategy, 20).length));
      made.push(FP.figure({
        title: "Ranking: difference to all heads (fastv) at the same budget",
        draw: (width) => Plot.plot({
          width, height: 70 + 26 * ranked.length, marginLeft: most + 14, marginBottom: 42, style: FP.plotStyle(),
          x: { grid: true, label: "percentage points", labelAnchor: "center", labelArrow: "none", nice: true },
          y: axis({ domain: ranked.map((one) => one.strategy), tickFormat: (value) => FP.short(value, 20) }),
          marks: [
            Plot.ruleX([0], { stroke: FP.css("--ink"), strokeDasharray: "4 3" }),
            Plot.ruleY(ranked.filter((one) => known(one.low)), { y: (d) => d.strategy, x1: (d) => d.low, x2: (d) => d.high, stroke: FP.css("--accent"), strokeWidth: 2 }),
            Plot.dot(ranked, { y: (d) => d.strategy, x: (d) => d.shown, r: 5, fill: FP.css("--accent"), title: (d) => `${text(d.strategy, 60)}\n${signed(d.shown, 2)} (${FP.interval(d, 2)})`, tip: { fill: FP.css("--panel"), stroke: FP.css("--line") } }),
          ],
        }),
        caption: "Mean over the settings that all strategies have, paired over the same images; lines are 95 % intervals.",
        rows: () => [["strategy", "difference", "95 % interval"], ...ranked.map((one) => [text(one.strategy, 60), signed(one.shown, 2), FP.interval(one, 2)])],
      }));
    }
    return made;
  }

  const PAINT_LIGHT = d3.schemeTableau10.map((one) => d3.color(one).darker(0.7).formatHex()), PAINT_DARK = d3.schemeTableau10.map((one) => d3.color(one).brighter(0.5).formatHex());
  const paint = (place) => (FP.dark() ? PAINT_DARK : PAINT_LIGHT)[Math.max(0, place) % 10];

  function best(data) {
    const rows = data.heads.best.map(FP.row).filter(Boolean);
    if (!rows.length) return null;
    return el("div", { class: "panel" }, el("h3", null, "Best configuration of each budget"), FP.scroll("Best configuration of each budget", el("table", { class: "numbers" },
      el("thead", null, el("tr", null, ["budget", "configuration", "average", "95 % interval"].map((name, place) => el("th", { scope: "col", class: place < 2 ? "text" : "" }, name)))),
      el("tbody", null, rows.map((row) => el("tr", null, el("th", { scope: "row", class: "text" }, text(row.budget, 40)),
        el("td", { class: "text", dir: "auto" }, Object.entries(row.given).map(([name, value]) => `${text(name, 40)}=${text(value, 60)}`).join(" ")),
        el("td", null, number(row.average.shown, 1)), el("td", null, FP.interval(row.average))))))));
  }

  function alone(data) {
    return data.heads.alone.filter((one) => one.heads.length > 1).map((one) => {
      const heads = [...new Set(one.heads.map(([, head]) => head))].sort((a, b) => a - b), layers = [...new Set(one.heads.map(([layer]) => layer))].sort((a, b) => a - b);
      return FP.figure({
        title: `Average with each head alone as the guide, ${one.tokens} tokens`,
        draw: (width) => map({ width, cells: one.heads.map(([layer, head, value]) => ({ x: head, y: layer, value })), xs: heads, ys: layers, show: (value) => number(value, 0), x: "head",
          title: (d) => `layer ${d.y}, head ${d.x}\n${number(d.value, 1)}` }),
        caption: "Rows are layers, counted from 0. Lighter is higher.",
        rows: () => [["layer and head", "average"], ...one.heads.map(([layer, head, value]) => [`${layer}, ${head}`, number(value, 2)])],
      });
    });
  }

  // one group of rows (a budget and a number of heads) at a time
  function chosen(data) {
    const groups = data.heads.chosen, made = [];
    if (!groups.length) return made;
    let group = groups[0];
    const names = new Map(groups.flatMap((one) => { const long = Object.keys(one.questions), short = FP.briefly(long); return long.map((label, place) => [label, short[place]]); }));
    const name = (one) => `${names.get(one.row)} · ${one.task}`, size = () => Math.max(...group.shares.map((one) => one.shares.length));
    const pick = groups.length > 1
      ? () => FP.field("Rows", groups.map((one) => [one.title, text(one.title, 80)]), group.title, (value) => { group = groups.find((one) => one.title === value); made.forEach((one) => one.again()); })
      : () => null;
    made.push(FP.figure({
      title: "How often each head is chosen, by task", controls: pick(),
      draw: (width) => map({ width, cells: group.shares.flatMap((one) => one.shares.map((value, head) => ({ x: head, y: name(one), value }))), xs: d3.range(size()), ys: group.shares.map(name),
        x: "head", cell: 22, show: (value) => (value ? number(100 * value, 0) : ""), title: (d) => `${text(d.y, 120)}\nhead ${d.x}: ${number(100 * d.value, 1)} % of the questions` }),
      caption: () => `${text(group.title, 80)}: percent of the questions whose heads were written down (at most ${Math.max(...Object.values(group.questions))} of a row). Lighter is more often. Where the lines of a row are alike, it takes the same heads whatever is asked.`,
      rows: () => [["row and task", ...d3.range(size()).map(String)], ...group.shares.map((one) => [text(name(one), 120), ...d3.range(size()).map((head) => number(100 * (one.shares[head] || 0), 0))])],
    }));
    if (groups.some((one) => one.agreement))
      made.push(FP.figure({
        title: "Heads that two rows have in common",
        draw: (width) => {
          if (!group.agreement) return null;
          const { table } = group.agreement, called = group.agreement.names.map((one) => names.get(one));
          const pairs = table.flatMap((line, i) => line.flatMap((value, j) => (known(value) ? [{ x: called[j], y: called[i], value }] : [])));
          return map({ width, cells: pairs, xs: called, ys: called, show: (value) => number(100 * value, 0), x: "",
            title: (d) => `${text(d.x, 80)}\n${text(d.y, 80)}\n${number(100 * d.value, 1)} % in common` });
        },
        caption: () => `${text(group.title, 80)}: percent of the smaller choice that the other made, too, mean over the questions that both saw.`,
        rows: () => { const { names: long, table } = group.agreement || { names: [], table: [] }; return [["row", ...long.map((one) => text(one, 60))], ...table.map((line, i) => [text(long[i], 60), ...line.map((value) => number(100 * value, 0))])]; },
      }));
    return made;
  }

  function trend(title, pairs, label, bounds) {
    if (pairs.length < 2) return null;
    return FP.figure({
      title,
      draw: (width) => Plot.plot({
        width, height: 210, marginLeft: 46, marginBottom: 40, style: FP.plotStyle(),
        x: { label: "questions, in the order of tasks and documents", labelAnchor: "center", labelArrow: "none" }, y: { grid: true, label, labelArrow: "none", nice: true },
        marks: [
          bounds ? Plot.ruleY(bounds, { stroke: FP.css("--warn"), strokeDasharray: "4 3" }) : null,
          Plot.dot(pairs, { x: (d) => d[0], y: (d) => d[1], r: 2, fill: FP.css("--accent"), fillOpacity: 0.55 }),
          pairs.length > 20 ? Plot.lineY(pairs, Plot.windowY({ k: Math.max(5, Math.round(pairs.length / 12)), anchor: "middle" }, { x: (d) => d[0], y: (d) => d[1], stroke: FP.css("--ink"), strokeWidth: 1.6 })) : null,
        ],
      }),
      caption: `${bounds ? `Dashed: ${bounds.join(" and ")}, where the rule changes. ` : ""}${pairs.length > 20 ? "Line: moving mean." : ""}`,
      rows: () => [["question", label], ...pairs.map(([x, y]) => [number(x, 0), number(y, 3)])],
    });
  }

  function consensus(one) {
    const qualities = one.qualities, total = Math.max(1, one.selections);
    const branches = Object.entries(one.branches).map(([name, count]) => `${name} ${number((100 * count) / total, 0)} %`).join(", ");
    const boxes = one.selections > 1 && qualities.length ? FP.figure({
      title: "Quality of the strategies",
      draw: (width) => Plot.plot({
        width, height: 70 + 24 * qualities.length, marginLeft: 120, marginBottom: 40, style: FP.plotStyle(),
        x: { grid: true, label: "quality", labelAnchor: "center", labelArrow: "none" }, y: axis({ domain: qualities.map((q) => q.name), tickFormat: (value) => FP.short(value, 17) }),
        marks: [
          Plot.ruleY(qualities, { y: (d) => d.name, x1: (d) => d.quartiles[0], x2: (d) => d.quartiles[4], stroke: FP.css("--muted") }),
          Plot.barX(qualities, { y: (d) => d.name, x1: (d) => d.quartiles[1], x2: (d) => d.quartiles[3], fill: FP.css("--accent"), fillOpacity: 0.45, inset: 3 }),
          Plot.tickX(qualities, { y: (d) => d.name, x: (d) => d.quartiles[2], stroke: FP.css("--ink"), strokeWidth: 2 }),
        ],
      }),
      caption: "Box: the middle half of the questions; line: all of them; mark: the median.",
      rows: () => [["strategy", "least", "first quartile", "median", "third quartile", "largest"], ...qualities.map((q) => [text(q.name, 60), ...q.quartiles.map((v) => number(v, 3))])],
    }) : null;
    return el("div", null, el("p", { class: "note" }, `${one.selections} selections (${one.tasks.map((name) => text(name, 40)).join(", ")}). Branches: ${branches}.`),
      el("div", { class: "plots" }, boxes, trend("Complexity over the questions", one.complexity, "complexity", [0.3, 0.7]),
        trend("Heads chosen over the questions", one.heads, "heads"), trend("Share of diversity heads over the questions", one.diversity, "weight")));
  }

  // one row at a time
  function selections(data) {
    const all = data.heads.consensus;
    if (!all.length) return null;
    const place = el("div", null, consensus(all[0]));
    const pick = all.length > 1 ? FP.field("Row", all.map((one, number) => [String(number), text(one.row, 120)]), "0", (value) => place.replaceChildren(consensus(all[+value]))) : el("p", { dir: "auto" }, text(all[0].row, 120));
    return el("div", null, el("h3", null, "Consensus selection"), pick, place);
  }

  FP.part((data) => {
    for (const heads of data.heads) {
      const one = { tasks: data.tasks, heads };
      const plots = [...study(one), ...alone(one), ...chosen(one)], tables = [best(one)].filter(Boolean);
      const more = [selections(one)].filter(Boolean), damaged = heads.damaged.map((line) => el("p", { class: "warn", dir: "auto" }, text(line)));
      if (!plots.length && !more.length && !tables.length && !damaged.length) continue;
      document.getElementById("heads").hidden = false;
      document.getElementById("heads-body").append(...[
        data.heads.length > 1 ? el("h3", { class: "study", dir: "auto" }, text(heads.of, 120)) : null,
        heads.warning ? el("p", { class: "warn" }, text(heads.warning)) : null, ...damaged, ...tables, el("div", { class: "plots" }, plots), ...more].filter(Boolean));
    }
  });
})();
