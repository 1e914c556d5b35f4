"""The leaderboard as a picture: accuracy against budget, one line per method."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    import matplotlib.pyplot as plt

    check_kind(target)
    drawn = figure(board)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    drawn.savefig(content, format=target.suffix[1:], dpi=160)
    plt.close(drawn)
    write_bytes(target, content.getvalue())


def figure(board: Leaderboard) -> Figure:
    """The picture. `ValueError` where no row is complete."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = [line for line in board.lines if line.average is not None]
    lines = [line for line in done if not line.imported]
    if not done:
        raise FieldError("picture", "no row has all of its tasks done yet")
    drawn, axes = plt.subplots(figsize=(7.2 if len(curves(lines)) <= 7 else 9.0, 4.4), layout="constrained")
    whole = next((line for line in lines if line.method == "vanilla"), None)
    if whole is not None:
        axes.axhline(whole.average, color="0.45", linestyle="--", linewidth=1.2)
        every = "" if board.num_visual_tokens is None else f"{board.num_visual_tokens} "
        text = f"vanilla, all {every}tokens"
        place = axes.get_yaxis_transform()
        axes.text(0.01, whole.average, text, ha="left", va="bottom", color="0.35", transform=place)
    for line in done:
        if line.imported:  # at no budget that is known
            axes.axhline(line.average, color="0.6", linestyle=":", linewidth=1.2)
            place = axes.get_yaxis_transform()
            axes.text(0.99, line.average, mathtext(line.method), ha="right", va="bottom", color="0.45", transform=place)
    plain = 0
    for label, curve in curves(lines).items():
        tokens = [line.tokens for line in curve]
        values = [line.average or 0.0 for line in curve]
        # no bar where the error was not measured
        errors = [math.nan if line.average_error is None else line.average_error for line in curve]
        if all(line.spread is not None for line in curve):
            # what chance alone reaches: between its seeds, or within the error of their mean, whichever is wider
            half = [max(line.spread or 0.0, line.average_error or 0.0) for line in curve]
            low, high = ([v + sign * h for v, h in zip(values, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(tokens, low, high, color="0.8", linewidth=0, label=label)
            axes.plot(tokens, values, color="0.55", linewidth=1)
            continue
        number = plain
        plain += 1
        style: dict[str, Any] = {"color": _COLORS[number % len(_COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}
        style["linestyle"] = ("-", "--", ":")[number // len(_COLORS) % 3]
        axes.errorbar(tokens, values, errors, label=label, capsize=3, markersize=6, linewidth=1.8, **style)
    ticks = sorted({line.tokens for line in lines if line.method != "vanilla"})
    if ticks:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        if len(curves(lines)) > 7:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, handlelength=4)
        else:
            axes.legend(frameon=False, loc="lower right")
    largest = " (shares: of the largest image)" if board.num_visual_tokens is None else ""
    axes.set_xlabel(f"visual tokens entering a decoder layer, on average{largest}")
    axes.set_ylabel("mean score, % of the maximum")
    axes.set_title(f"{mathtext(board.name)}: {len(board.tasks)} tasks, ± standard error", loc="left", fontsize=11)
    axes.grid(axis="y", color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def curves(lines: Sequence[Line], whole: bool = False) -> dict[str, list[Line]]:
    """Rows by what the legend calls them, each from the smallest budget to the largest; vanilla only with `whole`."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.method == "vanilla" and not whole:
            continue
        chosen = " ".join(f"{name}={value}" for name, value in line.given.items())
        seeds = f"({len(line.seeds)} seeds)" if line.seeds else ""
        found.setdefault(mathtext(" ".join(filter(None, (line.method, chosen, seeds)))), []).append(line)
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


def new_axes(names: int) -> tuple[Figure, Axes]:
    """A figure of a column's width, with room to the right for so many names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as New

    height = max(3.5, 0.16 * names + 0.9)
    drawn = New(figsize=(5.6, height))
    FigureCanvasAgg(drawn)
    axes = drawn.add_axes((0.12, 0.56 / height, 0.6, 1 - 0.91 / height))
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def label_ends(drawn: Figure, axes: Axes, ends: Sequence[End]) -> None:
    """Each curve's name (x, y, text, colour) to the right of the axes, as near to its end as the others let it."""
    size = 7.5
    ends = [(x, y, textwrap.fill(text, 26), color) for x, y, text, color in ends]
    widest = max((len(line) for _, _, text, _ in ends for line in text.split("\n")), default=0)
    box, inches = axes.get_position(), drawn.get_figwidth()
    room = (widest * size * 0.58 / 72 + 0.25) / inches
    axes.set_position((box.x0, box.y0, max(0.3, 1 - box.x0 - room), box.height))
    low, high = axes.get_ylim()
    gap = size * 1.25 / (axes.get_position().height * drawn.get_figheight() * 72)
    lines = max((text.count("\n") + 1 for *_, text, _ in ends), default=1)
    gap *= lines
    wanted = sorted((min(1.0, max(0.0, (y - low) / (high - low))), x, y, text, color) for x, y, text, color in ends)
    places: list[float] = []
    for share, *_ in wanted:
        places.append(max(share, places[-1] + gap) if places else share)
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for place in reversed(range(len(places))):  # what was pushed beyond the top pushes back
        top = places[place + 1] - gap if place + 1 < len(places) else places[-1] - over
        places[place] = min(places[place], top)
    for (near, x, _, text, color), height in zip(wanted, places, strict=True):
        point = (x, low + near * (high - low))
        axes.annotate(
            text, xy=point, xycoords="data", xytext=(1.04, height), textcoords="axes fraction", fontsize=size,
            color=color, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.7, "linestyle": ":", "alpha": 0.6},
        )  # fmt: skip
