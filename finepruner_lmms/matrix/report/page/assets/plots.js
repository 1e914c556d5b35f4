// Scores against what they cost, and what each budget loses.
(function () {
  "use strict";
  const { el, text, number, signed, known } = FP;

  const COSTS = [
    ["ttft", "time to the first token, ms (measured)", (row) => row.measured.first_token_p50, 1e3, true],
    ["decode", "time per further token, ms (measured)", (row) => row.measured.seconds_per_token, 1e3, true],
    ["rate", "questions per second (measured)", (row) => row.measured.questions_per_second, 1, true],
    ["flops", "FLOPs of the prefill", (row) => row.cost && row.cost.macs_3, null, false],
    ["kv", "KV cache after the prefill, MiB", (row) => row.cost && row.cost.kv_bytes, 1 / 2 ** 20, false],
    ["tokens", "visual tokens entering a layer, on average", (row) => (row.cost && row.cost.visual_tokens) || row.tokens, 1, false],
  ];

  const columnsOf = (data) => [["average", "average of all tasks"], ...data.tasks.map((task) => [task.name, text(task.title, 60)])];
  const scoreOf = (row, column) => {
    const one = column === "average" ? row.average : row.scores[column];
    return one && !one.state && known(one.shown) ? one : null;
  };
  const unitOf = (data, column) => {
    const task = data.tasks.find((one) => one.name === column);
    return task && task.unit === "points" ? "points" : task && !task.counts ? "" : "%";
  };
  const symbols = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"];
  const symbol = (row) => symbols[Math.max(0, FP.methods.indexOf(row.method)) % symbols.length];

  function legend(methods) {
    return el("ul", { class: "legend" }, methods.map((name) =>
      el("li", null, el("span", { class: "swatch", style: { background: FP.color(name) }, "aria-hidden": "true" }), el("bdi", null, FP.short(name, 40)))));
  }

  // points that no other point beats in both; `less`: whether less of the cost is better
  function front(points, less) {
    const sorted = [...points].sort((a, b) => (less ? a.x - b.x : b.x - a.x) || b.y - a.y);
    const kept = [];
    for (const point of sorted) if (!kept.length || point.y > kept[kept.length - 1].y) kept.push(point);
    return kept;
  }

  function tradeOff(data, first, kinds) {
    const there = kinds.filter(([, , of]) => data.rows.filter((row) => known(of(row))).length > 1);
    if (!there.length) return null;
    const state = { cost: there.some(([id]) => id === first) ? first : there[0][0], column: data.rows.some((row) => row.average) ? "average" : data.tasks[0].name, where: null };
    const chosen = () => there.find(([id]) => id === state.cost);
    const conditions = [...new Set(data.rows.flatMap((row) => (row.conditions.length === 1 ? row.conditions : [])))];
    state.where = conditions[0] ?? null;
    const scaled = () => chosen()[3] === null ? FP.unit(data.rows.map(chosen()[2])) : null;
    const axis = () => { const unit = scaled(); return unit ? `${chosen()[1]}, ${unit[1]}` : chosen()[1]; };
    function points() {
      const [, , of, factor, measured] = chosen(), unit = factor === null ? 1 / scaled()[0] : factor;
      return data.rows.flatMap((row) => {
        const one = scoreOf(row, state.column), cost = of(row);
        if (!one || !known(cost) || (measured && (row.conditions.length !== 1 || row.conditions[0] !== state.where))) return [];
        return [{ row, x: cost * unit, y: one.shown, low: one.low, high: one.high }];
      });
    }
    const less = () => state.cost !== "rate";
    function better() {
      const task = data.tasks.find((one) => one.name === state.column);
      return !task || task.higher;
    }
    function draw(width) {
      const all = points();
      if (all.length < 2) return null;
      const edge = better() ? front(all, less()) : [];
      const plain = all.filter((point) => point.row.method !== "random");
      const domain = FP.zoomed((plain.length ? plain : all).map((point) => point.y), all.flatMap((point) => [point.low, point.high]));
      const xs = all.map((point) => point.x), wide = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 2.5;
      const line = (point) => ({ x: point.x, y: point.y });
      const drawn = Plot.plot({
        width, height: Math.min(430, Math.max(300, width * 0.6)), marginLeft: 48, marginBottom: 42, marginRight: 16, style: FP.plotStyle(),
        x: { label: axis(), type: wide ? "log" : "linear", inset: 26, grid: true, ticks: wide ? FP.steps(xs) : width < 500 ? 3 : 5, tickFormat: (value) => String(+value.toPrecision(3)), labelAnchor: "center", labelArrow: "none" },
        y: { label: `score, ${unitOf(data, state.column)}`, domain, grid: true, inset: 4, labelArrow: "none" }, clip: true,
        marks: [
          Plot.line(edge.map(line), { x: (d) => d.x, y: (d) => d.y, curve: less() ? "step-after" : "step-before", stroke: FP.css("--muted"), strokeDasharray: "5 4", strokeWidth: 1.5 }),
          Plot.ruleX(all.filter((d) => known(d.low)), { x: (d) => d.x, y1: (d) => Math.max(domain[0], d.low), y2: (d) => Math.min(domain[1], d.high), stroke: (d) => FP.color(d.row), strokeOpacity: 0.4, strokeWidth: 1.5 }),
          Plot.dot(all, { x: (d) => d.x, y: (d) => d.y, r: 5, fill: (d) => FP.color(d.row), stroke: FP.css("--panel"), symbol: (d) => symbol(d.row), title: (d) => `${FP.label(d.row)}\n${number(d.y, 1)} at ${+d.x.toPrecision(4)}`, tip: { fill: FP.css("--panel"), stroke: FP.css("--line") } }),
        ],
        color: { type: "identity" }, symbol: { type: "identity" },
      });
      FP.labelPoints(drawn, edge.filter((d) => d.y >= domain[0]).map((d) => ({ x: d.x, y: d.y, label: FP.short(FP.brief(d.row.label), 24), color: FP.color(d.row) })));
      return drawn;
    }
    const made = FP.figure({
      title: kinds === MEASURED ? "Score against measured speed" : "Score against computation",
      controls: [
        there.length > 1 ? FP.field("Cost", there.map(([id, name]) => [id, name]), state.cost, (value) => { state.cost = value; made.again(); }) : null,
        FP.field("Score", columnsOf(data), state.column, (value) => { state.column = value; made.again(); }),
        kinds === MEASURED && conditions.length > 1 ? FP.field("Measured on", conditions.map((one) => [one, text(one, 90)]), state.where, (value) => { state.where = value; made.again(); }) : null,
      ],
      draw,
      caption: () => {
        const hidden = data.rows.filter((row) => scoreOf(row, state.column)).length - points().length;
        return [
          better() ? "Dashed: the Pareto front, rows that no other row beats in both; these are named." : "",
          "Bars: 95 % intervals over images. The axis is zoomed on what is not random.",
          kinds === MEASURED && state.where ? `Measured on ${text(state.where, 200)}.` : "",
          hidden > 0 ? `${hidden} ${hidden > 1 ? "rows have" : "row has"} no such cost, or ${hidden > 1 ? "theirs were" : "its was"} measured under other conditions.` : "",
        ].filter(Boolean).join(" ");
      },
      rows: () => [["row", axis(), "score", "95 % interval", "on the front"],
        ...(() => { const all = points(), edge = new Set(front(all, less())); return all.map((d) => [FP.label(d.row), String(+d.x.toPrecision(4)), number(d.y, 2), FP.interval(d), edge.has(d) && better() ? "yes" : ""]); })()],
    });
    return made;
  }

  const MEASURED = COSTS.filter(([, , , , measured]) => measured), COUNTED = COSTS.filter(([, , , , measured]) => !measured);

  // rows that differ in their budget alone are a curve
  function curves(data, column) {
    const found = new Map();
    for (const row of data.rows) {
      const one = column === "average" ? row.average : row.scores[column];
      const drop = one && one.drop;
      // what shows no visual token at all has no place on a scale of budgets
      if (!drop || !known(drop.shown) || !row.tokens || row.imported) continue;
      const given = Object.entries(row.given).map(([name, value]) => `${name}=${value}`).join(" ");
      const name = [row.study, row.method, FP.brief(given)].filter(Boolean).join(" ");
      if (!found.has(name)) found.set(name, []);
      found.get(name).push({ name, row, x: row.tokens, y: drop.shown, low: drop.low, high: drop.high, drop });
    }
    for (const curve of found.values()) curve.sort((a, b) => a.x - b.x);
    return [...found.values()];
  }

  function drops(data) {
    const state = { column: curves(data, "average").length ? "average" : (data.tasks.find((task) => curves(data, task.name).length) || {}).name };
    if (!state.column) return null;
    const band = (curve) => curve[0].row.method === "random" || curve[0].row.method === "uniform";
    function draw(width) {
      const all = curves(data, state.column);
      if (!all.length) return null;
      const random = all.filter((curve) => curve[0].row.method === "random"), plain = all.filter((curve) => curve[0].row.method !== "random");
      const points = plain.flat(), shown = points.length ? points : random.flat();
      const domain = FP.zoomed([0, ...shown.map((d) => d.y)], shown.flatMap((d) => [d.low, d.high]), 0.5);
      const ticks = [...new Set(all.flat().map((d) => d.x))].sort((a, b) => a - b), narrow = width < 520;
      const most = narrow ? 16 : 26, several = (method) => all.filter((curve) => curve[0].row.method === method).length > 1;
      // the colour says the method, where it has several curves
      const called = (curve) => FP.short(several(curve[0].row.method) && curve[0].name.startsWith(`${curve[0].row.method} `) ? curve[0].name.slice(curve[0].row.method.length + 1) : curve[0].name, most);
      const marginRight = 14 + Math.max(50, 6.6 * Math.max(...all.map((curve) => called(curve).length)));
      const ends = (curve) => curve[curve.length - 1];
      const drawn = Plot.plot({
        width, height: Math.min(460, Math.max(320, width * 0.62)), marginLeft: 46, marginBottom: 42, marginRight, style: FP.plotStyle(), clip: true,
        x: ticks.length > 1 ? { type: "log", base: 2, domain: [ticks[0], ticks[ticks.length - 1]], ticks, tickFormat: (value) => `${+value.toFixed(1)}`, label: narrow ? "visual tokens (log scale)" : "visual tokens entering a layer, on average (log scale)", labelAnchor: "center", labelArrow: "none", inset: 14 }
          : { domain: [ticks[0] - 1, ticks[0] + 1], ticks, tickFormat: (value) => `${+value.toFixed(1)}`, label: "visual tokens entering a layer, on average", labelAnchor: "center", labelArrow: "none" },
        y: { domain, grid: true, label: `difference to vanilla, ${unitOf(data, state.column) === "points" ? "points of MME" : "percentage points"}`, labelArrow: "none" },
        marks: [
          ...random.map((curve) => Plot.areaY(curve.map((d) => ({ x: d.x, low: Math.max(domain[0], d.low ?? d.y), high: Math.max(domain[0], d.high ?? d.y) })), { x: (d) => d.x, y1: (d) => d.low, y2: (d) => d.high, fill: FP.css("--muted"), fillOpacity: 0.22 })),
          ...random.map((curve) => Plot.line(curve, { x: (d) => d.x, y: (d) => d.y, stroke: FP.color("random"), strokeOpacity: 0.7 })),
          Plot.ruleY([0], { stroke: FP.css("--ink"), strokeDasharray: "4 3" }),
          ...plain.map((curve) => Plot.line(curve, { x: (d) => d.x, y: (d) => d.y, stroke: FP.color(curve[0].row), strokeWidth: 1.8 })),
          Plot.ruleX(points.filter((d) => known(d.low)), { x: (d) => d.x, y1: (d) => Math.max(domain[0], d.low), y2: (d) => Math.min(domain[1], d.high), stroke: (d) => FP.color(d.row), strokeOpacity: plain.length > 6 ? 0.18 : 0.4 }),
          Plot.dot(points, { x: (d) => d.x, y: (d) => d.y, r: 4, fill: (d) => FP.color(d.row), stroke: FP.css("--panel"), symbol: (d) => symbol(d.row), title: (d) => `${FP.label(d.row)}\n${signed(d.y, 2)} (${FP.interval(d)})`, tip: { fill: FP.css("--panel"), stroke: FP.css("--line") } }),
        ],
        color: { type: "identity" }, symbol: { type: "identity" },
      });
      const named = all.length > 14 ? [...plain].sort((a, b) => ends(b).y - ends(a).y).slice(0, 12) : plain;
      const labels = [...named, ...random].map((curve) => ({ x: ends(curve).x, y: ends(curve).y, label: called(curve), color: FP.color(curve[0].row) }));
      if (domain[1] > 0) labels.push({ x: ticks[ticks.length - 1], y: 0, label: "vanilla", color: FP.color("vanilla") });
      FP.labelEnds(drawn, labels, width - marginRight + 12);
      return drawn;
    }
    const made = FP.figure({
      title: "What each budget loses: difference to vanilla",
      controls: FP.field("Score", columnsOf(data).filter(([name]) => curves(data, name).length), state.column, (value) => { state.column = value; made.again(); }),
      draw,
      caption: () => {
        const all = curves(data, state.column), random = all.some(band);
        return `Paired over the same images; bars are 95 % intervals.${random ? " Grey band: random, with its interval (over images and seeds)." : ""} The axis is zoomed on what is not random${all.length > 14 ? "; the twelve highest curves are named" : ""}.`;
      },
      rows: () => [["row", "tokens", "difference", "95 % interval", "won", "lost"],
        ...curves(data, state.column).flat().map((d) => [FP.label(d.row), String(+d.x.toFixed(1)), signed(d.y, 2), FP.interval(d, 2), number(d.drop.won, 0), number(d.drop.lost, 0)])],
    });
    return made;
  }

  FP.part((data) => {
    const section = document.getElementById("plots");
    const made = [drops(data), tradeOff(data, "ttft", MEASURED), tradeOff(data, "flops", COUNTED)].filter(Boolean);
    if (!made.length) return;
    section.hidden = false;
    const body = document.getElementById("plots-body"), place = el("div", null, legend(FP.methods));
    FP.onRedraw(() => place.replaceChildren(legend(FP.methods)));
    body.append(place, el("div", { class: "plots" }, made));
    if (!data.rows.some((row) => MEASURED.some(([, , of]) => known(of(row)))))
      body.append(el("p", { class: "empty" }, "Speed was not measured of single rows here: cells that are answered at once share their time. With fan_out: off under launch in the matrix file, each is measured alone."));
  });
})();
