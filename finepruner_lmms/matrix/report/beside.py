"""What is told beside scores: MME's cognition and total, ScienceQA as LLaVA counts, what of MMBench is unreadable."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from finepruner_lmms.benchmarks import BENCHMARKS, Benchmark
from finepruner_lmms.benchmarks.protocol import LLAVA, LMMS_EVAL
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.records import Result

if TYPE_CHECKING:
    from finepruner_lmms.matrix.report.board import Leaderboard

Figures = tuple[tuple[str, float], ...]
"""By the name of the metric, as the field prints it."""


def figures_beside(benchmark: Benchmark, result: Result) -> Figures:
    """What a result has beside its score."""
    numbers = result.metrics
    return tuple(
        (one.name, one.factor * numbers[one.metric])
        for one in benchmark.beside
        if one.metric in numbers and (one.needs or one.metric) in numbers
    )


def mean_figures(found: Sequence[Figures]) -> Figures:
    """The means over seeds of what all of them have."""
    common = [name for name, _ in found[0] if all(name in dict(one) for one in found)]
    return tuple((name, statistics.fmean(dict(one)[name] for one in found)) for name in common)


def beside_notes(board: Leaderboard) -> Iterator[str]:
    """A line for each benchmark with figures beside its score, and one for scores by other rules than the usual."""
    for task in board.tasks:
        benchmark = BENCHMARKS.get(task)
        for one in () if benchmark is None else benchmark.beside:
            rows = ((line.label, line.scores[task]) for line in board.lines if task in line.scores)
            found = ((label, dict(score.beside).get(one.name), score.shown) for label, score in rows)
            told = [
                f"{label} {value:,.{one.digits}f}"
                for label, value, shown in found
                if value is not None and value != (shown if one.usual == "score" else one.usual)
            ]
            if told:
                yield f"{title(task)}, {one.title}: {', '.join(told)}."
    scores = [(task, line.scores[task]) for task in board.tasks for line in board.lines if task in line.scores]
    others = dict.fromkeys(title(task) for task, score in scores if score.protocol == LMMS_EVAL)
    if others:
        mixed = [task for task in dict.fromkeys(task for task, _ in scores) if _mixed(board, task)]
        both = f" {', '.join(map(title, mixed))}: rows by both rules, which do not compare." if mixed else ""
        rules = "scored by lmms-eval's rules (protocol: lmms_eval), not by those of published figures."
        yield f"{', '.join(others)}: {rules}{both}"


def _mixed(board: Leaderboard, task: str) -> bool:
    return {line.scores[task].protocol for line in board.lines if task in line.scores} == {LLAVA, LMMS_EVAL}
