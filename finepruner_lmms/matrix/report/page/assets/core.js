// What every part of the page uses: unpacking of blocks, elements made of text only, numbers, colours.
(function () {
  "use strict";

  const holders = new Map();
  for (const holder of document.querySelectorAll("script[data-block]")) holders.set(holder.dataset.block, holder);
  const bytesOf = new Map(), valueOf = new Map();

  async function unpack(name) {
    const holder = holders.get(name);
    if (!holder) throw new Error(`the page has no block ${name}`);
    const packed = Uint8Array.from(atob(holder.textContent), (c) => c.charCodeAt(0));
    if (holder.dataset.kind === "raw") return packed;
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function once(cache, name, make) {
    if (!cache.has(name)) cache.set(name, make());
    return cache.get(name);
  }

  // ZWJ and ZWNJ are letters of scripts and of emoji, and change no direction: they stay
  const HIDDEN = /[\p{C}\p{Zl}\p{Zp}]/gu;

  function escaped(character) {
    if (character === "\u200c" || character === "\u200d") return character;
    const plain = { "\n": "\\n", "\r": "\\r", "\t": "\\t" }[character];
    if (plain) return plain;
    const code = character.codePointAt(0), hex = code.toString(16);
    if (code < 0x100) return `\\x${hex.padStart(2, "0")}`;
    return code < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
  }

  // a text of others, visible: control characters and marks of direction as their codes, and cut where it is long
  function text(value, most = 2000) {
    const whole = value === null || value === undefined ? "" : String(value);
    const shown = whole.slice(0, most).replace(HIDDEN, escaped);
    return whole.length > most ? `${shown}… (${whole.length} characters)` : shown;
  }

  function fill(made, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "on") for (const [event, does] of Object.entries(value)) made.addEventListener(event, does);
      else if (name === "dataset") Object.assign(made.dataset, value);
      else if (name === "style") for (const [key, one] of Object.entries(value)) made.style.setProperty(key, one);
      else made.setAttribute(name, value === true ? "" : String(value));
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === false) continue;
      made.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return made;
  }

  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const known = (value) => typeof value === "number" && Number.isFinite(value);
  const number = (value, digits = 1) => (known(value) ? value.toFixed(digits).replace("-", "−") : "–");
  const signed = (value, digits = 1) => {
    if (!known(value)) return "–";
    const shown = number(value, digits);
    return Number(value.toFixed(digits)) > 0 ? `+${shown}` : Number(value.toFixed(digits)) === 0 ? number(0, digits) : shown;
  };
  // as many decimals as two significant digits of the error ask for, between one and three
  const decimals = (error) => (known(error) && error > 0 ? Math.min(3, Math.max(1, 1 - Math.floor(Math.log10(error)))) : 1);

  // Okabe and Ito's colours, told apart by colour-blind readers, too; brighter ones on a dark page
  const LIGHT = ["#0072b2", "#c04a00", "#007a58", "#a8477f", "#8a6a00", "#2b7fae", "#5b5bd6", "#7a4b2a"];
  const DARK = ["#56b4e9", "#ff8b4a", "#2fd3a2", "#f29bc9", "#f0c53f", "#9ad7ff", "#a9a9ff", "#d9a37c"];
  const dark = () => {
    const chosen = document.documentElement.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  function color(of) {
    const method = typeof of === "string" ? of : of.method;
    if (method === "vanilla" || method === "random") return dark() ? "#b4b4b4" : "#666666";
    const place = FP.methods.filter((name) => name !== "vanilla" && name !== "random").indexOf(method);
    return (dark() ? DARK : LIGHT)[Math.max(0, place) % LIGHT.length];
  }

  const redraws = [];
  const FP = (window.FP = {
    data: null, methods: [], has: (name) => holders.has(name), text, el, svg, known, number, signed, decimals, color, dark,
    bytes: (name) => once(bytesOf, name, () => unpack(name)),
    block: (name) =>
      once(valueOf, name, () => unpack(name).then((bytes) => JSON.parse(new TextDecoder().decode(bytes)))),
    row: (key) => FP.rows.get(key),
    label: (row) => text(row.study ? `${row.study}: ${row.label}` : row.label, 120),
    announce: (words) => { document.getElementById("live").textContent = words; },
    onRedraw: (does) => redraws.push(does),
    redraw: () => { for (const does of redraws) does(); },
    // a region that scrolls sideways, says so, and takes the keyboard
    scroll: (label, ...children) => {
      const inner = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, ...children);
      const outer = el("div", { class: "scroll-outer" }, inner);
      const cue = () => {
        const rest = inner.scrollWidth - inner.clientWidth;
        outer.classList.toggle("more-right", inner.scrollLeft < rest - 2);
        outer.classList.toggle("more-left", inner.scrollLeft > 2);
      };
      inner.addEventListener("scroll", cue, { passive: true });
      new ResizeObserver(cue).observe(inner);
      return outer;
    },
    field: (label, options, chosen, does) => {
      const select = el("select", { on: { change: () => does(select.value) } },
        options.map(([value, shown]) => el("option", { value, selected: value === chosen }, shown)));
      return el("label", { class: "field" }, el("span", null, label), select);
    },
    chips: (label, options, chosen, does) => {
      const chip = ([value, shown]) => {
        const made = el("button", { type: "button", class: "chip", "aria-pressed": String(chosen.has(value)), dir: "auto" }, shown);
        made.addEventListener("click", () => {
          if (chosen.has(value)) chosen.delete(value); else chosen.add(value);
          made.setAttribute("aria-pressed", String(chosen.has(value)));
          does();
        });
        return made;
      };
      return el("div", { class: "chips", role: "group", "aria-label": label },
        el("span", { class: "chips-label", "aria-hidden": "true" }, label), options.map(chip));
    },
  });

  function fail(error) {
    const place = document.getElementById("failed");
    place.textContent = `This page could not be drawn: ${text(error && error.message)}`;
    place.hidden = false;
    console.error(error);
  }

  function theme() {
    const button = document.getElementById("theme");
    const show = () => {
      button.setAttribute("aria-pressed", String(dark()));
      button.hidden = false;
    };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = dark() ? "light" : "dark";
      show();
      FP.redraw();
    });
    let before;
    const paper = (theme) => { // plots have their colours in them
      if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
      FP.redraw();
    };
    addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; if (dark()) paper("light"); else before = null; });
    addEventListener("afterprint", () => { if (before !== null) paper(before); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { show(); FP.redraw(); });
    show();
  }

  function navigation() {
    for (const name of ["plots", "flip", "heads"]) {
      const section = document.getElementById(name), link = document.getElementById(`nav-${name}`);
      const follow = () => { link.hidden = section.hidden; };
      new MutationObserver(follow).observe(section, { attributes: true, attributeFilter: ["hidden"] });
      follow();
    }
  }

  const parts = [];
  FP.part = (draw) => parts.push(draw);
  const loaded = new Promise((done) => document.addEventListener("DOMContentLoaded", done, { once: true }));
  // which scores have questions is known before the table is drawn, so that it is drawn once
  const index = () => (FP.has("q/index") ? FP.block("q/index") : null);
  FP.ready = loaded.then(() => Promise.all([FP.block("main"), index()])).then(([data, questions]) => {
    FP.data = data;
    FP.questions = questions;
    FP.rows = new Map(data.rows.map((row) => [row.key, row]));
    FP.methods = [...new Set(data.rows.map((row) => row.method))];
    theme();
    navigation();
    for (const draw of parts) draw(data);
  });
  FP.ready.catch(fail);
})();
