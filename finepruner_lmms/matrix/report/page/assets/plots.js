// The plots: what pruning loses at each budget, and what accuracy costs in measured time and in operations.
(function () {
  "use strict";
  const { el, text, known, signed, number } = FP;
  const WIDE = 560, HIGH = 340;

  const short = (name, most) => (name.length > most ? `${text(name.slice(0, most - 1))}…` : text(name));

  // the rows of a method that differ in their budget alone make a curve
  function curves(rows) {
    const found = new Map();
    for (const row of rows) {
      if (row.method === "vanilla" || row.imported || !known(row.tokens)) continue;
      const given = Object.entries(row.given).map(([name, value]) => `${name}=${value}`);
      const name = [row.method, ...given].join(" ");
      if (!found.has(name)) found.set(name, []);
      found.get(name).push(row);
    }
    for (const curve of found.values()) curve.sort((a, b) => a.tokens - b.tokens);
    return found;
  }

  // the ends of curves by name, moved apart where they would lie on each other
  function spreadLabels(ends, low, high, pixels) {
    const step = ((high - low) / pixels) * 13;
    const sorted = [...ends].sort((a, b) => a.y - b.y);
    let above = -Infinity;
    for (const one of sorted) above = one.place = Math.max(one.y, above + step);
    return sorted;
  }

  const value = (row, task) => (task === "average" ? row.average && row.average.shown : row.scores[task] && row.scores[task].percent);

  function drops(data, task) {
    const whole = data.rows.find((row) => row.method === "vanilla" && known(value(row, task)));
    if (!whole) return null;
    const base = value(whole, task), points = [], band = [], ends = [];
    for (const [name, curve] of curves(data.rows)) {
      const shown = curve.filter((row) => known(value(row, task)));
      const lines = shown.map((row) => ({ name, row, x: row.tokens, y: value(row, task) - base }));
      if (!lines.length) continue;
      if (lines[0].row.method === "random") {
        for (const one of lines) {
          const error = task === "average" ? one.row.average.error : one.row.scores[task].error;
          const half = Math.max(one.row.spread || 0, task === "average" ? error || 0 : 0);
          band.push({ x: one.x, low: one.y - half, high: one.y + half, y: one.y });
        }
      } else {
        points.push(...lines);
      }
      const end = lines[lines.length - 1];
      ends.push({ name, x: end.x, y: end.y, row: end.row });
    }
    if (!points.length && !band.length) return null;
    // zoomed on what is not random: chance alone may lie far below
    const inside = points.length ? points.map((one) => one.y) : band.map((one) => one.y);
    const high = Math.max(0, ...inside), low = Math.min(0, ...inside), pad = (high - low || 1) * 0.12;
    const [from, to] = [low - pad, high + pad];
    const labels = spreadLabels(ends.filter((end) => end.y >= from), from, to, HIGH - 60);
    const ticks = [...new Set([...points, ...band].map((one) => one.x))].sort((a, b) => a - b);
    return Plot.plot({
      width: WIDE, height: HIGH, marginRight: 170, marginBottom: 40, clip: true,
      style: { background: "transparent", fontSize: "12px" },
      x: { type: "log", base: 2, ticks, tickFormat: (tick) => number(tick, 0), label: "visual tokens entering a decoder layer, on average" },
      y: { domain: [from, to], label: "points to vanilla", grid: true, tickFormat: (tick) => signed(tick, Math.abs(to - from) < 5 ? 1 : 0) },
      marks: [
        Plot.ruleY([0], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.areaY(band, { x: "x", y1: "low", y2: "high", fill: "currentColor", fillOpacity: 0.14, clip: true }),
        Plot.lineY(band, { x: "x", y: "y", stroke: "currentColor", strokeOpacity: 0.5, clip: true }),
        Plot.lineY(points, { x: "x", y: "y", z: "name", stroke: (one) => FP.color(one.row), strokeWidth: 2, clip: true }),
        Plot.dot(points, { x: "x", y: "y", fill: (one) => FP.color(one.row), r: 3.5, clip: true,
          title: (one) => `${text(one.row.label, 120)}: ${signed(one.y, 2)}` }),
        Plot.text(labels, { x: "x", y: "place", text: (one) => short(one.name, 28), textAnchor: "start", dx: 9, fill: (one) => FP.color(one.row), clip: false }),
      ],
    });
  }

  // accuracy against a cost, with the rows that no other row beats in both
  function pareto(data, cost, label, show) {
    const points = [];
    for (const row of data.rows) {
      const x = cost(row), y = row.average && row.average.shown;
      if (known(x) && known(y)) points.push({ row, x, y });
    }
    if (new Set(points.map((one) => one.x)).size < 2) return null;
    points.sort((a, b) => a.x - b.x || b.y - a.y);
    let best = -Infinity;
    for (const one of points) {
      one.front = one.y > best;
      best = Math.max(best, one.y);
    }
    const front = points.filter((one) => one.front);
    const high = Math.max(...points.map((one) => one.y)), low = Math.min(...points.map((one) => one.y));
    const labels = spreadLabels(front, low, high || 1, HIGH - 60);
    return Plot.plot({
      width: WIDE, height: HIGH, marginRight: 150, marginBottom: 40, style: { background: "transparent", fontSize: "12px" },
      x: { label, tickFormat: show, nice: true }, y: { label: "mean score, % of the maximum", grid: true, nice: true },
      marks: [
        Plot.lineY(front, { x: "x", y: "y", stroke: "currentColor", strokeOpacity: 0.4, curve: "step-after" }),
        Plot.dot(points, { x: "x", y: "y", r: 4, fill: (one) => FP.color(one.row), fillOpacity: (one) => (one.front ? 1 : 0.35),
          title: (one) => `${text(one.row.label, 120)}: ${number(one.y, 1)} %, ${show(one.x)}` }),
        Plot.text(labels, { x: "x", y: "place", text: (one) => short(one.row.label, 26), textAnchor: "start", dx: 8, fill: (one) => FP.color(one.row) }),
      ],
    });
  }

  function figure(drawn, title, note) {
    if (!drawn) return null;
    for (const part of drawn.querySelectorAll("[aria-label]")) part.removeAttribute("aria-label"); // it is one image
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", title);
    return el("figure", { class: "panel plot" }, el("figcaption", null, el("strong", null, title), note ? el("span", { class: "note" }, ` ${note}`) : null),
      FP.scroll(`${title}: plot`, drawn));
  }

  FP.part((data) => {
    const section = document.getElementById("plots"), body = document.getElementById("plots-body");
    const shown = ["average", ...data.tasks.filter((task) => task.counts).map((task) => task.name)];
    const tasks = shown.filter((task) => data.rows.some((row) => row.method !== "vanilla" && known(value(row, task))));
    let task = tasks[0];
    function draw() {
      const time = (row) => row.measured && row.measured.first_token_p50;
      const found = [
        figure(drops(data, task), "Drop to vanilla against the budget",
          "Zoomed on the methods; grey: random, with the spread of its seeds."),
        figure(pareto(data, (row) => row.cost && row.cost.macs_3, "operations of a prefill (multiply-accumulates)", (x) => `${number(x / 1e9, 2)} G`),
          "Accuracy against operations", "The line is the Pareto front; what is beaten in both is pale."),
        figure(pareto(data, time, "time to the first token, median of batches", (x) => `${number(1000 * x, 1)} ms`),
          "Accuracy against measured time", "Rows compare where they ran in the same conditions (below the leaderboard)."),
      ].filter(Boolean);
      section.hidden = !found.length;
      const names = tasks.map((name) => [name, name === "average" ? "average" : text(data.tasks.find((one) => one.name === name).title, 60)]);
      const pick = FP.field("Drop of", names, task, (chosen) => { task = chosen; draw(); });
      body.replaceChildren(el("div", { class: "controls no-print" }, pick), el("div", { class: "plots" }, found));
    }
    draw();
    FP.onRedraw(draw);
  });
})();
