// The questions behind a score: two rows side by side, what changed between them, and what each kept of the picture.
(function () {
  "use strict";
  const F = (FP.flip = FP.flip || {});
  const { el, text } = FP;
  const WAYS = [["changed", "Changed"], ["second", "Only second right"], ["first", "Only first right"], ["same", "Unchanged"]];
  const state = { entry: null, first: null, second: null, way: "changed", category: "", place: 0, layer: null, heads: {}, masked: true, boxed: true };
  let index = null, body = null, loaded = null, list = [], turn = 0;
  const parts = {};

  const entryOf = (task) => (FP.questions ? FP.questions.tasks.find((entry) => entry.task === task) : undefined);
  const flat = (value, most) => text(String(value ?? "").replace(/\s+/g, " ").trim(), most);
  const lines = (value) => String(value ?? "").split("\n").map((line) => text(line)).join("\n");
  const label = (number) => text(index.rows[number].label, 80);
  const mark = (value) => {
    const values = loaded.task.values, top = loaded.entry.higher ? values[values.length - 1] : values[0];
    const low = loaded.entry.higher ? values[0] : values[values.length - 1];
    if (value === null) return el("span", { class: "flip-mark" }, "no score");
    const plain = values.length <= 2 && values.every((one) => one === 0 || one === 1);
    const shown = plain ? "" : ` ${FP.number(value, Number.isInteger(value) ? 0 : 2)}`;
    if (value === top && value !== low) return el("span", { class: "flip-mark good" }, `✓${shown || " right"}`);
    if (value === low && value !== top) return el("span", { class: "flip-mark bad" }, `✗${shown || " wrong"}`);
    if (value === top) return el("span", { class: `flip-mark ${value ? "good" : "bad"}` }, `${value ? "✓" : "✗"}${shown || (value ? " right" : " wrong")}`);
    return el("span", { class: "flip-mark mid" }, `≈${shown}`);
  };
  const tone = (made) => (made.classList.contains("good") ? "good" : made.classList.contains("bad") ? "bad" : "");

  // -- what is shown ----------------------------------------------------------------------------------------------

  async function load(fresh = false) {
    const mine = ++turn, entry = state.entry;
    parts.view.setAttribute("aria-busy", "true");
    const [task, first, second] = await Promise.all([
      FP.block(entry.block), FP.block(`${entry.block}/${state.first}`), FP.block(`${entry.block}/${state.second}`)]);
    if (mine !== turn) return;
    loaded = { entry, task, first, second, counts: F.counts(entry, task, first, second) };
    if (!task.categories.includes(state.category)) state.category = "";
    if (fresh && !listed().length) state.way = "same";
    controls();
    summary();
    choose();
  }

  function change(shown) { return F.change(loaded.entry, loaded.task, loaded.first, loaded.second, shown.at); }

  function listed() {
    const wanted = { changed: (way) => way === 1 || way === -1, second: (way) => way === 1, first: (way) => way === -1, same: (way) => way === 0 }[state.way];
    const kind = loaded.task.categories.indexOf(state.category);
    const found = [];
    loaded.task.shown.forEach((shown, place) => {
      if (wanted(change(shown)) && (kind < 0 || loaded.task.category[shown.at] === kind)) found.push(place);
    });
    // first those of which something can be seen, where a study recorded fewer than are shown
    const seen = (place) => Number(!loaded.first.traces[place] && !loaded.second.traces[place]);
    return found.sort((a, b) => seen(a) - seen(b) || a - b);
  }

  function choose(keep) {
    list = listed();
    if (!keep) state.place = 0;
    state.place = Math.max(0, Math.min(state.place, list.length - 1));
    drawList();
    drawQuestion();
  }

  function go(place) {
    if (!list.length) return;
    state.place = Math.max(0, Math.min(place, list.length - 1));
    drawQuestion();
    for (const button of parts.list.querySelectorAll("button")) {
      const here = Number(button.dataset.place) === state.place;
      if (here) { button.setAttribute("aria-current", "true"); nearest(button); } else button.removeAttribute("aria-current");
    }
    FP.announce(`Question ${state.place + 1} of ${list.length}`);
  }

  // scrolls the list alone, never the page
  function nearest(button) {
    const box = parts.list, top = button.offsetTop - box.offsetTop;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + button.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + button.offsetHeight - box.clientHeight;
  }

  // -- controls and counts ----------------------------------------------------------------------------------------

  function controls() {
    const rows = state.entry.rows.map((number) => [String(number), label(number)]);
    const pick = (side) => (value) => {
      const other = side === "first" ? "second" : "first";
      if (Number(value) === state[other]) state[other] = state[side];
      state[side] = Number(value);
      load();
    };
    const tasks = index.tasks.map((entry) => [entry.block, text(entry.title, 60)]);
    const kinds = loaded.task.categories.map((name) => [name, text(name || "(none)", 60)]);
    const focused = document.activeElement && document.activeElement.closest("#flip .field");
    const which = focused ? [...parts.controls.children].indexOf(focused) : -1;
    parts.controls.replaceChildren(
      FP.field("Task", tasks, state.entry.block, (block) => { open(index.tasks.find((one) => one.block === block)); load(); }),
      FP.field("First row", rows, String(state.first), pick("first")),
      FP.field("Second row", rows, String(state.second), pick("second")),
      el("button", { type: "button", title: "x", on: { click: swap } }, "Swap"),
      ...(kinds.length ? [FP.field("Category", [["", "all"], ...kinds], state.category, (name) => { state.category = name; summary(); choose(); })] : []));
    if (which >= 0 && parts.controls.children[which]) parts.controls.children[which].querySelector("select")?.focus();
  }

  function swap() {
    [state.first, state.second] = [state.second, state.first];
    state.way = { first: "second", second: "first" }[state.way] || state.way;
    load();
  }

  function summary() {
    const { whole, kinds } = loaded.counts;
    const of = state.category ? kinds[loaded.task.categories.indexOf(state.category)] : whole;
    const shown = loaded.task.shown.filter((one) => !state.category || loaded.task.categories[loaded.task.category[one.at]] === state.category);
    const graded = loaded.task.values.length > 2, better = graded ? "better" : "right";
    const ways = { changed: of.first + of.second, second: of.second, first: of.first, same: of.right + of.wrong };
    const here = Object.fromEntries(Object.keys(ways).map((way) => [way, 0]));
    for (const one of shown) {
      const way = change(one);
      if (way === 1) here.second++;
      else if (way === -1) here.first++;
      else if (way === 0) here.same++;
      if (way) here.changed++;
    }
    const names = { changed: "Changed", second: `Only ${label(state.second)} ${better}`, first: `Only ${label(state.first)} ${better}`, same: "Unchanged" };
    parts.counts.replaceChildren(
      el("strong", null, String(ways.changed)), ` of ${of.questions} questions changed: `,
      el("bdi", null, label(state.second)), ` is ${better} in ${of.second} that `, el("bdi", null, label(state.first)),
      ` is not, and the other way round in ${of.first}. `,
      el("span", { class: "note" }, shown.length < of.questions
        ? `${shown.length} questions, chosen at random before anything was answered, are shown with their pictures; ${here.changed} of these changed.` : ""));
    parts.ways.replaceChildren(...WAYS.map(([way]) =>
      el("button", { type: "button", class: "chip", dir: "auto", "aria-pressed": String(state.way === way), dataset: { way },
        on: { click: () => { state.way = way; summary(); choose(); parts.ways.querySelector(`[data-way="${way}"]`).focus(); } } },
        `${names[way]} (${here[way]})`)));
    tables(kinds);
  }

  function tables(kinds) {
    const head = (...names) => el("thead", null, el("tr", null, names.map((name, place) => el("th", { scope: "col", class: place ? null : "text", dir: "auto" }, name))));
    const line = (name, ...values) => el("tr", null, el("th", { scope: "row", class: "text", dir: "auto" }, name), values.map((value) => el("td", { class: "numbers" }, String(value))));
    const made = [];
    if (kinds.length)
      made.push(el("table", null, el("caption", null, "Over all questions"),
        head("Category", "questions", `only ${label(state.first)}`, `only ${label(state.second)}`, "both right", "neither better"),
        el("tbody", null, kinds.map((kind) => line(text(kind.name || "(none)", 60), kind.questions, kind.first, kind.second, kind.right, kind.wrong)))));
    const shares = ["first", "second"].map((side) => [label(state[side]), F.evidence(loaded.entry, loaded.task, loaded[side])]);
    const mean = (values) => (values.length ? `${FP.number((100 * values.reduce((a, b) => a + b, 0)) / values.length, 0)} % (${values.length})` : "–");
    if (shares.some(([, of]) => of.all.length))
      made.push(el("table", null, el("caption", null, "Evidence kept in the end, mean over the shown questions that have some"),
        head("Row", "all", "where right", "where not"), el("tbody", null, shares.map(([name, of]) => line(name, mean(of.all), mean(of.right), mean(of.wrong))))));
    parts.tables.replaceChildren(...(made.length ? [el("details", null, el("summary", null, "Counts by category, and evidence kept"),
      FP.scroll("Counts by category and evidence kept", el("div", { class: "flip-tables" }, made)))] : []),
      ...loaded.task.notes.map((note) => el("p", { class: "note", dir: "auto" }, text(note))));
  }

  // -- the list and the question ----------------------------------------------------------------------------------

  const said = (row, place) => (row.answers[place] === null ? "–" : flat(row.answers[place], 60) || "(nothing)");

  function drawList() {
    const item = (at, place) => {
      const shown = loaded.task.shown[at];
      return el("li", null, el("button", { type: "button", dataset: { place }, "aria-current": place === state.place ? "true" : null, on: { click: () => go(place) } },
        el("span", { class: "asked", dir: "auto" }, flat(shown.question || `question ${shown.number}`, 160)),
        el("span", { class: "said" }, ["first", "second"].map((side) => {
          const value = F.verdict(loaded.task, loaded[side], shown.at), made = mark(value);
          return el("span", { class: tone(made), dir: "auto" }, `${made.textContent.slice(0, 1)} ${said(loaded[side], at)}`);
        }))));
    };
    parts.list.replaceChildren(list.length ? el("ul", null, list.map(item))
      : el("p", { class: "empty" }, "None of the shown questions is of this kind."));
    parts.list.scrollTop = 0;
  }

  function drawQuestion() {
    parts.view.removeAttribute("aria-busy");
    parts.view.hidden = !list.length;
    if (!list.length) return;
    const at = list[state.place], shown = loaded.task.shown[at];
    const kind = loaded.task.categories[loaded.task.category[shown.at]];
    parts.question.replaceChildren(
      el("div", { class: "flip-top" },
        el("button", { type: "button", disabled: state.place === 0, title: "←", on: { click: () => step(-1) } }, "Previous"),
        el("button", { type: "button", disabled: state.place === list.length - 1, title: "→", on: { click: () => step(1) } }, "Next"),
        el("span", { class: "where numbers" }, `${state.place + 1} of ${list.length} · question ${shown.number}`, kind ? [" · ", el("bdi", null, text(kind, 60))] : null)),
      el("p", { class: "flip-question", dir: "auto", tabindex: "0" }, shown.question ? lines(shown.question) : "Its text is not at hand."),
      el("p", { class: "flip-target", dir: "auto" }, el("span", { class: "note" }, "Right answer: "), el("bdi", null, lines(shown.target))));
    const sides = ["first", "second"].map((side) => ({ side, row: loaded[side], trace: loaded[side].traces[at] }));
    for (const one of sides) one.stages = one.trace ? F.stages(one.trace) : [];
    const layers = [...new Set(sides.flatMap((one) => one.stages.map((stage) => stage.layer)))].sort((a, b) => a - b);
    if (state.layer !== null && state.layer !== "last" && !layers.includes(state.layer)) state.layer = "last";
    if (state.layer === null) state.layer = "last";
    parts.layers = layers;
    drawStages(layers);
    parts.pair.replaceChildren(...sides.map((one) => panel(one, at, shown)));
    for (const side of sides) paint(side, shown);
    const merged = sides.some((one) => one.stages.some((stage) => stage.merged)), mapped = sides.some((one) => one.stages.some((stage) => stage.maps.length));
    const legend = (name, words) => el("li", null, el("span", { class: name, "aria-hidden": "true" }), words);
    parts.legend.replaceChildren(
      layers.length ? legend("dropped", "dropped") : "", merged ? legend("merged", "merged into new tokens") : "",
      shown.boxes ? legend("evidence", "evidence: what the question is about") : "", mapped ? legend("heat", "attention of a head, of its own largest value") : "");
    parts.sides = sides;
  }

  const current = () => (state.layer === "last" ? parts.layers[parts.layers.length - 1] : state.layer);

  function drawStages(layers) {
    const now = current();
    const button = (layer, words) => el("button", { type: "button", class: "chip", "aria-pressed": String(layer === now || (layer === -1 && now === -1)), dataset: { layer },
      on: { click: () => stage(layer) } }, words);
    parts.stages.replaceChildren(...(layers.length ? [el("span", { class: "chips-label" }, "Tokens that enter"), button(-1, "the model"),
      ...layers.map((layer) => button(layer, layer ? `layer ${layer}` : "layer 0, after the encoder"))] : []));
  }

  function stage(layer, refocus = true) {
    state.layer = layer === parts.layers[parts.layers.length - 1] ? "last" : layer;
    drawQuestion();
    if (refocus) parts.stages.querySelector(`[data-layer="${layer}"]`)?.focus();
  }

  const stageNow = (stages) => stages.filter((one) => one.layer <= (current() ?? -1)).pop() || null;

  function panel(one, place, shown) {
    const value = F.verdict(loaded.task, one.row, shown.at), made = mark(value);
    one.canvas = el("canvas", { role: "img" });
    one.tokens = el("p", { class: "flip-tokens" });
    one.heads = el("div", { class: "flip-heads" });
    one.name = label(state[one.side]);
    return el("article", { class: "flip-side panel", "aria-label": one.name },
      el("h3", { dir: "auto" }, one.name),
      el("div", { class: `flip-answer ${tone(made)}`, tabindex: "0", role: "group", "aria-label": `Answer of ${one.name}` }, made, " ",
        el("bdi", null, one.row.answers[place] === null ? "not asked" : lines(one.row.answers[place]) || "(nothing)")),
      one.canvas, one.tokens, one.heads);
  }

  function sentence(one, stage) {
    if (!one.trace) return "What it kept was not recorded.";
    if (!stage) return `all ${one.trace.n} tokens`;
    const percent = (share) => `${FP.number(100 * share, 0)} %`;
    const made = stage.made ? ` and ${stage.made} new ${stage.made === 1 ? "token" : "tokens"}` : "";
    const merged = stage.merged ? `, ${stage.merged.reduce((sum, yes) => sum + yes, 0)} merged` : "";
    const evidence = stage.evidence === null ? "" : `; evidence kept: ${percent(stage.evidence)}${stage.mergedEvidence ? `, and ${percent(stage.mergedEvidence)} merged` : ""}`;
    return `${stage.count} of ${one.trace.n} tokens${made}${merged}${evidence}`;
  }

  async function paint(one, shown) {
    const now = stageNow(one.stages), words = sentence(one, now);
    const map = now && now.maps[state.heads[one.side]] ? state.heads[one.side] : null;
    one.tokens.textContent = words;
    one.canvas.setAttribute("aria-label", `The picture, ${words}${map === null ? "" : "; attention is shown"}`);
    drawHeads(one, now, map, shown);
    const canvas = one.canvas, bitmap = await F.picture(loaded.entry, loaded.task, shown);
    if (!canvas.isConnected) return;
    one.what = { bitmap, views: one.trace ? F.views(one.trace) : null, stage: now, map: map === null ? null : now.maps[map], boxes: state.boxed && shown.boxes ? shown.boxes : [], masked: state.masked };
    F.draw(canvas, one.what);
    canvas.dataset.drawn = `${shown.number} ${now ? now.count : "all"} ${map === null ? "" : map}`.trim();
  }

  function drawHeads(one, now, map, shown) {
    if (!now || (!now.heads.length && !now.maps.length)) { one.heads.replaceChildren(); return; }
    const name = (place) => now.heads.length ? `${now.heads[place]}${now.scores[place] === undefined ? "" : ` · ${FP.number(now.scores[place], 2)}`}` : "token scores";
    const chip = (_, place) => now.maps[place]
      ? el("button", { type: "button", class: "chip", "aria-pressed": String(map === place), dataset: { head: place }, title: now.heads.length ? "head · its score; shows its attention" : "what tokens were chosen by",
        on: { click: () => { state.heads[one.side] = map === place ? undefined : place; paint(one, shown); one.heads.querySelector(`[data-head="${place}"]`)?.focus(); } } }, name(place))
      : el("span", { class: "chip note" }, name(place));
    const all = now.heads.length ? now.heads : now.maps;
    const told = now.heads.length ? `Heads that guide layer ${now.layer}` : `Before layer ${now.layer}`;
    const few = all.slice(0, 8).map(chip), more = all.length - few.length;
    one.heads.replaceChildren(el("div", { class: "chips", role: "group", "aria-label": told }, el("span", { class: "chips-label" }, told), few, more > 0 ? el("span", { class: "note" }, `and ${more} more`) : null));
  }

  const repaint = () => { if (parts.sides && list.length) for (const side of parts.sides) paint(side, loaded.task.shown[list[state.place]]); };

  // -- keyboard ---------------------------------------------------------------------------------------------------

  function step(by) {
    const before = document.activeElement, which = before && before.closest(".flip-top") ? before.textContent : null;
    go(state.place + by);
    if (which) [...parts.question.querySelectorAll("button")].find((one) => one.textContent === which && !one.disabled)?.focus();
    if (document.activeElement === document.body) document.getElementById("flip-title").focus({ preventScroll: true });
  }

  function turnStage(by) {
    const all = [-1, ...parts.layers], place = all.indexOf(current() ?? -1) + by;
    if (place >= 0 && place < all.length) stage(all[place], Boolean(document.activeElement.closest(".flip-stages")));
  }

  function turnHead() {
    for (const one of parts.sides) {
      const now = stageNow(one.stages), count = now ? now.maps.length : 0, before = state.heads[one.side];
      state.heads[one.side] = !count || before === count - 1 ? undefined : (before ?? -1) + 1;
    }
    repaint();
  }

  const KEYS = {
    ArrowRight: () => step(1), ArrowLeft: () => step(-1), j: () => step(1), k: () => step(-1), "]": () => turnStage(1), "[": () => turnStage(-1),
    h: turnHead, x: swap, m: () => { state.masked = !state.masked; repaint(); }, b: () => { state.boxed = !state.boxed; repaint(); },
  };

  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, textarea") || !loaded) return;
    if (event.key.startsWith("Arrow") && event.target.closest(".scroll")) return;
    const does = KEYS[event.key];
    if (!does || (!list.length && event.key !== "x")) return;
    event.preventDefault();
    does();
  }

  // -- opening ----------------------------------------------------------------------------------------------------

  // keeps the rows of before where the task has them
  function open(entry, first, second) {
    const has = (number) => number !== null && number !== undefined && entry.rows.includes(number);
    state.entry = entry;
    state.first = has(first) ? first : has(state.first) ? state.first : entry.rows[0];
    state.second = has(second) ? second : has(state.second) ? state.second : entry.rows[entry.rows.length - 1];
    if (state.first === state.second) state.first = entry.rows.find((number) => number !== state.second) ?? state.second;
  }

  const numbers = (key) => FP.questions.rows.filter((row) => row.key === key).map((row) => row.number);

  FP.hasQuestions = (key, task) => {
    const entry = entryOf(task);
    return Boolean(entry && entry.rows.length > 1 && numbers(key).some((number) => entry.rows.includes(number)));
  };

  FP.openQuestions = async (key, task, baseline) => {
    const entry = entryOf(task), of = (wanted) => numbers(wanted).find((number) => entry.rows.includes(number));
    if (!entry) return;
    const second = of(key), row = FP.row(key);
    let first = [baseline, row && row.baseline, FP.data.vanilla].filter(Boolean).map(of).find((number) => number !== undefined && number !== second);
    if (first === undefined) first = entry.rows.find((number) => number !== second);
    Object.assign(state, { way: "changed", category: "", layer: null, heads: {} });
    open(entry, first, second);
    document.getElementById("flip").scrollIntoView();
    document.getElementById("flip-title").focus({ preventScroll: true });
    await load(true);
    FP.announce(`${text(entry.title, 60)}: ${label(state.first)} and ${label(state.second)}, ${list.length} questions`);
  };

  function frame() {
    for (const [name, tag] of [["controls", "div"], ["counts", "p"], ["ways", "div"], ["tables", "div"], ["list", "div"], ["question", "div"], ["stages", "div"], ["pair", "div"], ["legend", "ul"], ["view", "div"]]) parts[name] = el(tag);
    parts.controls.className = "controls";
    parts.counts.className = "flip-counts numbers";
    parts.ways.className = "chips";
    parts.list.className = "flip-list panel";
    parts.stages.className = "flip-stages";
    parts.pair.className = "flip-pair";
    parts.legend.className = "flip-legend";
    parts.question.className = "panel";
    for (const [part, words] of [["ways", "Which questions"], ["stages", "Stage"]]) { parts[part].setAttribute("role", "group"); parts[part].setAttribute("aria-label", words); }
    parts.list.setAttribute("role", "region");
    parts.list.setAttribute("aria-label", "Questions of this kind");
    parts.list.setAttribute("tabindex", "0");
    parts.view.append(parts.question, parts.stages, parts.pair, parts.legend,
      el("p", { class: "note no-print" }, "Keys: ← → question, [ ] stage, h attention of the next head, x swap rows, m what was dropped, b evidence."));
    body.replaceChildren(
      el("p", { class: "note" }, "Two rows, question by question: what each answered, and which parts of the picture it still had at each stage."),
      parts.controls, parts.counts, parts.ways, parts.tables, el("div", { class: "flip-grid" }, parts.list, parts.view));
    document.getElementById("flip").addEventListener("keydown", pressed);
    let width = 0;
    new ResizeObserver(([seen]) => {
      if (Math.abs(seen.contentRect.width - width) < 1) return;
      width = seen.contentRect.width;
      for (const one of parts.sides || []) if (one.what) F.draw(one.canvas, one.what);
    }).observe(parts.view);
  }

  FP.ready.then(() => {
    const tasks = FP.questions ? FP.questions.tasks.filter((one) => one.rows.length > 1) : [];
    if (!tasks.length) return;
    index = { rows: FP.questions.rows, tasks };
    const entry = tasks[0];
    body = document.getElementById("flip-body");
    frame();
    document.getElementById("flip").hidden = false;
    const plain = FP.data.vanilla ? numbers(FP.data.vanilla)[0] : entry.rows[0];
    open(entry, plain, entry.rows.find((number) => number !== plain && entry.traced.includes(number)) ?? entry.rows[1]);
    // unpacked when it comes near, so that a large report is there at once
    const near = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting) || loaded) return;
      near.disconnect();
      load(true);
    }, { rootMargin: "600px" });
    near.observe(document.getElementById("flip"));
  });
})();
