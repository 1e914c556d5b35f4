// Where the numbers come from: versions, machine, times, the matrix file, and what ± covers.
(function () {
  "use strict";
  const { el, text } = FP;

  FP.part((data) => {
    const body = document.getElementById("provenance-body");
    const pairs = (entries) => el("dl", { class: "facts" },
      entries.map(([name, value]) => [el("dt", null, text(name, 80)), el("dd", { dir: "auto" }, text(value, 4000))]));
    body.append(el("div", { class: "panel" }, el("h3", null, "What ± covers"), data.covers.map((line) => el("p", { dir: "auto" }, text(line)))));
    for (const { of, facts, yaml, versions, commands } of data.provenance) {
      if (data.provenance.length > 1) body.append(el("h3", { class: "study", dir: "auto" }, text(of, 120)));
      if (facts.length) body.append(el("div", { class: "panel" }, el("h4", null, "How it was run"), pairs(facts)));
      if (versions.length) body.append(el("div", { class: "panel" }, el("h4", null, "Versions"), pairs(versions)));
      for (const [name, content] of yaml)
        body.append(el("details", { class: "panel", open: true }, el("summary", null, "Matrix file ", el("bdi", null, text(name, 200))),
          el("pre", { tabindex: "0", role: "region", "aria-label": `Matrix file ${text(name, 200)}` }, el("code", null, content.split("\n").map((line) => `${text(line, 4000)}\n`)))));
      if (commands.length)
        body.append(el("details", { class: "panel" }, el("summary", null, "Commands"), commands.map((line) => el("pre", { tabindex: "0" }, text(line, 4000)))));
    }
  });
})();
