// The blocks behind the questions: verdicts of every question, and of those that are shown what was kept at each stage.
(function () {
  "use strict";
  const F = (FP.flip = FP.flip || {});

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const bit = (packed, place) => (packed[place >> 3] >> (7 - (place & 7))) & 1;

  function mask(text, count) {
    const packed = bytes(text), found = new Uint8Array(count);
    for (let i = 0; i < count; i++) found[i] = bit(packed, i);
    return found;
  }

  function maps(packed) {
    const [count, rows, columns] = packed.shape, size = rows * columns, pairs = bytes(packed.values);
    const value = (place) => ((place & 1 ? pairs[place >> 1] & 15 : pairs[place >> 1] >> 4) / 15);
    return Array.from({ length: count }, (_, one) => ({
      rows, columns, values: Float32Array.from({ length: size }, (_, place) => value(one * size + place)),
    }));
  }

  // masks are of the tokens that were still there before: as masks of all N
  F.stages = (trace) => {
    let there = new Uint8Array(trace.n).fill(1);
    return trace.st.map((stage) => {
      const kept = new Uint8Array(trace.n);
      if (stage.whole) kept.set(mask(stage.kept, trace.n));
      else {
        const alive = [];
        there.forEach((yes, place) => { if (yes) alive.push(place); });
        mask(stage.kept, alive.length).forEach((yes, place) => { kept[alive[place]] = yes; });
      }
      there = kept;
      const count = kept.reduce((sum, yes) => sum + yes, 0);
      return {
        layer: stage.layer, kept, count, made: stage.made || 0, entering: stage.entering ?? count + (stage.made || 0),
        merged: stage.merged ? mask(stage.merged, trace.n) : null, heads: stage.heads || [], scores: stage.scores || [],
        maps: stage.maps ? maps(stage.maps) : [], evidence: stage.evidence ?? null, mergedEvidence: stage.merged_evidence || 0,
      };
    });
  };

  // where tokens stand, sheet by sheet: of each view its grid, its part of the picture, and which tokens are its own
  F.views = (trace) => {
    if (trace.g) return [[{ grid: trace.g, part: [0, 0, 1, 1], tokens: Array.from({ length: trace.n }, (_, place) => place) }]];
    if (!trace.v) return null;
    const apart = new Set(trace.sep), own = [];
    for (let place = 0; place < trace.n; place++) if (!apart.has(place)) own.push(place);
    const sheets = [];
    let first = 0;
    for (const [rows, columns, left, top, right, bottom, sheet] of trace.v) {
      (sheets[sheet] = sheets[sheet] || []).push({ grid: [rows, columns], part: [left, top, right, bottom], tokens: own.slice(first, first + rows * columns) });
      first += rows * columns;
    }
    return sheets.filter(Boolean);
  };

  const NOTHING = "0".charCodeAt(0);
  F.verdict = (task, row, at) => {
    const code = row.codes.charCodeAt(at) - NOTHING;
    return code > 0 ? task.values[code - 1] : null;
  };

  // 1 where the second row does better, −1 where the first does, 0 where both do alike, null where one has no verdict
  F.change = (entry, task, first, second, at) => {
    const one = F.verdict(task, first, at), other = F.verdict(task, second, at);
    if (one === null || other === null) return null;
    return one === other ? 0 : (other > one) === entry.higher ? 1 : -1;
  };

  // how many questions changed which way: in all, and by category
  F.counts = (entry, task, first, second) => {
    const fresh = (name) => ({ name, questions: 0, first: 0, second: 0, right: 0, wrong: 0 });
    const whole = fresh(""), kinds = task.categories.map(fresh), best = entry.higher ? task.values[task.values.length - 1] : task.values[0];
    for (let at = 0; at < entry.questions; at++) {
      const change = F.change(entry, task, first, second, at);
      if (change === null) continue;
      const right = F.verdict(task, first, at) === best;
      for (const count of kinds.length ? [whole, kinds[task.category[at]]] : [whole]) {
        count.questions++;
        if (change > 0) count.second++;
        else if (change < 0) count.first++;
        else if (right) count.right++;
        else count.wrong++;
      }
    }
    return { whole, kinds };
  };

  // the share of evidence that a row kept in the end: of all shown questions that have some, of those it did best in, of the others
  F.evidence = (entry, task, row) => {
    const best = entry.higher ? task.values[task.values.length - 1] : task.values[0];
    const of = { all: [], right: [], wrong: [] };
    task.shown.forEach((shown, place) => {
      const trace = row.traces[place];
      const last = trace && trace.st[trace.st.length - 1];
      if (!last || last.evidence === undefined) return;
      of.all.push(last.evidence);
      const verdict = F.verdict(task, row, shown.at);
      if (verdict !== null) of[verdict === best ? "right" : "wrong"].push(last.evidence);
    });
    return of;
  };

  const bitmaps = new Map();
  F.picture = async (entry, task, shown) => {
    if (shown.picture === undefined) return null;
    const name = `q/pictures/${entry.block.slice(2)}`, key = `${name}/${shown.picture}`;
    if (!bitmaps.has(key)) {
      const [start, length] = task.pictures[shown.picture];
      const all = await FP.bytes(name);
      bitmaps.set(key, createImageBitmap(new Blob([all.subarray(start, start + length)], { type: "image/webp" })));
      if (bitmaps.size > 60) bitmaps.delete(bitmaps.keys().next().value);
    }
    return bitmaps.get(key);
  };
})();
