"""The leaderboard as a picture: accuracy against budget, one line per method."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import write_bytes
from finepruner_lmms.matrix.report.board import Leaderboard, Line
from finepruner_lmms.output import mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# distinct for colour-blind readers too (Okabe and Ito), and told apart by their markers in print
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX<>p*hHd"


def check_kind(target: Path) -> None:
    """`FieldError` unless the name of a picture says of which kind it is to be."""
    if target.suffix not in (".png", ".pdf", ".svg"):
        problem = f"got {target.name!r}; expected a file that ends in .png, .pdf or .svg"
        raise FieldError("picture", problem, value=target)


def draw(board: Leaderboard, target: Path) -> None:
    """Write the picture to `target` (PNG, PDF or SVG, by its suffix). `ValueError` where no row is complete."""
    check_kind(target)
    drawn = figure(board)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    drawn.savefig(content, format=target.suffix[1:], dpi=200)
    write_bytes(target, content.getvalue())


def figure(board: Leaderboard) -> Figure:
    """The averages against the budget, zoomed on what is not random. `ValueError` where no row is complete."""
    done = [line for line in board.lines if line.average is not None]
    lines = [line for line in done if not line.imported]
    if not done:
        raise FieldError("picture", "no row has all of its tasks done yet")
    found = curves(lines)
    drawn, axes = new_axes(found)
    ends: list[End] = []
    seen: list[float] = []
    for line in done:
        if line.imported or line.method == "vanilla":  # at no budget that is known, or all of it
            every = "" if board.num_visual_tokens is None else f"{board.num_visual_tokens} "
            name = f"{line.study}: {line.method}" if len(board.studies) > 1 else line.method
            text = mathtext(name if line.imported else f"{name}, all {every}tokens")
            axes.axhline(line.average or 0.0, color="0.45", linestyle=":" if line.imported else "--", linewidth=1)
            ends.append((math.inf, line.average or 0.0, text, "0.35"))
            seen.append(line.average or 0.0)
    seen += add_curves(axes, found, lambda line: (line.average or 0.0, line.average_low, line.average_high), ends)
    zoom(axes, seen)
    if found:
        budget_axis(board, axes, [line for line in lines if line.method != "vanilla"])
    label_ends(drawn, axes, ends)
    axes.set_ylabel("mean score, % of the maximum")
    axes.set_title(f"{mathtext(board.name)}: {len(board.tasks)} tasks, 95 % intervals", loc="left", fontsize=10)
    return drawn


Shown = tuple[float, float | None, float | None]
"""A value and the ends of its interval, None where they are not known."""


def add_curves(
    axes: Axes, found: Mapping[str, list[Line]], shown: Callable[[Line], Shown], ends: list[End]
) -> list[float]:
    """Draw each curve, and add where it ends to `ends`; returns the ends of intervals to zoom on, those not random."""
    seen: list[float] = []
    for label, curve, style in styles(found):
        points = [shown(line) for line in curve]
        values = [value for value, _, _ in points]
        lows = [value if low is None else low for value, low, _ in points]  # and so no bar
        highs = [value if high is None else high for value, _, high in points]
        tokens = aside(curve, 0 if style.band else len(ends))
        draw_curve(axes, tokens, values, lows, highs, style)
        ends.append((tokens[-1], values[-1], label, style.color))
        if not style.band:
            seen += [*lows, *highs]
    return seen


def curves(lines: Sequence[Line], whole: bool = False) -> dict[str, list[Line]]:
    """Rows by what the legend calls them, each from the smallest budget to the largest; vanilla only with `whole`.

    What shows no visual token at all has no place on a scale of budgets.
    """
    found: dict[str, list[Line]] = {}
    several = len({line.study for line in lines}) > 1
    for line in lines:
        if (line.method == "vanilla" or not line.tokens) and not whole:
            continue
        chosen = " ".join(f"{name}={value}" for name, value in line.given.items())
        seeds = f"({len(line.seeds)} seeds)" if line.seeds else ""
        study = f"{line.study}:" if several else ""
        found.setdefault(mathtext(" ".join(filter(None, (study, line.method, chosen, seeds)))), []).append(line)
    return {label: sorted(curve, key=lambda line: line.tokens) for label, curve in found.items()}


End = tuple[float, float, str, str]
"""Where a curve ends, its name and its colour."""


@dataclass(frozen=True)
class Style:
    """How a curve is drawn; a `band` is what chance alone reaches."""

    color: str
    marker: str
    line: str
    band: bool = False


def styles(found: Mapping[str, list[Line]]) -> Iterator[tuple[str, list[Line], Style]]:
    """Each curve with its style, which no other one has while there are enough."""
    number = 0
    for label, curve in found.items():
        if all(line.method == "random" for line in curve):
            yield label, curve, Style("0.45", ".", "-", band=True)
            continue
        if curve[0].method == "vanilla":
            yield label, curve, Style("0.2", "*", "-")
            continue
        line = ("-", "--", ":")[number // len(_COLORS) % 3]
        yield label, curve, Style(_COLORS[number % len(_COLORS)], _MARKERS[number % len(_MARKERS)], line)
        number += 1


_NAME_SIZE = 7.5
"""Points; a line of names takes a quarter more."""


def new_axes(names: Iterable[str]) -> tuple[Figure, Axes]:
    """A figure of a column's width, as high as these names need to the right of it, and one more."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as New

    lines = 1 + sum(_wrapped(name).count("\n") + 1 for name in names)
    height = max(3.5, lines * _NAME_SIZE * 1.25 / 72 + 0.91)
    drawn = New(figsize=(5.6, height))
    FigureCanvasAgg(drawn)
    axes = drawn.add_axes((0.12, 0.56 / height, 0.6, 1 - 0.91 / height))
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def label_ends(drawn: Figure, axes: Axes, ends: Sequence[End]) -> None:
    """Each curve's name (x, y, text, colour) to the right of the axes, as near to its end as the others let it."""
    size = _NAME_SIZE
    ends = [(x, y, _wrapped(text), color) for x, y, text, color in ends]
    widest = max((len(line) for _, _, text, _ in ends for line in text.split("\n")), default=0)
    box, inches = axes.get_position(), drawn.get_figwidth()
    room = (widest * size * 0.58 / 72 + 0.25) / inches
    axes.set_position((box.x0, box.y0, max(0.3, 1 - box.x0 - room), box.height))
    low, high = axes.get_ylim()
    gap = size * 1.25 / (axes.get_position().height * drawn.get_figheight() * 72)
    wanted = sorted((min(1.0, max(0.0, (y - low) / (high - low))), x, y, text, color) for x, y, text, color in ends)
    lines = [text.count("\n") + 1 for *_, text, _ in wanted]
    apart = [gap * (one + other) / 2 for one, other in itertools.pairwise(lines)]  # of their middles
    places: list[float] = []
    for share, *_ in wanted:
        places.append(max(share, places[-1] + apart[len(places) - 1]) if places else share)
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for place in reversed(range(len(places))):  # what was pushed beyond the top pushes back
        top = places[place + 1] - apart[place] if place + 1 < len(places) else places[-1] - over
        places[place] = min(places[place], top)
    for (near, x, _, text, color), height in zip(wanted, places, strict=True):
        point = (min(x, axes.get_xlim()[1]), low + near * (high - low))
        axes.annotate(
            text, xy=point, xycoords="data", xytext=(1.04, height), textcoords="axes fraction", fontsize=size,
            color=color, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "linestyle": ":", "alpha": 0.6,
                        "relpos": (0, 0.5)},  # to a name's left end, not through the names beside it
        )  # fmt: skip


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 26, break_long_words=False, break_on_hyphens=False)  # a part of a word may be an escape


def draw_curve(
    axes: Axes,
    tokens: Sequence[float],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    style: Style,
) -> None:
    """Values with the ends of their intervals; of what is random, the band."""
    if style.band:
        axes.fill_between(tokens, lows, highs, color="0.85", linewidth=0, zorder=0)
        axes.plot(tokens, values, color=style.color, linewidth=1, zorder=1)
        if len(tokens) == 1:
            axes.errorbar(tokens, values, [[values[0] - lows[0]], [highs[0] - values[0]]], color=style.color, capsize=3)
        return
    below = [value - low for value, low in zip(values, lows, strict=True)]
    above = [high - value for value, high in zip(values, highs, strict=True)]
    axes.errorbar(
        tokens, values, [below, above], color=style.color, marker=style.marker, linestyle=style.line, markersize=5,
        linewidth=1.5, capsize=2, elinewidth=0.8,
    )  # fmt: skip


def aside(curve: Sequence[Line], number: int) -> list[float]:
    """Where the points of a curve stand: beside each other's bars, not on them."""
    return [line.tokens * 2 ** (0.03 * ((number + 1) // 2) * (-1) ** number) for line in curve]


def zoom(axes: Axes, seen: Sequence[float]) -> None:
    """Around what is not random, whose band is cut off."""
    known = [value for value in seen if math.isfinite(value)]
    if known and max(known) > min(known):
        room = 0.06 * (max(known) - min(known))
        axes.set_ylim(min(known) - room, max(known) + room)


def budget_axis(board: Leaderboard, axes: Axes, lines: Sequence[Line]) -> None:
    """Budgets across, on a logarithmic scale."""
    ticks = sorted({line.tokens for line in lines if line.tokens})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    largest = " (shares: of the largest image)" if board.num_visual_tokens is None else ""
    axes.set_xlabel(f"visual tokens entering a decoder layer, on average{largest}")
