"""The smallest difference between two rows that a study can find, task by task: what `plan` says before anything runs.

It follows from the number of questions and from how many of them one of two rows answers better. Where rows of a task
are done, this is measured, and images that are asked about several times count as such; elsewhere it is assumed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data.facts import FACTS
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Damage
from finepruner_lmms.matrix.store import State, Store
from finepruner_lmms.matrix.workloads import questions_in
from finepruner_lmms.output import plain
from finepruner_lmms.statistics.differences import Difference
from finepruner_lmms.statistics.power import detectable, detectable_by_error

TYPICAL = 0.05
"""Of the questions, answered better by one of two rows, where nothing is measured yet."""
_OTHERS = (0.02, 0.1)
_MOST_ROWS = 5
"""How many finished rows of a task are compared with the first."""
_MME_CATEGORIES, _PERCEPTION = 14, 10
_MME_QUESTIONS, _MME_PERCEPTION = 2374, 2114
_K = {"mme": 2.1, "vqav2": 0.87, "vizwiz": 0.87, "textvqa": 0.87, "mmvet": 0.98}
"""What a score moves per share of differing answers, where that is not 1: MME counts pairs besides, and answers that
annotators or a judge give a part of the score differ by less than a whole one."""
_MMBENCH = 1164 / 4329
"""Questions of MMBench per row: it asks each in up to four orders of its options, and counts it once."""


@dataclass(frozen=True)
class Sensitivity:
    """What one task can show. `questions` are those that count in the score.

    `smallest` is the difference that is found, in the unit in which scores are printed, where one of two rows answers
    the share `differ` of them better: `measured` of rows that are done, or else `TYPICAL`.
    """

    task: str
    questions: int
    smallest: float
    differ: float = TYPICAL
    measured: bool = False
    per_percent: float = 1.0
    """The printed score per percent of the maximum."""


@dataclass(frozen=True)
class _Counted:
    """`per_percent`: the printed score per percent of the maximum; `k` is that of `detectable`."""

    questions: int
    per_percent: float = 1.0
    k: float = 1.0
    pairs: list[Difference] = field(default_factory=list)


def sensitivities(store: Store, study: Study, states: Sequence[State]) -> list[Sensitivity]:
    """Of every task of which the number of questions is known, and which is scored here."""
    found = []
    for task in study.tasks:
        pairs = [(cell, state) for cell, state in zip(study.cells, states, strict=True) if cell.task == task]
        done = [(cell, state) for cell, state in pairs if state.result is not None and not cell.submission]
        counted = _of_results(store, done) or _of_plan(pairs[0][0])
        if counted is None or not counted.questions:
            continue
        errors = [pair.error for pair in counted.pairs if pair.error is not None]
        if errors:
            smallest = detectable_by_error(statistics.median(errors))
            differ = statistics.median(pair.discordant / pair.questions for pair in counted.pairs)
        else:
            smallest, differ = detectable(counted.questions, TYPICAL, k=counted.k), TYPICAL
        one = Sensitivity(
            task, counted.questions, counted.per_percent * smallest, differ, bool(errors), counted.per_percent
        )
        found.append(one)
    return found


def of_average(found: Sequence[Sensitivity]) -> float:
    """The smallest difference of the averages over these tasks, in percent of the maximum.

    Tasks ask about different images, but for MMBench in two languages, which errs together.
    """
    percent = {one.task: one.smallest / one.per_percent for one in found}
    alike = sum(percent.pop(task) for task in ("mmbench", "mmbench_cn") if task in percent)
    return math.hypot(alike, *percent.values()) / len(found)


def of_family(rows: int) -> float:
    """How many times the difference has to be for one of so many rows to be told from its baseline after Holm."""
    normal = statistics.NormalDist()
    first, power = normal.inv_cdf(1 - 0.025 / rows), normal.inv_cdf(0.8)
    return (first + power) / (normal.inv_cdf(0.975) + power)


def sensitivity_lines(store: Store, study: Study, states: Sequence[State]) -> list[str]:
    """The same as a table for people; nothing where nothing is known."""
    found = sensitivities(store, study, states)
    if not found:
        return []
    rows = [("", [plain(title(one.task)) for one in found]), ("questions", [f"{one.questions:,}" for one in found])]
    rows.append(("smallest difference", [_shown(one.smallest) for one in found]))
    rows.append(("of the questions differ", [f"{100 * one.differ:.3g} %" for one in found]))
    rows.append(("which is", ["measured" if one.measured else "typical" for one in found]))
    if len(found) > 1:
        for (_, texts), text in zip(rows, ("average", "", _shown(of_average(found)), "", ""), strict=True):
            texts.append(text)
    first = max(len(name) for name, _ in rows)
    wide = [max(map(len, column)) + 1 for column in zip(*(texts for _, texts in rows), strict=True)]
    unit = "in percent, MME in points" if any(one.task == "mme" for one in found) else "in percent"
    lines = [f"smallest difference of two rows that is found with 80 % power (5 %, two-sided), {unit}"]
    for name, texts in rows:
        cells = " ".join(text.rjust(width) for text, width in zip(texts, wide, strict=True))
        lines.append(f"  {name.ljust(first)} {cells}".rstrip())
    if (compared := len(study.rows) - 1) > 1:
        lines.append(f"after Holm's correction over {compared} rows: {of_family(compared):.2f} times as large")
    if any(one.measured for one in found):
        lines.append("measured: the rows that are done, each against the first, their median")
    if not all(one.measured for one in found):
        others = " and ".join(f"{(share / TYPICAL) ** 0.5:.2f} times at {100 * share:.0f} %" for share in _OTHERS)
        lines.append(f"typical: assumed, as nothing is measured yet; the difference is {others}")
    return lines


def _shown(points: float) -> str:
    return f"{points:.1f}" if points >= 10 else f"{points:.2f}"


def _of_results(store: Store, done: Sequence[tuple[Cell, State]]) -> _Counted | None:
    """By the first finished row of a task, and how much others differ from it."""
    from finepruner_lmms.matrix.tallies import tally_of
    from finepruner_lmms.statistics.differences import difference, same_questions

    first, compared = None, []
    for cell, state in done[: _MOST_ROWS + 1]:
        assert state.result is not None
        try:
            tally = tally_of(store, cell, state.result)
        except (Damage, OSError, ValueError):  # what cannot be read says nothing here; `status` says why
            continue
        if tally is None:
            continue
        if first is None:
            first = tally
        elif same_questions([first], [tally]):
            compared.append(difference(tally, first, test=False))
    if first is None:
        return None
    return _Counted(first.questions, first.per_percent, _k(done[0][0].task), compared)


def _of_plan(cell: Cell) -> _Counted | None:
    """By what is known of a benchmark before it runs."""
    task, data = cell.task, cell.data
    if task not in BENCHMARKS or cell.submission:
        return None
    rows = questions_in(data, task) or FACTS[task].tables[0].rows or 0
    asked = rows if cell.limit is None else min(cell.limit, rows)
    small = data in MINIATURES
    if task == "mme" and not small:  # a limit is spread over the categories evenly
        asked = _MME_PERCEPTION if asked >= _MME_QUESTIONS else asked * _PERCEPTION // _MME_CATEGORIES
    if task.startswith("mmbench"):
        asked = asked // 4 if small else round(asked * _MMBENCH)
    per_percent = (2.0 * (4 if small else _PERCEPTION)) if task == "mme" else 1.0
    return _Counted(asked, per_percent, _k(task))


def _k(task: str) -> float:
    return _K.get(task, 1.0)
