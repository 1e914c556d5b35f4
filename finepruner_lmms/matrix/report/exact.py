"""Every number of the leaderboard at full precision: for CSV, and for Python as a data frame."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING

from finepruner_lmms.matrix.report.board import AVERAGE, Leaderboard, Line
from finepruner_lmms.matrix.report.costs import exact_costs
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.matrix.report.names import row_names
from finepruner_lmms.matrix.report.reading import besides, relative_of

if TYPE_CHECKING:
    import pandas as pd


def exact_frame(board: Leaderboard, relative: str = "ratios") -> Frame:
    """A row per line of the leaderboard.

    First the columns `method,budget,<parameters>,<tasks>,average,relative`. Then, for each task and the average, its
    standard error, the ends of its 95 % interval and its numbers of questions and images; then the difference to the
    baseline (`delta`), with its error, interval, p-values, answers won and lost; then what the row cost. Scores are
    in percent, MME in points; a value that is not there is None.
    """
    return Frame.of(
        row_names(board, line, exact=True)
        | {task: line.scores[task].shown if task in line.scores else None for task in board.tasks}
        | {"average": line.average, "relative": relative_of(line, relative)[0]}
        | _errors(board, line, relative)
        | _beside(board, line)
        | _deltas(board, line)
        | {"best": " ".join(column for column in (*board.tasks, AVERAGE) if column in line.best)}
        | exact_costs(board, line)
        | {"study": line.study, "seeds": len(line.seeds) or 1, "spread": line.spread}
        for line in board.lines
    )


def dataframe(board: Leaderboard, relative: str = "ratios") -> pd.DataFrame:
    """`exact_frame` as a `pandas.DataFrame`; what is not there is NaN."""
    return exact_frame(board, relative).dataframe()


_SCORE = {
    "error": "shown_error", "low": "shown_low", "high": "shown_high", "questions": "questions", "images": "images",
}  # fmt: skip
_DELTA = {
    "delta": "difference.value", "delta_error": "difference.error", "delta_low": "difference.low",
    "delta_high": "difference.high", "p": "difference.p", "p_adjusted": "p_adjusted", "won": "difference.won",
    "lost": "difference.lost",
}  # fmt: skip
"""What columns of a task are called, and the field that each shows."""


def _errors(board: Leaderboard, line: Line, relative: str) -> dict[str, object]:
    row: dict[str, object] = {}
    for task in board.tasks:
        row |= _fields(task, line.scores.get(task), _SCORE)
    row |= {"average_error": line.average_error, "average_low": line.average_low, "average_high": line.average_high}
    return row | {"relative_error": relative_of(line, relative)[1]}


def _fields(column: str, of: object, names: Mapping[str, str]) -> dict[str, object]:
    return {f"{column}_{name}": None if of is None else attrgetter(field)(of) for name, field in names.items()}


def _beside(board: Leaderboard, line: Line) -> dict[str, object]:
    row: dict[str, object] = {}
    for task, name in besides(board):
        score = line.scores.get(task)
        row[f"{task}_{name}".replace(" ", "_")] = None if score is None else score.beside.get(name)
    return row


def _deltas(board: Leaderboard, line: Line) -> dict[str, object]:
    row: dict[str, object] = {"baseline": next((delta.baseline for delta in line.deltas.values()), None)}
    for column in (*board.tasks, AVERAGE):
        row |= _fields(column, line.deltas.get(column), _DELTA)
    return row
