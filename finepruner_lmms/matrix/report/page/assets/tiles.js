// What a reader asks first: the highest average at each budget, and how far that is from the unpruned model.
(function () {
  "use strict";
  const { el, text, number, signed, known } = FP;
  const MOST = 5;

  function tile(what, value, more) {
    return el("li", null, el("div", { class: "what" }, what), el("div", { class: "value" }, value), more ? el("div", { class: "more", dir: "auto" }, more) : null);
  }

  FP.part((data) => {
    const done = data.rows.filter((row) => row.average && known(row.average.shown) && !row.imported);
    const whole = done.find((row) => row.method === "vanilla");
    const budgets = [...new Set(done.filter((row) => row.method !== "vanilla").map((row) => row.tokens))].sort((a, b) => b - a).slice(0, MOST);
    if (!budgets.length) return;
    const tiles = budgets.map((tokens) => {
      const rows = done.filter((row) => row.tokens === tokens && row.method !== "vanilla");
      const best = rows.reduce((a, b) => (b.average.shown > a.average.shown ? b : a)), drop = best.average.drop;
      const digits = drop ? FP.decimals(drop.error) : 1, tied = rows.filter((row) => row !== best && row.average.best).length;
      const lost = drop && known(drop.shown) ? `; ${signed(drop.shown, digits)} to vanilla${known(drop.low) ? ` (${signed(drop.low, digits)} to ${signed(drop.high, digits)})` : ""}` : "";
      return tile(`highest average, ${+tokens.toFixed(1)} tokens`, `${number(best.average.shown, 1)} %`, `${text(FP.brief(best.label), 60)}${lost}${tied ? `; ${tied} more not told apart` : ""}`);
    });
    if (whole) tiles.unshift(tile("vanilla, all tokens", `${number(whole.average.shown, 1)} %`, `average of ${data.tasks.filter((task) => task.counts).length} tasks`));
    document.getElementById("tiles").append(el("ul", { class: "tiles", "aria-label": "In short" }, tiles));
  });
})();
