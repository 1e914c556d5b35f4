"""What the rows, groups and columns of a leaderboard are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.report.board import Leaderboard, Line

_FEW = 2


@dataclass(frozen=True)
class Group:
    """The rows of one budget, and what stands above them."""

    heading: str
    lines: tuple[Line, ...]


def groups(board: Leaderboard) -> list[Group]:
    """The rows by budget, the largest first, as papers print them; those that were run elsewhere at the end."""
    found: dict[tuple[bool, float], list[Line]] = {}
    for line in board.lines:
        found.setdefault((line.imported, 0.0 if line.imported else line.tokens), []).append(line)
    ordered = sorted(found.items(), key=lambda item: item[0][0])  # stable: the order of the board otherwise
    return [Group(_heading(board, lines), tuple(lines)) for _, lines in ordered]


def ordered(board: Leaderboard) -> tuple[list[Line], dict[int, str]]:
    """All rows, group by group, and the headings by the number of the row that they stand above."""
    lines: list[Line] = []
    headings = {}
    for group in groups(board):
        headings[len(lines)] = group.heading
        lines += group.lines
    return lines, headings


def _heading(board: Leaderboard, lines: Sequence[Line]) -> str:
    if lines[0].imported:
        return "not run here"
    every, tokens = board.num_visual_tokens, lines[0].tokens
    if all(line.method == "vanilla" for line in lines) or tokens == every:
        return "all visual tokens" if every is None else f"all {every} visual tokens"
    budgets = list(dict.fromkeys(str(line.budget) for line in lines))
    if every is None:
        shares = " or ".join(budget if budget.endswith("%") else f"{budget} tokens" for budget in budgets)
        return f"{shares} of the largest image" if any(budget.endswith("%") for budget in budgets) else shares
    return f"{tokens:g} visual tokens ({100 * tokens / every:.0f}%)"


def row_names(board: Leaderboard, line: Line, exact: bool = False) -> dict[str, object]:
    """What a row is called: method, and parameters, each in a column, or where these are many, in one.

    Where budgets are no headings (`exact`), they are a column, too.
    """
    row: dict[str, object] = {"method": line.method}
    if exact:
        row["budget"] = line.budget
    if exact or len(board.parameters) <= _FEW:
        read = {name: line.parameters.get(name) for name in board.parameters}
        row |= {name: "" if value is None else value for name, value in read.items()}  # None: the method's own
    elif any(line.given for line in board.lines):
        row["parameters"] = ", ".join(f"{name}={value}" for name, value in line.given.items())
    if line.seeds and "seed" not in board.parameters:
        row["method"] = f"{line.method} ({len(line.seeds)} seeds)"
    if len(board.studies) > 1 and not exact:
        row = {"study": line.study, **row}
    return row


def task_title(board: Leaderboard, task: str) -> str:
    """With a mark where the score is none that others print."""
    return title(task, board.measures.get(task)) + (" (exact)" if "exact" in board.judges.get(task, ()) else "")
