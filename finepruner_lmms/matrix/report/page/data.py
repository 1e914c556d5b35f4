"""What the page shows of a leaderboard, as JSON: all numbers are the board's, and all texts are raw."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.report.baselines import with_deltas
from finepruner_lmms.matrix.report.board import AVERAGE, Delta, Leaderboard, Line
from finepruner_lmms.matrix.report.costs import cost_notes, has_costs, measured_costs
from finepruner_lmms.matrix.report.names import task_title
from finepruner_lmms.matrix.report.notes import notes
from finepruner_lmms.matrix.report.page.blocks import finite
from finepruner_lmms.matrix.report.page.provenance import COVERS
from finepruner_lmms.matrix.report.scored import Score

Json = dict[str, Any]


def page_data(board: Leaderboard) -> Json:
    """The board as the page reads it: tasks, rows with their scores and costs, notes.

    Numbers are as the board has them (percent; MME in points), None where there is none.
    """
    to_vanilla = _drops(board)
    return {
        "name": board.name,
        "generated": datetime.now(UTC).isoformat(timespec="seconds"),
        "tasks": [_task(board, task) for task in board.tasks],
        "parameters": list(board.parameters),
        "rows": [_row(board, line, to_vanilla.get(line.key, {})) for line in board.lines],
        "covers": list(COVERS),
        "notes": notes(board),
        "cost_notes": cost_notes(board) if has_costs(board) else [],
    }


def _drops(board: Leaderboard) -> dict[str, dict[str, Delta]]:
    """By row: its paired differences to vanilla, in each column."""
    if all(line.method != "vanilla" for line in board.lines):
        return {}
    counted = [task for task in board.tasks if task not in board.apart]
    return {line.key: line.deltas for line in with_deltas(board.lines, board.tasks, counted, "vanilla", test=False)}


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


def _row(board: Leaderboard, line: Line, drops: dict[str, Delta]) -> Json:
    average = None
    if line.average is not None:
        average = _estimate(line.average, line.average_error, line.average_low, line.average_high)
        average |= _marks(board, line, AVERAGE, drops)
    relative = None if line.relative is None else _estimate(line.relative, line.relative_error, None, None)
    conditions = dict.fromkeys(str(timed.speed.conditions) for timed in line.timed)
    based = next(iter(line.deltas.values()), None)
    return {
        "key": line.key,
        "label": line.label,
        "study": line.study if len(board.studies) > 1 else None,
        "method": line.method,
        "budget": str(line.budget),
        "tokens": None if line.imported else finite(line.tokens),
        "parameters": {name: str(value) for name, value in line.parameters.items() if value is not None},
        "given": {name: str(value) for name, value in line.given.items()},
        "seeds": len(line.seeds),
        "spread": finite(line.spread),
        "imported": line.imported,
        "baseline": None if based is None else _key(board, line, based),
        "scores": {task: _score(board, line, task, drops) for task in board.tasks},
        "average": average,
        "relative": relative,
        "cost": None if line.cost is None else {name: finite(value) for name, value in line.cost.items()},
        "measured": {name: finite(value) for name, value in measured_costs(board, line).items()},
        "conditions": list(conditions),
    }


def _score(board: Leaderboard, line: Line, task: str, drops: dict[str, Delta]) -> Json:
    score = line.scores.get(task)
    if score is None:
        return {"state": "submitted" if task in line.submitted else "waiting" if task in line.waiting else "missing"}
    return _shown(score) | _marks(board, line, task, drops)


def _shown(score: Score) -> Json:
    shown = _estimate(score.shown, score.shown_error, score.shown_low, score.shown_high)
    beside = {name: finite(value) for name, value in score.beside.items()}
    return shown | {"questions": score.questions, "images": score.images or None, "beside": beside}


def _estimate(value: float, error: float | None, low: float | None, high: float | None) -> Json:
    return {"shown": finite(value), "error": finite(error), "low": finite(low), "high": finite(high)}


def _marks(board: Leaderboard, line: Line, column: str, drops: dict[str, Delta]) -> Json:
    return {
        "best": column in line.best,
        "delta": _delta(board, line, line.deltas.get(column)),
        "drop": _delta(board, line, drops.get(column)),
    }


def _delta(board: Leaderboard, line: Line, delta: Delta | None) -> Json | None:
    if delta is None:
        return None
    found = delta.difference
    shown = _estimate(found.value, found.error, found.low, found.high)
    return shown | {
        "p": finite(found.p),
        "p_adjusted": finite(delta.p_adjusted),
        "mark": delta.mark,
        "won": found.won,
        "lost": found.lost,
        "questions": found.questions,
        "images": found.images,
        "baseline": _key(board, line, delta),
    }


def _key(board: Leaderboard, line: Line, delta: Delta) -> str | None:
    """The baseline's row; a delta names it by its label where it is of the same study."""
    named = {f"{line.study}:{delta.baseline}", delta.baseline}
    return next((other.key for other in board.lines if other.key in named), None)
