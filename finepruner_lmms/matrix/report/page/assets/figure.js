// A plot in its frame: redrawn where the page gets wider or darker, with a text for those who cannot see it, its data
// as a table, and names written where curves end.
(function () {
  "use strict";
  const { el, svg, text, number, known } = FP;

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // `draw(width)` gives an SVG element, or null where there is nothing to see; `rows()` the data: [head, ...lines]
  function figure({ title, controls, draw, rows, caption }) {
    const place = el("div", { class: "drawn" }), data = el("div", null), note = el("figcaption", null);
    const whole = el("figure", { class: "panel" }, el("h3", null, title), controls ? el("div", { class: "controls no-print" }, controls) : null,
      place, note, el("details", { class: "no-print", on: { toggle: (event) => { if (event.target.open) fill(); } } }, el("summary", null, "Data of this plot"), data));
    let width = 0;
    function fill() {
      const [head, ...lines] = rows();
      data.replaceChildren(FP.scroll(`Data of: ${title}`, el("table", { class: "numbers" },
        el("thead", null, el("tr", null, head.map((name, place) => el("th", { scope: "col", class: place ? "" : "text" }, name)))),
        el("tbody", null, lines.map((line) => el("tr", null, line.map((value, place) =>
          el(place ? "td" : "th", { scope: place ? null : "row", class: place ? "" : "text", dir: "auto" }, value))))))));
    }
    function again() {
      width = place.clientWidth;
      if (width < 50) return; // not laid out
      const drawn = draw(Math.min(width, 1100));
      const said = typeof caption === "function" ? caption() : caption;
      note.textContent = said || "";
      if (drawn) {
        // Plot names its marks for programs; a picture with one name has no others inside
        for (const part of drawn.querySelectorAll("g[aria-label]")) {
          part.dataset.part = part.getAttribute("aria-label");
          part.removeAttribute("aria-label");
        }
        drawn.setAttribute("role", "img");
        drawn.setAttribute("aria-label", `${title}. ${said || ""} Its data follow as a table.`);
        place.replaceChildren(drawn);
      } else place.replaceChildren(el("p", { class: "empty" }, "There is nothing to draw for this choice."));
      if (whole.querySelector("details").open) fill();
    }
    new ResizeObserver(() => { if (Math.abs(place.clientWidth - width) > 4) again(); }).observe(place);
    FP.onRedraw(again);
    whole.again = again;
    return whole;
  }

  // names at the right end of curves, moved apart where they would lie on each other; `ends`: {x, y, label, color}, in data
  function labelEnds(drawn, ends, right) {
    const y = drawn.scale("y"), x = drawn.scale("x"), height = 13;
    const range = y.range, low = Math.min(...range), high = Math.max(...range);
    const placed = ends.map((end) => ({ ...end, at: Math.min(high, Math.max(low, y.apply(end.y))), from: y.apply(end.y) })).sort((a, b) => a.at - b.at);
    for (let place = 1; place < placed.length; place += 1) placed[place].at = Math.max(placed[place].at, placed[place - 1].at + height);
    const over = placed.length ? placed[placed.length - 1].at - (high + 6) : 0;
    if (over > 0) for (let place = placed.length - 1, most = high + 6; place >= 0; place -= 1, most -= height) placed[place].at = Math.min(placed[place].at, most);
    const room = svg("g", { "font-size": "11.5", "text-anchor": "start" });
    for (const end of placed) {
      const start = x.apply(end.x);
      if (end.from >= low - 1 && end.from <= high + 1)
        room.append(svg("path", { d: `M${start + 5},${end.from}L${right - 4},${end.at}`, stroke: end.color, "stroke-opacity": ".35", fill: "none" }));
      room.append(svg("text", { x: right, y: end.at, dy: ".32em", fill: end.color }, end.label));
    }
    (drawn.tagName === "svg" ? drawn : drawn.querySelector("svg")).append(room);
  }

  // names above points, those left out that would lie on an earlier one; `points`: {x, y, label, color}, in data
  function labelPoints(drawn, points) {
    const x = drawn.scale("x"), y = drawn.scale("y"), taken = [], high = Math.max(...x.range);
    const room = svg("g", { "font-size": "10.5", "text-anchor": "middle", stroke: css("--panel"), "stroke-width": "4", "paint-order": "stroke", "stroke-linejoin": "round" });
    for (const point of points) {
      const half = 3.1 * point.label.length, at = Math.min(x.apply(point.x), high + 14 - half), above = y.apply(point.y) - 11;
      if (taken.some((one) => Math.abs(one.at - at) < one.half + half + 4 && Math.abs(one.above - above) < 12)) continue;
      taken.push({ at, above, half });
      room.append(svg("text", { x: at, y: above, fill: point.color }, point.label));
    }
    (drawn.tagName === "svg" ? drawn : drawn.querySelector("svg")).append(room);
  }

  // ends of an axis that hold all values, and as much of their intervals as does not flatten them
  function zoomed(values, ends, more = 0.8) {
    const kept = values.filter(known);
    if (!kept.length) return [0, 1];
    const low = Math.min(...kept), high = Math.max(...kept), room = Math.max((high - low) * more, 0.5);
    const near = ends.filter(known).filter((end) => end > low - room && end < high + room);
    const all = [low, high, ...near], least = Math.min(...all), most = Math.max(...all), pad = Math.max(0.06 * (most - least), 0.2);
    return [least - pad, most + pad];
  }

  // Plot draws texts as texts; its options never take a text of a study as the name of a field
  const style = () => ({ background: "transparent", color: css("--ink"), fontSize: "12px", fontFamily: "inherit" });
  // the longest beginning that fits: names of a study may be of any length
  const short = (value, most = 30) => { const shown = text(value, 300); return [...shown].length > most ? `${[...shown].slice(0, most - 1).join("")}…` : shown; };

  // a unit in which the largest of these numbers has at most three digits before the point
  function unit(values) {
    const most = Math.max(...values.filter(known).map(Math.abs), 0);
    return [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => most >= size) || [1, ""];
  }

  FP.unit = unit;
  FP.figure = figure;
  FP.labelEnds = labelEnds;
  FP.labelPoints = labelPoints;
  FP.zoomed = zoomed;
  FP.plotStyle = style;
  FP.css = css;
  FP.short = short;
  FP.interval = (one, digits = 1) => (known(one.low) && known(one.high) ? `${number(one.low, digits)} to ${number(one.high, digits)}` : "–");
})();
