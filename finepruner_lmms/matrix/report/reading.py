"""The two parts of the leaderboard for reading: scores with their intervals, and differences to the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from finepruner_lmms.matrix.progress import MISSING
from finepruner_lmms.matrix.report.board import AVERAGE, Delta, Leaderboard, Line
from finepruner_lmms.matrix.report.frame import Frame, Stacked, Strong
from finepruner_lmms.matrix.report.names import ordered, row_names, task_title
from finepruner_lmms.matrix.report.numbers import Digits, decimals, interval, number, with_error
from finepruner_lmms.statistics.differences import FEW_DISCORDANT

SUBMITTED = "submission written"
WAITING = "waiting"
BETTER, WORSE, FEW = "↑", "↓", "?"
_ARROWS = {"better": BETTER, "worse": WORSE, "": ""}


def scores_frame(board: Leaderboard, relative: str = "ratios") -> Frame:
    """A row per line of the leaderboard: each task's score, their average, and that relative to vanilla's."""
    lines, headings = ordered(board)
    scores = {task: [line.scores[task] for line in lines if task in line.scores] for task in board.tasks}
    places = {
        task: Digits.of((score.shown_error, score.shown_low, score.shown_high) for score in found)
        for task, found in scores.items()
    }
    means = Digits.of((line.average_error, line.average_low, line.average_high) for line in lines)
    shares = decimals(relative_of(line, relative)[1] for line in lines)
    compared = any(AVERAGE in line.deltas for line in lines)
    changes = _digits(lines, AVERAGE)
    rows = []
    for line in lines:
        row = row_names(board, line)
        row |= {task_title(board, task): _score(line, task, places[task]) for task in board.tasks}
        row["average"] = _average(line, means)
        if compared:
            row["Δ average"] = _delta(line, AVERAGE, changes)
        row["relative"] = _relative(line, relative, shares)
        rows.append(row)
    return Frame.of(rows, headings, words=_words(board, rows))


def deltas_frame(board: Leaderboard) -> Frame | None:
    """The same of the differences to each row's baseline; None where no row has one."""
    lines, headings = ordered(board)
    compared = [line for line in lines if line.deltas]
    if not compared:
        return None
    columns = [task for task in (*board.tasks, AVERAGE) if any(task in line.deltas for line in compared)]
    places = {column: _digits(compared, column) for column in columns}
    rows: list[dict[str, object]] = []
    kept: dict[int, str] = {}
    heading = None
    for place, line in enumerate(lines):
        heading = headings.get(place, heading)
        if not line.deltas:
            continue
        if heading is not None:
            kept[len(rows)], heading = heading, None
        row = row_names(board, line) | {"minus": next(iter(line.deltas.values())).baseline}
        for task in columns:
            row["average" if task == AVERAGE else task_title(board, task)] = _delta(line, task, places[task])
        rows.append(row)
    return Frame.of(rows, kept, words=_words(board, rows) + 1)


def beside_frame(board: Leaderboard) -> Frame | None:
    """Other figures of benchmarks, such as MME's cognition and total; None where no row has one."""
    columns = besides(board)
    if not columns:
        return None
    lines, headings = ordered(board)
    rows = []
    for line in lines:
        row = row_names(board, line)
        for task, name in columns:
            value = line.scores[task].beside.get(name) if task in line.scores else None
            shown = MISSING if value is None else f"{value:g}" if float(value).is_integer() else number(value, 1)
            row[f"{task_title(board, task)} {name}"] = shown
        rows.append(row)
    return Frame.of(rows, headings, words=_words(board, rows))


def besides(board: Leaderboard) -> list[tuple[str, str]]:
    """Tasks and their figures beside the score, as far as rows have them."""
    found = [(task, line.scores[task]) for task in board.tasks for line in board.lines if task in line.scores]
    return list(dict.fromkeys((task, name) for task, score in found for name in score.beside))


def relative_of(line: Line, how: str) -> tuple[float | None, float | None]:
    """A row's share of vanilla's scores by one of the published conventions, and its error."""
    if how == "ratios":
        return line.relative, line.relative_error
    return line.relative_of_means, line.relative_of_means_error


def few(delta: Delta) -> bool:
    """Whether so few answers differ that the difference says little."""
    return 0 < delta.difference.discordant < FEW_DISCORDANT


def _words(board: Leaderboard, rows: list[dict[str, object]]) -> int:
    """The columns of words before the scores."""
    return len(row_names(board, board.lines[0])) if rows else 1


def _digits(lines: Sequence[Line], column: str) -> Digits:
    found = [line.deltas[column].difference for line in lines if column in line.deltas]
    return Digits.of((one.error, one.low, one.high) for one in found)


def _score(line: Line, task: str, places: Digits) -> object:
    if (score := line.scores.get(task)) is None:
        return SUBMITTED if task in line.submitted else WAITING if task in line.waiting else MISSING
    return _value(line, task, score.shown, score.shown_low, score.shown_high, places)


def _average(line: Line, places: Digits) -> object:
    if line.average is None:
        return MISSING
    return _value(line, AVERAGE, line.average, line.average_low, line.average_high, places)


def _relative(line: Line, how: str, places: int) -> str:
    value, error = relative_of(line, how)
    if value is None:
        return MISSING
    if line.method == "vanilla":  # by definition
        return f"{number(value, places)} %"
    return f"{with_error(value, error, ' ± ', places)} %"


def _value(line: Line, column: str, value: float, low: float | None, high: float | None, places: Digits) -> object:
    text = number(value, places.value)
    return Stacked(Strong(text) if column in line.best else text, interval(low, high, places.ends))


def _delta(line: Line, column: str, places: Digits) -> object:
    if (delta := line.deltas.get(column)) is None:
        return MISSING if column != AVERAGE or line.average is None else ""
    found = delta.difference
    marks = _ARROWS[delta.mark] + (FEW if few(delta) else "")
    value = number(found.value, places.value, sign=True) + marks
    return Stacked(value, interval(found.low, found.high, places.ends, sign=True))
