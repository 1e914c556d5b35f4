"""What the page shows of a leaderboard, as JSON: all numbers are the board's, and all texts are raw."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.report.costs import cost_notes, measured_costs
from finepruner_lmms.matrix.report.leaderboard import Leaderboard, Line, Score
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


def key_of(line: Line) -> str:
    """What a row is called between the parts of the page; stable while its matrix file is."""
    given = (f"{name}={value}" for name, value in line.given.items())
    return " ".join([line.method, str(line.budget), *given])


def label_of(line: Line) -> str:
    """What a row is called for people: method, budget and what the matrix file gives."""
    budget = [] if line.method == "vanilla" or line.budget == "" else [str(line.budget)]
    return " ".join([line.method, *budget, *(f"{name}={value}" for name, value in line.given.items())])


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
    average = None if line.average is None else _estimate(line.average, line.average_error)
    relative = None if line.relative is None else _estimate(line.relative, None)
    return {
        "key": key_of(line),
        "label": label_of(line),
        "study": None,
        "method": line.method,
        "budget": str(line.budget),
        "tokens": None if line.imported else finite(line.tokens),
        "parameters": {name: str(value) for name, value in line.parameters.items()},
        "given": {name: str(value) for name, value in line.given.items()},
        "seeds": len(line.seeds),
        "spread": finite(line.spread),
        "imported": line.imported,
        "baseline": None,
        "scores": {task: _score(line, task) for task in board.tasks},
        "average": average,
        "relative": relative,
        "cost": None if line.cost is None else {name: finite(value) for name, value in line.cost.items()},
        "measured": measured_costs(board, line),
    }


def _score(line: Line, task: str) -> Json:
    score = line.scores.get(task)
    if score is None:
        return {"state": "submitted" if task in line.submitted else "waiting" if task in line.waiting else "missing"}
    return _shown(score)


def _shown(score: Score) -> Json:
    return _estimate(score.shown, score.shown_error) | {"percent": finite(score.percent)}


def _estimate(value: float, error: float | None) -> Json:
    return {"shown": finite(value), "error": finite(error), "low": None, "high": None, "best": False, "delta": None}
