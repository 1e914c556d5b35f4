"""What each row of a leaderboard is compared with, and which rows are the best: by paired tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from finepruner_lmms.errors import FieldError, nearest
from finepruner_lmms.matrix.report.board import AVERAGE, Delta, Leaderboard, Line
from finepruner_lmms.matrix.report.scored import Tallies
from finepruner_lmms.statistics.differences import Difference, average_difference, difference_of_seeds, same_questions
from finepruner_lmms.statistics.families import holm

_DEFAULT = "fastv"


def with_deltas(
    lines: Sequence[Line], tasks: Sequence[str], counted: Sequence[str], baseline: str | None, test: bool
) -> list[Line]:
    """The rows with their differences to the baseline, adjusted by Holm over the rows of each column.

    `counted` are the tasks that averages are of. `FieldError` where no row is called like the baseline.
    """
    find = _finder(lines, baseline)
    found: list[dict[str, Delta]] = []
    for line in lines:
        base = find(line)
        found.append({} if base is None else _deltas(line, base, tasks, counted, test))
    for column in (*tasks, AVERAGE):
        rows = [deltas for deltas in found if column in deltas and deltas[column].difference.p is not None]
        adjusted = holm([deltas[column].difference.p or 0.0 for deltas in rows])
        for deltas, p in zip(rows, adjusted, strict=True):
            deltas[column] = replace(deltas[column], p_adjusted=p)
    return [replace(line, deltas=deltas) for line, deltas in zip(lines, found, strict=True)]


def _finder(lines: Sequence[Line], baseline: str | None) -> Callable[[Line], Line | None]:
    """How the baseline of a row is found: the row that is named, or the method at the row's budget, or else vanilla."""
    if baseline is not None:
        wanted = " ".join(baseline.split())
        for line in lines:
            if wanted in (line.label, line.key):
                return lambda row: None if row is line else line
        if not any(line.method == wanted for line in lines):
            known = list(dict.fromkeys([*(line.method for line in lines), *(line.label for line in lines)]))
            problem = f"got {baseline!r}{nearest(wanted, known)}; expected a row or a method: {', '.join(known)}"
            raise FieldError("baseline", problem, value=baseline)
    method = _DEFAULT if baseline is None else wanted
    at = {(line.study, line.tokens): line for line in reversed(lines) if line.method == method and not line.given}
    anywhere = {line.tokens: line for line in reversed(lines) if line.method == method and not line.given}
    whole = {line.study: line for line in reversed(lines) if line.method == "vanilla"}

    def find(line: Line) -> Line | None:
        if line.method == "vanilla":
            return None
        base = at.get((line.study, line.tokens)) or anywhere.get(line.tokens)
        if base is None or base is line or line.imported:
            base = whole.get(line.study) or next(iter(whole.values()), None)
        return base

    return find


def _deltas(
    line: Line, base: Line, tasks: Sequence[str], counted: Sequence[str], test: bool
) -> dict[str, Delta]:  # fmt: skip
    name = base.label if base.study == line.study else base.key
    found: dict[str, Delta] = {}
    for task in tasks:
        if not _comparable(line.tallies, base.tallies, task):
            continue
        paired = difference_of_seeds(line.tallies[task], base.tallies[task], test=test)
        found[task] = Delta(name, paired.scaled(line.tallies[task][0].per_percent))
    whole = [task for task in counted if task not in line.submitted]
    if whole and all(task in found for task in whole):
        paired = average_difference(
            {task: line.tallies[task] for task in whole}, {task: base.tallies[task] for task in whole}, test=test
        )
        found[AVERAGE] = Delta(name, paired)
    return found


def paired_columns(line: Line, base: Line, board: Leaderboard) -> set[str]:
    """The tasks that two rows were asked the same questions of, and `average` where that is so of all."""
    counted = [task for task in board.tasks if task not in board.apart]
    found = {task for task in board.tasks if _comparable(line.tallies, base.tallies, task)}
    return found | ({AVERAGE} if counted and found.issuperset(counted) else set())


def _comparable(one: Tallies, other: Tallies, task: str) -> bool:
    return bool(one.get(task)) and bool(other.get(task)) and same_questions(one[task], other[task])


def with_best(lines: Sequence[Line], tasks: Sequence[str]) -> list[Line]:
    """The rows with their best columns: the highest score of its budget, and those that the paired interval ties."""
    marks: list[set[str]] = [set() for _ in lines]
    budgets: dict[float, list[int]] = {}
    for place, line in enumerate(lines):
        if line.method != "vanilla" and not line.imported:
            budgets.setdefault(line.tokens, []).append(place)
    for places in budgets.values():
        if len(places) < 2:
            continue
        for column in (*tasks, AVERAGE):
            shown = {place: value for place in places if (value := _value(lines[place], column)) is not None}
            if len(shown) < 2:
                continue
            top = max(shown, key=lambda place: shown[place])
            for place in shown:
                if place == top or _tied(lines[top], lines[place], column):
                    marks[place].add(column)
    return [replace(line, best=frozenset(found)) for line, found in zip(lines, marks, strict=True)]


def _value(line: Line, column: str) -> float | None:
    """A row's value in a column, larger is better."""
    if column == AVERAGE:
        return line.average
    if (score := line.scores.get(column)) is None:
        return None
    less = score.measure is not None and not score.measure.higher_is_better
    return -score.percent if less else score.percent


def _tied(top: Line, line: Line, column: str) -> bool:
    """Whether the paired 95 % interval of the difference holds 0."""
    found = _paired(top, line, column)
    if found is None or found.low is None or found.high is None:
        return _value(top, column) == _value(line, column)
    return found.holds_zero


def _paired(one: Line, other: Line, column: str) -> Difference | None:
    if column != AVERAGE:
        if not _comparable(one.tallies, other.tallies, column):
            return None
        return difference_of_seeds(one.tallies[column], other.tallies[column], test=False)
    tasks = [task for task in one.tallies if one.scores[task].counts and task not in one.submitted]
    if not tasks or not all(_comparable(one.tallies, other.tallies, task) for task in tasks):
        return None
    return average_difference(
        {task: one.tallies[task] for task in tasks}, {task: other.tallies[task] for task in tasks}, test=False
    )
