"""Which visual tokens methods kept, drawn over the pictures that they stand for: a figure of matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from finepruner_lmms.asking.answer import Answer
from finepruner_lmms.asking.compared import Comparison, Seen, Share, Stage, of_answers
from finepruner_lmms.asking.views import Mask, Picture
from finepruner_lmms.errors import FieldError
from finepruner_lmms.output import mathtext

_DIM = 0.25
"""How bright a dropped token's part of a picture stays."""
_SIDE = 3.2
"""Inches of a panel."""
_LINES = 0.7
"""Inches of the lines above and below it."""
_ABREAST = 5
"""Panels beside each other; the stages of one method are never torn apart."""
_NOTEBOOK = 72
"""Dots per inch in a notebook, which keeps its pictures in its file."""
_WIDE = 44
"""Characters of a line above a panel."""
_AWAY = 0.012
"""Of a picture's longer side: how far from the evidence its frame is."""
_RIGHT, _WRONG = "#1a7f37", "#c0392b"


class Drawn(Figure):
    """A figure that a notebook shows by itself, whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=_NOTEBOOK, metadata={"Software": None})
        return file.getvalue()


def show(answer: Answer, *more: Answer) -> Figure:
    """A figure of what was kept; what was dropped is dark. A notebook shows it where it is a cell's last line.

    One answer: a row for each picture, a column for each layer before which tokens went. A picture that the model sees
    as a whole and in tiles has a row for each. Several answers to one question, of as many methods, stand side by side.
    `FieldError` where the places of the visual tokens are not known (a plug-in's family that does not tell them);
    `answer.trace` has them as numbers.
    """
    found = of_answers((answer, *more))
    if more:
        return figure(found)
    return _one(found)


def figure(found: Comparison) -> Figure:
    """Each method's panels, its stages beside each other; what an answer needs is framed where it is known."""
    rows = [row for row in found.rows if not row.problem]
    panels = [_panels(found, row) for row in rows]
    deep = max(len(strips) for strips in panels)  # of pictures and their sheets
    places, across, down = _places([len(strips[0]) for strips in panels])
    down *= deep
    tall = _SIDE * max(picture.image.height / picture.image.width for picture in found.pictures)
    drawn = Drawn(figsize=(_SIDE * across, (min(tall, 2 * _SIDE) + _LINES) * down + _LINES), layout="constrained")
    axes = drawn.subplots(down, across, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for row, strips, (top, left) in zip(rows, panels, places, strict=True):
        for y, strip in enumerate(strips):
            for x, (picture, stage, number, sheet) in enumerate(strip):
                axis = axes[top * deep + y][left + x]
                title = _title(found, row, stage, number, sheet, first=(x, y) == (0, 0))
                _draw(axis, picture, stage.shown(number), sheet, title)
                if not number:
                    _frame(axis, picture, found.evidence)
        _caption(axes[top * deep + len(strips) - 1][left], row)
    drawn.suptitle(mathtext(_heading(found)), fontsize=11)
    return drawn


def _places(widths: list[int]) -> tuple[list[tuple[int, int]], int, int]:
    """Where each method begins (line, column) when they fill lines in order; and how many columns and lines."""
    most, places, left, line = max(_ABREAST, *widths), [], 0, 0
    for width in widths:
        if left + width > most:
            left, line = 0, line + 1
        places.append((line, left))
        left += width
    return places, max(left + width for (_, left), width in zip(places, widths, strict=True)), line + 1


def darkened(picture: Picture, kept: Mask, sheet: int = 0) -> NDArray[np.uint8]:
    """The picture `[H, W, 3]` with the parts dark that were not `kept` `[N]`, of one sheet of its views."""
    share = _DIM + (1 - _DIM) * picture.light(kept, sheet)[..., None].astype(np.float32)
    return (np.asarray(picture.image, dtype=np.float32) * share).astype(np.uint8)


def check_places(picture: Picture) -> None:
    """`FieldError` where it is not known which part of the picture a visual token shows."""
    if not picture.views:
        problem = "where the visual tokens of its picture stand is not known, so that they cannot be drawn over it"
        raise FieldError("answer", problem, fix="read answer.trace")


def _one(found: Comparison) -> Figure:
    """The figure of one answer."""
    (row,) = found.rows
    strips = _panels(found, row)
    drawn = Drawn(figsize=(_SIDE * len(strips[0]), _SIDE * len(strips)), layout="constrained")
    axes = drawn.subplots(len(strips), len(strips[0]), squeeze=False)
    for strip, line in zip(strips, axes, strict=True):
        for (picture, stage, number, sheet), axis in zip(strip, line, strict=True):
            kept = stage.kept[number]
            when = stage.when if row.stages else "all layers"
            _draw(axis, picture, stage.shown(number), sheet, f"{int(kept.sum())} of {len(kept)}, {when}")
    drawn.suptitle(mathtext(found.question) + "\n" + mathtext(row.text), fontsize=10)
    return drawn


def _panels(found: Comparison, row: Seen) -> list[list[tuple[Picture, Stage, int, int]]]:
    """For each picture and each sheet of it, the stages: picture, stage, its number, the sheet."""
    for picture in found.pictures:
        check_places(picture)
    stages = row.stages or (found.everything(),)
    return [
        [(picture, stage, number, sheet) for stage in stages]
        for number, picture in enumerate(found.pictures)
        for sheet in picture.sheets
    ]


def _draw(axis: Any, picture: Picture, kept: Mask, sheet: int, title: str) -> None:
    axis.imshow(darkened(picture, kept, sheet))
    axis.set(frame_on=False, xticks=[], yticks=[], visible=True)
    axis.set_title(title, fontsize=9)


def _frame(axis: Any, picture: Picture, evidence: Sequence[Share]) -> None:
    """A frame around what an answer needs, white on black, which shows on bright parts and on dark ones."""
    width, height = picture.image.size
    away = max(width, height) * _AWAY
    for left, top, right, bottom in evidence:
        place = left * width - away, top * height - away
        across, down = (right - left) * width + 2 * away, (bottom - top) * height + 2 * away
        for colour, line in (("black", 3.0), ("white", 1.5)):
            axis.add_patch(Rectangle(place, across, down, fill=False, edgecolor=colour, linewidth=line, clip_on=False))


def _title(found: Comparison, row: Seen, stage: Stage, number: int, sheet: int, *, first: bool) -> str:
    """What a panel shows; the `first` of a method bears its name, those of other pictures and sheets theirs alone."""
    if number or sheet != found.pictures[0].sheets[0]:
        return "in tiles" if sheet else f"picture {number + 1}"
    lines = textwrap.wrap(row.label, _WIDE) if first else []
    lines.append(stage.title if row.stages else found.whole(row))
    kept = found.evidence_kept(stage) if row.stages else None
    if kept is not None:
        lines.append(f"{kept:.0%} of the evidence")
    return "\n".join(map(mathtext, lines))


def _caption(axis: Any, row: Seen) -> None:
    """The answer below a method's last panel."""
    colour = "black" if row.right is None else _RIGHT if row.right else _WRONG
    said = " ".join(row.text.split())
    axis.set_xlabel(mathtext(f"“{said if len(said) <= 60 else said[:60] + '…'}”"), fontsize=11, color=colour)


def _heading(found: Comparison) -> str:
    asked = found.question if len(found.question) <= 160 else f"{found.question[:160]}…"
    return " ".join(asked.split())


def save_figure(found: Comparison, file: Any) -> None:
    """Write the figure to a `.png`, `.pdf` or `.svg` file."""
    metadata = {"Software": None} if str(file).lower().endswith(".png") else None
    figure(found).savefig(file, dpi=120, metadata=metadata)
