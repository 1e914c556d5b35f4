// A picture with what was kept of it: dropped tokens dark, merged ones hatched, evidence framed, attention as heat.
(function () {
  "use strict";
  const F = (FP.flip = FP.flip || {});
  const DROPPED = "rgba(8, 10, 14, .74)", MERGED = "rgba(8, 10, 14, .45)", HATCH = "#ffb000", FRAME = "#ffffff";

  const heat = (value) => `rgba(${Math.round(255 - 25 * value)}, ${Math.round(210 * (1 - value))}, 30, ${(0.82 * Math.sqrt(value)).toFixed(3)})`;

  function hatch(pen, x, y, width, height, step) {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, width, height);
    pen.clip();
    pen.beginPath();
    for (let at = -height; at < width; at += step) {
      pen.moveTo(x + at, y + height);
      pen.lineTo(x + at + height, y);
    }
    pen.stroke();
    pen.restore();
  }

  function cells(pen, grid, box, does) {
    const [rows, columns] = grid;
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) {
        const left = Math.round(box.x + (column * box.width) / columns), right = Math.round(box.x + ((column + 1) * box.width) / columns);
        const top = Math.round(box.y + (row * box.height) / rows), bottom = Math.round(box.y + ((row + 1) * box.height) / rows);
        does(row * columns + column, left, top, right - left, bottom - top);
      }
  }

  function masks(pen, grid, box, stage, scale) {
    pen.strokeStyle = HATCH;
    pen.lineWidth = Math.max(1, scale);
    cells(pen, grid, box, (token, x, y, width, height) => {
      if (token >= stage.kept.length || stage.kept[token]) return;
      const merged = stage.merged && stage.merged[token];
      pen.fillStyle = merged ? MERGED : DROPPED;
      pen.fillRect(x, y, width, height);
      if (merged) hatch(pen, x, y, width, height, Math.max(4, width / 2.5));
    });
  }

  // around what was kept, under heat that would hide it
  function outline(pen, grid, box, kept, scale) {
    const [rows, columns] = grid;
    pen.strokeStyle = "#ffffff";
    pen.lineWidth = Math.max(1, 1.25 * scale);
    pen.beginPath();
    cells(pen, grid, box, (token, x, y, width, height) => {
      if (!kept[token]) return;
      const row = Math.floor(token / columns), column = token % columns;
      const line = (a, b, c, d) => { pen.moveTo(a, b); pen.lineTo(c, d); };
      if (row === 0 || !kept[token - columns]) line(x, y, x + width, y);
      if (row === rows - 1 || !kept[token + columns]) line(x, y + height, x + width, y + height);
      if (column === 0 || !kept[token - 1]) line(x, y, x, y + height);
      if (column === columns - 1 || !kept[token + 1]) line(x + width, y, x + width, y + height);
    });
    pen.stroke();
  }

  function frames(pen, boxes, box, scale) {
    for (const [left, top, right, bottom] of boxes) {
      const place = [box.x + left * box.width, box.y + top * box.height, (right - left) * box.width, (bottom - top) * box.height];
      for (const [color, width] of [["#000000", 5], [FRAME, 2.5]]) {
        pen.strokeStyle = color;
        pen.lineWidth = width * scale;
        pen.strokeRect(...place);
      }
    }
  }

  // what: {bitmap, views (null: not known where tokens stand), stage (null: all kept), map (null: none), boxes, masked}
  F.draw = (canvas, what) => {
    const scale = Math.min(3, window.devicePixelRatio || 1), width = canvas.clientWidth || 320;
    const sheets = what.views || [null], whole = sheets[0] && sheets[0].length === 1 ? sheets[0][0].grid : null;
    const ratio = what.bitmap ? what.bitmap.height / what.bitmap.width : whole ? whole[0] / whole[1] : what.views ? 1 : 0.1;
    const loose = what.stage && !what.views; // tokens of several pictures: a strip of their own
    const count = loose ? what.stage.kept.length : 0, columns = 64, rows = Math.ceil(count / columns);
    const strip = loose ? Math.round((rows * width) / columns) + 8 : 0;
    const shown = what.bitmap || what.views ? Math.round(width * ratio) : 0, gap = 8;
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round((shown * sheets.length + gap * (sheets.length - 1) + strip) * scale));
    const pen = canvas.getContext("2d");
    sheets.forEach((views, place) => {
      const top = Math.round(place * (shown + gap) * scale);
      picture(pen, what, views, { x: 0, y: top, width: canvas.width, height: Math.round(shown * scale) }, scale);
    });
    if (loose) {
      const below = { x: 0, y: Math.round((shown + 8) * scale), width: canvas.width, height: Math.round((strip - 8) * scale) };
      cells(pen, [rows, columns], below, (token, x, y, w, h) => {
        if (token >= count) return;
        const merged = what.stage.merged && what.stage.merged[token];
        pen.fillStyle = what.stage.kept[token] ? "#2b8cff" : merged ? HATCH : "#9aa0a688";
        pen.fillRect(x, y, Math.max(1, w - 1), Math.max(1, h - 1));
      });
    }
  };

  // the picture once, with the tokens of the views that cover it
  function picture(pen, what, views, box, scale) {
    if (what.bitmap) pen.drawImage(what.bitmap, box.x, box.y, box.width, box.height);
    else { pen.fillStyle = "#8a8f98"; pen.fillRect(box.x, box.y, box.width, box.height); }
    if (what.map) {
      pen.fillStyle = "rgba(8, 10, 14, .45)";
      pen.fillRect(box.x, box.y, box.width, box.height);
      cells(pen, [what.map.rows, what.map.columns], box, (place, x, y, w, h) => {
        pen.fillStyle = heat(what.map.values[place]);
        pen.fillRect(x, y, w, h);
      });
    }
    if (what.stage && what.masked)
      for (const { grid, part, tokens } of views || []) {
        const of = (mask) => mask && Uint8Array.from(tokens, (token) => mask[token]);
        const place = { x: box.x + part[0] * box.width, y: box.y + part[1] * box.height, width: (part[2] - part[0]) * box.width, height: (part[3] - part[1]) * box.height };
        const own = { kept: of(what.stage.kept), merged: of(what.stage.merged) };
        if (what.map) outline(pen, grid, place, own.kept, scale);
        else masks(pen, grid, place, own, scale);
      }
    frames(pen, what.boxes, box, scale);
  }
})();
