"""The head study: rows that differ in how they choose their heads, and how these compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finepruner_lmms.matrix.report.baselines import paired_columns
from finepruner_lmms.matrix.report.board import AVERAGE, Leaderboard, Line
from finepruner_lmms.statistics.differences import Difference, average_difference

_NOT_RANKED = ("consensus", "fixed", "profile", "recommended")


@dataclass(frozen=True)
class Studied:
    """A row of the study: its strategy and number of heads, and all else that the matrix file gives it."""

    line: Line
    strategy: str
    heads: Any
    others: str


def studied(board: Leaderboard) -> list[Studied]:
    """The rows whose strategy scores heads; none where all have the same."""
    found = []
    for line in board.lines:
        if _is_ranked(strategy := line.given.get("head_strategy")):
            others = {name: value for name, value in line.given.items() if name not in ("head_strategy", "heads")}
            told = " ".join(f"{name}={value}" for name, value in others.items())
            found.append(Studied(line, str(strategy), line.given.get("heads", "default"), told))
    return found if len({one.strategy for one in found}) > 1 else []


def _is_ranked(strategy: str | None) -> bool:
    """Whether a strategy scores heads (those with heads of their own are no rivals at a number of heads)."""
    return strategy not in (None, *_NOT_RANKED)


def _is_fastv(line: Line) -> bool:
    return line.method == "fastv" and not line.given


def ranking(board: Leaderboard) -> dict[str, Difference]:
    """Each strategy's mean paired difference to `fastv` at the same budget, over the settings that all of them have."""
    fastv = {(line.study, line.tokens): line for line in board.lines if _is_fastv(line)}
    found: dict[str, dict[Any, tuple[Line, Line]]] = {}
    for line in board.lines:
        strategy, base = line.given.get("head_strategy"), fastv.get((line.study, line.tokens))
        if not _is_ranked(strategy) or base is None or AVERAGE not in paired_columns(line, base, board):
            continue
        others = {name: value for name, value in line.given.items() if name != "head_strategy"}
        found.setdefault(str(strategy), {})[line.tokens, tuple(sorted(others.items()))] = line, base
    common = set.intersection(*(set(settings) for settings in found.values())) if found else set()
    ranked: dict[str, Difference] = {}
    for strategy, settings in found.items() if common else ():
        pairs = {(key, task): task for key in sorted(common, key=repr) for task in settings[key][0].tallies}
        one, other = (
            {(key, task): settings[key][place].tallies[task] for key, task in pairs if _in_average(board, task)}
            for place in (0, 1)
        )
        ranked[strategy] = average_difference(one, other, test=False)
    return ranked


def _in_average(board: Leaderboard, task: str) -> bool:
    return task in board.tasks and task not in board.apart


def best_by_budget(chosen: Sequence[Studied]) -> list[Studied]:
    """The row with the highest average at each budget, the largest budget first."""
    done = [one for one in chosen if one.line.average is not None]
    budgets = sorted({one.line.tokens for one in done}, reverse=True)
    at = {tokens: [one for one in done if one.line.tokens == tokens] for tokens in budgets}
    return [max(rows, key=lambda one: one.line.average or 0.0) for rows in at.values()]


def heads_alone(board: Leaderboard) -> dict[float, dict[tuple[int, int], float]]:
    """By budget: the average with one head alone as the guide, by layer and head, where rows name one."""
    budgets: dict[float, dict[tuple[int, int], float]] = {}
    for line in board.lines:
        named = str(line.given.get("fixed_heads", ""))
        if named.isdigit() and line.average is not None:
            layer = int(line.given.get("layer", 2)) - 1
            budgets.setdefault(line.tokens, {})[layer, int(named)] = line.average
    return dict(sorted(budgets.items(), reverse=True))
