"""Figures for papers: what `report --figures DIR` writes, as PDF, PNG and SVG, each with the data behind it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError
from finepruner_lmms.files import write_bytes, write_text
from finepruner_lmms.matrix.report.board import AVERAGE, Leaderboard, Line
from finepruner_lmms.matrix.report.costs import measured_costs
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.names import task_title
from finepruner_lmms.matrix.report.plots import (
    End,
    Shown,
    add_curves,
    budget_axis,
    curves,
    label_ends,
    new_axes,
    styles,
    zoom,
)
from finepruner_lmms.output import mathtext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = ("pdf", "png", "svg")


@dataclass(frozen=True)
class Drawn:
    """A figure, the name of its files, and the data that it shows."""

    name: str
    figure: Figure
    data: Frame


def write_figures(board: Leaderboard, folder: Path) -> list[Path]:
    """Write every figure that the leaderboard has data for; returns the files. `FieldError` where there is none.

    The leaderboard's differences must be those to vanilla.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    # text stays text, and the same data are the same bytes
    options = {"svg.fonttype": "none", "svg.hashsalt": "finepruner", "pdf.fonttype": 42}
    with matplotlib.rc_context(options):
        for drawn in figures(board):
            for suffix in SUFFIXES:
                content = io.BytesIO()
                stamp = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[suffix]
                drawn.figure.savefig(content, format=suffix, dpi=300, metadata=stamp)
                written.append(folder / f"{drawn.name}.{suffix}")
                write_bytes(written[-1], content.getvalue())
            drawn.figure.clear()
            written.append(folder / f"{drawn.name}.csv")
            write_text(written[-1], drawn.data.csv())
    if not written:
        raise FieldError("--figures", "no row has all of its tasks done yet, so there is nothing to draw")
    return written


def figures(board: Leaderboard) -> Iterator[Drawn]:
    """The figures that there are data for."""
    lines = [line for line in board.lines if not line.imported]
    if any(AVERAGE in line.deltas for line in lines):
        yield _drop(board, lines)
    for task in board.tasks:
        if sum(task in line.scores for line in lines if line.method != "vanilla") > 1:
            yield _task(board, lines, task)
    for name, (label, unit, of) in _COSTS.items():
        known = [(line, value) for line in lines if (value := of(board, line)) is not None]
        if sum(line.average is not None for line, _ in known) > 1:
            yield _against_cost(board, known, name, label, unit)


def _flops(board: Leaderboard, line: Line) -> float | None:
    return None if line.cost is None else line.cost.get("macs_3")


def _first_token(board: Leaderboard, line: Line) -> float | None:
    return measured_costs(board, line)["first_token_p50"]


Unit = tuple[float, str]
_COSTS: dict[str, tuple[str, Callable[[float], Unit], Callable[[Leaderboard, Line], float | None]]] = {
    "flops": (
        "FLOPs of the decoder's prefill, as papers count them",
        lambda most: (1e12, "T") if most >= 1e11 else (1e9, "G"),
        _flops,
    ),
    "latency": ("time to the first token, measured", lambda most: (1e-3, "ms"), _first_token),
}


def _drop(board: Leaderboard, lines: Sequence[Line]) -> Drawn:
    """The average minus vanilla's against the budget, with paired intervals; random is a band, off which one zooms."""
    compared = [line for line in lines if AVERAGE in line.deltas and line.method != "vanilla"]
    drawn = curves(compared)
    figure, axes = new_axes(drawn)
    ends: list[End] = []
    rows: list[dict[str, object]] = []
    axes.axhline(0, color="0.45", linestyle="--", linewidth=1)
    for curve in drawn.values():
        for line in curve:
            one = line.deltas[AVERAGE].difference
            rows.append(
                {"row": board.called(line), "tokens": line.tokens, "drop": one.value, "low": one.low, "high": one.high}
            )
    seen = add_curves(axes, drawn, _dropped, ends)
    zoom(axes, [0.0, *seen])
    budget_axis(board, axes, compared)
    axes.set_ylabel("average minus vanilla's, points")
    label_ends(figure, axes, ends)
    axes.set_title(f"{mathtext(board.name)}: 95 % intervals, paired", loc="left", fontsize=10)
    return Drawn("drop", figure, Frame.of(rows))


def _dropped(line: Line) -> Shown:
    found = line.deltas[AVERAGE].difference
    return found.value, found.low, found.high


def _scored(line: Line, task: str) -> Shown:
    score = line.scores[task]
    return score.shown, score.shown_low, score.shown_high


def _task(board: Leaderboard, lines: Sequence[Line], task: str) -> Drawn:
    """One task's score against the budget."""
    done = [line for line in lines if task in line.scores and line.method != "vanilla"]
    drawn = curves(done)
    figure, axes = new_axes(drawn)
    ends: list[End] = []
    rows: list[dict[str, object]] = []
    seen: list[float] = []
    whole = [line for line in lines if line.method == "vanilla" and task in line.scores]
    for line in whole:
        axes.axhline(line.scores[task].shown, color="0.45", linestyle="--", linewidth=1)
        seen.append(line.scores[task].shown)
    for line in (*whole, *done):
        shown, low, high = _scored(line, task)
        rows.append({"row": board.called(line), "tokens": line.tokens, "score": shown, "low": low, "high": high})
    seen += add_curves(axes, drawn, lambda line: _scored(line, task), ends)
    zoom(axes, seen)
    budget_axis(board, axes, done)
    axes.set_ylabel(f"{mathtext(task_title(board, task))}{', points' if task == 'mme' else ', %'}")
    label_ends(figure, axes, ends)
    axes.set_title(f"{mathtext(board.name)}: 95 % intervals over images", loc="left", fontsize=10)
    return Drawn(f"task_{_file_name(task)}", figure, Frame.of(rows))


def _against_cost(
    board: Leaderboard,
    known: Sequence[tuple[Line, float]],
    name: str,
    label: str,
    unit_of: Callable[[float], Unit],
) -> Drawn:
    """The average against a cost, with the rows that no other row beats in both joined: the Pareto front."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    unit, unit_name = unit_of(max(value for _, value in known))
    cost = {line.key: value / unit for line, value in known}
    done = [line for line, _ in known if line.average is not None]
    drawn = curves(done, whole=True)
    figure, axes = new_axes(drawn)
    front = pareto([(cost[line.key], line.average or 0.0) for line in done])
    edge = sorted((cost[done[place].key], done[place].average or 0.0) for place in front)
    axes.plot([x for x, _ in edge], [y for _, y in edge], color="0.6", linewidth=1.2, drawstyle="steps-post", zorder=1)
    ends: list[End] = []
    for text, curve, style in styles(drawn):
        points = sorted((cost[line.key], line.average or 0.0) for line in curve)
        across, up = [x for x, _ in points], [y for _, y in points]
        axes.plot(across, up, color=style.color, marker=style.marker, markersize=5, linewidth=0.8, alpha=0.9)
        ends.append((across[-1], up[-1], text, style.color))
    calm = [line for line in done if line.method != "random"]
    zoom(axes, [line.average or 0.0 for line in calm])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlabel(f"{label} ({unit_name})")
    axes.set_ylabel("mean score, % of the maximum")
    label_ends(figure, axes, ends)
    axes.set_title(f"{mathtext(board.name)}: Pareto front in grey", loc="left", fontsize=10)
    rows = [
        {
            "row": board.called(line), "tokens": line.tokens, f"{name}_{unit_name}": cost[line.key],
            "average": line.average, "low": line.average_low, "high": line.average_high,
            "front": "yes" if place in front else "no",
        }
        for place, line in enumerate(done)
    ]  # fmt: skip
    return Drawn(f"average_{name}", figure, Frame.of(rows))


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which of points (cost, score) no other one beats: none costs no more and scores no less, and differs."""
    return {
        place
        for place, (cost, score) in enumerate(points)
        if not any(x <= cost and y >= score and (x, y) != (cost, score) for x, y in points)
    }


def _file_name(task: str) -> str:
    return "".join(character if character.isascii() and character.isalnum() else "_" for character in task)
