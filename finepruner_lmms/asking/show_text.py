"""What methods kept of a picture in a terminal: answers and times, and where there are colours, the picture itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from finepruner_lmms.asking.compared import Comparison, Seen, Stage
from finepruner_lmms.asking.show import darkened
from finepruner_lmms.asking.show_page import seconds
from finepruner_lmms.asking.views import Mask, Picture
from finepruner_lmms.engine.families.family import View
from finepruner_lmms.output import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_WIDEST = 36
"""Characters of a picture."""


def table(found: Comparison) -> str:
    """The question, and a line for each method: what is left of the visual tokens, the answer, the times."""
    lines = [["method", "visual tokens", "answer", "first token", "whole answer"]]
    for row in found.rows:
        tokens = "; ".join(_stage(found, stage) for stage in row.stages) or found.whole(row)
        mark = "" if row.right is None else "  ✓" if row.right else "  ✗"
        lines.append(
            [plain(row.label), plain(row.problem), "", "", ""]
            if row.problem
            else [plain(row.label), tokens, f"{_short(row.text)}{mark}", seconds(row.first_token), seconds(row.seconds)]
        )
    widths = [max(len(line[column]) for line in lines if line[2] or column == 0) for column in range(5)]
    text = [plain(line) for line in found.question.split("\n") if line.strip()]
    if found.expected is not None:
        text.append(f"right answer: {plain(found.expected)}")
    if found.about:
        text.append(plain(found.about))
    text.append("")
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line[:3], widths, strict=False)]
        times = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
        text.append("  ".join([*cells, *times]).rstrip())
    return "\n".join(text) + "\n"


def _stage(found: Comparison, stage: Stage) -> str:
    about = [] if stage.heads is None else [f"heads {', '.join(map(str, stage.heads))}"]
    if (kept := found.evidence_kept(stage)) is not None:
        about.append(f"{kept:.0%} of the evidence")
    return f"{stage.title} ({', '.join(about)})" if about else stage.title


def _short(text: str, most: int = 48) -> str:
    line = plain(" ".join(text.split()))
    return line if len(line) <= most else f"{line[:most]}…"


def print_pictures(found: Comparison, console: Console) -> None:
    """Each method's picture at each stage, two tokens' rows in a line; where there are no colours, marks for tokens."""
    from rich.columns import Columns
    from rich.console import Group

    shown = [Group(_heading(row, stage), *bodies) for row, stage, bodies in _bodies(found, console)]
    console.print(Columns(shown, padding=(1, 3)))


def _bodies(found: Comparison, console: Console) -> Iterator[tuple[Seen, Stage, list[Text]]]:
    draw = _coloured if console.color_system else _marks
    for row in found.rows:
        if row.problem:
            continue
        for stage in row.stages or (found.everything(),):
            yield (
                row,
                stage,
                [
                    draw(picture, stage.shown(number), sheet)
                    for number, picture in enumerate(found.pictures)
                    for sheet in picture.sheets
                ],
            )


def _heading(row: Seen, stage: Stage) -> Text:
    from rich.text import Text

    return Text(f"{plain(row.label)}\n{stage.title}\n“{_short(row.text, 24)}”")


def _grid(picture: Picture, sheet: int) -> tuple[int, int]:
    """Rows and columns of a sheet, all its views together, at most as many as a terminal is given."""
    views: list[View] = [view for view in picture.views if view.sheet == sheet]
    columns = round(sum(view.columns * (view.box[3] - view.box[1]) for view in views))
    rows = round(sum(view.rows * (view.box[2] - view.box[0]) for view in views))
    scale = min(1.0, _WIDEST / columns)
    return max(round(rows * scale), 1), max(round(columns * scale), 1)


def _coloured(picture: Picture, kept: Mask, sheet: int) -> Text:
    """Half blocks: the upper half in the colour of one row, the lower half in that of the next."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    rows, columns = _grid(picture, sheet)
    small = Image.fromarray(darkened(picture, kept, sheet)).resize((columns, rows + rows % 2), Image.Resampling.BOX)
    pixels, text = np.asarray(small), Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for one, other in zip(upper, lower, strict=True):
            text.append("▀", Style(color=Color.from_rgb(*map(int, one)), bgcolor=Color.from_rgb(*map(int, other))))
        text.append("\n")
    return text


def _marks(picture: Picture, kept: Mask, sheet: int) -> Text:
    """`█` for a pair of tokens, one above the other, that is kept, `▀` and `▄` for one of them, `·` for none."""
    from rich.text import Text

    rows, columns = _grid(picture, sheet)
    light = Image.fromarray(picture.light(kept, sheet).astype(np.uint8) * 255)
    small = np.asarray(light.resize((columns, rows), Image.Resampling.BOX)) > 127
    if rows % 2:
        small = np.vstack([small, np.zeros((1, columns), dtype=bool)])
    pairs = zip(small[::2], small[1::2], strict=True)
    lines = ["".join("·▄▀█"[2 * bool(a) + bool(b)] for a, b in zip(*pair, strict=True)) for pair in pairs]
    return Text("\n".join(lines) + "\n")
