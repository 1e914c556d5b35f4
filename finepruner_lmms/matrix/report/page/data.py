"""What the page shows of a leaderboard, as JSON: all numbers are the board's, and all texts are raw."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.report.board import AVERAGE, Delta, Leaderboard, Line
from finepruner_lmms.matrix.report.costs import cost_notes, measured_costs
from finepruner_lmms.matrix.report.page.blocks import finite
from finepruner_lmms.matrix.report.tables import notes, task_title

Json = dict[str, Any]


def page_data(board: Leaderboard) -> Json:
    """The board as the page reads it: tasks, rows with their scores and costs, notes.

    Numbers are as the board has them (percent; MME in points), None where there is none.
    """
    return {
        "name": board.name,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": [_task(board, task) for task in board.tasks],
        "parameters": list(board.parameters),
        "rows": [_row(board, line) for line in board.lines],
        "notes": notes(board),
        "cost_notes": cost_notes(board) if any(line.cost or line.timed for line in board.lines) else [],
    }


def _task(board: Leaderboard, task: str) -> Json:
    measure = board.measures.get(task)
    return {
        "name": task,
        "title": task_title(board, task),
        "plain": title(task),
        "unit": "points" if task == "mme" else "" if task in board.apart else "%",
        "counts": task not in board.apart,
        "higher": measure is None or measure.higher_is_better,
        "questions": board.questions.get(task),
    }


def _row(board: Leaderboard, line: Line) -> Json:
    average = relative = None
    if line.average is not None:
        average = _estimate(line.average, line.average_error, line.average_low, line.average_high)
        average |= _compared(board, line, AVERAGE)
    if line.relative is not None:
        relative = _estimate(line.relative, line.relative_error, None, None)
    return {
        "key": line.key,
        "label": line.label,
        "study": line.study if len(board.studies) > 1 else None,
        "method": line.method,
        "budget": str(line.budget),
        "tokens": None if line.imported else finite(line.tokens),
        "parameters": {name: str(value) for name, value in line.parameters.items()},
        "given": {name: str(value) for name, value in line.given.items()},
        "seeds": len(line.seeds),
        "spread": finite(line.spread),
        "imported": line.imported,
        "baseline": next((_key(board, line, delta) for delta in line.deltas.values()), None),
        "scores": {task: _score(board, line, task) for task in board.tasks},
        "average": average,
        "relative": relative,
        "cost": None if line.cost is None else {name: finite(value) for name, value in line.cost.items()},
        "measured": measured_costs(board, line),
    }


def _score(board: Leaderboard, line: Line, task: str) -> Json:
    score = line.scores.get(task)
    if score is None:
        return {"state": "submitted" if task in line.submitted else "waiting" if task in line.waiting else "missing"}
    counted = {"percent": finite(score.percent), "questions": score.questions, "images": score.images}
    shown = _estimate(score.shown, score.shown_error, score.shown_low, score.shown_high)
    return shown | counted | _compared(board, line, task)


def _compared(board: Leaderboard, line: Line, column: str) -> Json:
    """Whether a row is among the best of its budget, and its difference to the baseline."""
    delta = line.deltas.get(column)
    return {"best": column in line.best, "delta": None if delta is None else _delta(board, line, delta)}


def _delta(board: Leaderboard, line: Line, delta: Delta) -> Json:
    found = delta.difference
    return {
        "value": finite(found.value),
        "error": finite(found.error),
        "low": finite(found.low),
        "high": finite(found.high),
        "p": finite(found.p),
        "p_adjusted": finite(delta.p_adjusted),
        "mark": delta.mark,
        "won": found.won,
        "lost": found.lost,
        "baseline": _key(board, line, delta),
    }


def _key(board: Leaderboard, line: Line, delta: Delta) -> str | None:
    """The key of the row that a difference is to."""
    names = {f"{line.study}:{delta.baseline}", delta.baseline}
    return next((other.key for other in board.lines if other.key in names), None)


def _estimate(value: float, error: float | None, low: float | None, high: float | None) -> Json:
    return {"shown": finite(value), "error": finite(error), "low": finite(low), "high": finite(high)}
