"""A comparison as a table for people, and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.progress import MISSING
from finepruner_lmms.matrix.report.board import AVERAGE, Delta, Leaderboard, Line
from finepruner_lmms.matrix.report.compare import Compared, Comparison
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.output import plain
from finepruner_lmms.statistics.differences import FEW_DISCORDANT, Difference
from finepruner_lmms.statistics.scores import FEW_IMAGES

COVERS = (
    "95 %: paired by image, Student's t, two discordant answers taken as unseen. It covers which questions were asked"
)
_MANY_SEEDS = 5
_FULL = 4
"""Up to so many tasks the table with a baseline has room for their intervals."""
_ELSEWHERE = "[95 % interval] of the average; those of the tasks: `--format json`, or two rows by name."
_MARKS = {"better": " ↑", "worse": " ↓"}


# -- two rows ---------------------------------------------------------------------------------------------------------


def comparison_text(found: Comparison) -> str:
    """A line for each task, and what a reader must know about the numbers."""
    counted = [one for one in found.tasks if one.measure is None or one.measure.scale is not None]
    shown = [*found.tasks, *([found.average] if found.average is not None and len(counted) > 1 else [])]
    frame = Frame.of(_row(one, found) for one in shown)
    return _as_text(frame, _notes(found, shown))


def _row(one: Compared, found: Comparison) -> dict[str, object]:
    difference = one.difference
    places = decimals(difference.error)
    row: dict[str, object] = {
        "task": title(one.task, one.measure),
        f"A: {found.first}": f"{one.first:.{places}f}",
        f"B: {found.second}": f"{one.second:.{places}f}",
        "difference": f"{difference.value:+.{places}f}",
        "95 %": interval(difference, places),
        "won / lost": won_and_lost(difference),
        "questions": f"{difference.questions:,}" if difference.questions else MISSING,
        "images": f"{difference.images:,}" if difference.images else MISSING,
        "p": p_text(difference.p),
        "p (Holm)": p_text(one.p_adjusted) if one.task != AVERAGE else "",
        "detectable": MISSING if one.detectable is None else f"{one.detectable:.{places}f}",
    }
    if found.margin is not None:
        row[f"A no worse by {found.margin:g}"] = one.no_worse or MISSING
    return row


def _notes(found: Comparison, shown: Sequence[Compared]) -> Iterator[str]:
    points = [title(one.task) for one in found.tasks if one.per_percent != 1 and one.measure is None]
    unit = f"{', '.join(points)} in points, the rest in percent" if points else "In percent"
    alone = [one for one in found.tasks if one.measure is not None and not one.measure.per_sample]
    apart = [one.task for one in found.tasks if one.measure is not None and one.measure.scale is None]
    yield f"A minus B, question by question. {unit}; average: mean share of the maximum."
    yield f"{COVERS}{_seeds(found)} the judge or another run of the model."
    yield (
        "p: how often a difference as large comes about where the rows' answers are exchanged image by image; Holm: "
        f"over {_count(len([one for one in found.tasks if one.difference.p is not None]), 'task')}."
    )
    yield "detectable: the smallest difference that answers which differ as much show with 80 % power (5 %, two-sided)."
    if found.margin is not None:
        scaled = [
            f"{title(one.task, one.measure)}: {found.margin * one.per_percent:g}"
            for one in found.tasks
            if one.per_percent != 1 and one.difference.questions
        ]
        more = f" ({', '.join(scaled)})" if scaled else ""
        yield (
            f"no worse by {found.margin:g}: whether the whole interval is above {-found.margin:g} percentage "
            f"points{more}: shown; below it: not shown; else the study is too small to say."
        )
    if apart:
        yield f"{', '.join(apart)}: as lmms-eval prints it, no share of a known maximum; no part of the average."
    if alone:
        named = ", ".join(one.task for one in alone)
        yield f"{named}: lmms-eval has no score of single questions, so that nothing can be paired."
    yield from warnings((title(one.task, one.measure), one.difference) for one in shown if one.task != AVERAGE)


def _seeds(found: Comparison) -> str:
    if max(found.seeds) < 2:
        return "; not seeds,"
    few = [count for count in found.seeds if 1 < count < _MANY_SEEDS]
    number = " and ".join(str(count) for count in found.seeds if count > 1)
    return f" and seeds ({number}{': few, so that their spread is hardly known' if few else ''}); not"


def warnings(found: Any) -> Iterator[str]:
    """What makes intervals less sure than they say, of tasks and their differences."""
    pairs = [(name, one) for name, one in found if one.questions]
    if few := [f"{name} ({one.images})" for name, one in pairs if one.images < FEW_IMAGES]:
        yield f"Fewer than {FEW_IMAGES} images, so that intervals are rough: {', '.join(few)}."
    rare = [f"{name} ({one.won + one.lost:g})" for name, one in pairs if one.won + one.lost < FEW_DISCORDANT]
    if rare:
        yield (
            f"Fewer than {FEW_DISCORDANT} questions that one of the rows answered better, which say little: "
            f"{', '.join(rare)}."
        )


# -- all rows and their baseline --------------------------------------------------------------------------------------


def baseline_text(board: Leaderboard) -> str:
    """A line for each row with a baseline: its differences by task, and that of the average with all about it."""
    lines = [line for line in board.lines if line.deltas]
    frame = Frame.of(_baseline_row(board, line) for line in lines)
    notes = [
        "A row minus its baseline, question by question; MME in points, the rest in percent; average: mean share of "
        f"the maximum. {'[95 % interval].' if len(board.tasks) <= _FULL else _ELSEWHERE}",
        f"↑ better, ↓ worse: p below 5 % after Holm's correction over the {_count(len(lines), 'row')} of a column.",
        f"{COVERS}{' and seeds; not' if any(line.seeds for line in lines) else '; not seeds,'} the judge or another "
        "run of the model.",
    ]
    found: dict[str, Difference] = {}
    for line in lines:
        for task, delta in line.deltas.items():
            if task != AVERAGE and (task not in found or _least(delta.difference) < _least(found[task])):
                found[task] = delta.difference
    few = [f"{title(task)} ({one.images})" for task, one in found.items() if one.images < FEW_IMAGES]
    if few:
        notes.append(f"Fewer than {FEW_IMAGES} images, so that intervals are rough: {', '.join(few)}.")
    if apart := [task for task in board.apart if any(task in line.deltas for line in lines)]:
        notes.append(f"{', '.join(apart)}: no part of the average.")
    return _as_text(frame, (*notes, *board.damaged))


def _least(found: Difference) -> int:
    return found.images


def _baseline_row(board: Leaderboard, line: Line) -> dict[str, object]:
    name = line.key if len(board.studies) > 1 else line.label
    row: dict[str, object] = {"row": name, "minus": next(iter(line.deltas.values())).baseline}
    for task in board.tasks:
        row[title(task, board.measures.get(task))] = _delta(line.deltas.get(task), len(board.tasks) <= _FULL)
    average = line.deltas.get(AVERAGE)
    row["average"] = _delta(average)
    row["p"] = p_text(average.difference.p) if average else MISSING
    row["p (Holm)"] = p_text(average.p_adjusted) if average else MISSING
    return row


def _delta(found: Delta | None, whole: bool = True) -> str:
    if found is None:
        return MISSING
    places = decimals(found.difference.error)
    ends = f" [{interval(found.difference, places, ', ')}]" if whole else ""
    return f"{found.difference.value:+.{places}f}{ends}{_MARKS.get(found.mark, '')}"


def _as_text(frame: Frame, notes: Iterable[str]) -> str:
    """Columns that stand below one another, and a line for each note."""
    from tabulate import tabulate

    names, rows = [plain(name) for name in frame.columns], [[plain(value) for value in row] for row in frame.rows]
    align = ["left"] + ["right"] * (len(names) - 1)
    table = tabulate(rows, headers=names, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n".join([table, "", *map(plain, notes)]) + "\n"


# -- for programs -----------------------------------------------------------------------------------------------------


def comparison_json(found: Comparison) -> str:
    """`tasks`, by name, and `average`."""
    content: dict[str, Any] = {"first": found.first, "second": found.second}
    content |= {"seeds": list(found.seeds)} if max(found.seeds) > 1 else {}
    content |= {} if found.margin is None else {"margin": found.margin}
    content["tasks"] = {one.task: _facts(one) for one in found.tasks}
    content["average"] = None if found.average is None else _facts(found.average)
    return json.dumps(content, indent=2) + "\n"


def _facts(one: Compared) -> dict[str, Any]:
    facts = {"first": one.first, "second": one.second} | difference_facts(one.difference, one.p_adjusted)
    facts |= {"detectable": one.detectable, "unit": unit_of(one.per_percent, one.measure is None)}
    return facts if one.no_worse is None else facts | {"no_worse": one.no_worse}


def baseline_json(board: Leaderboard) -> str:
    """`rows`, each with its `baseline`, `tasks` by name, and `average`."""
    rows = []
    for line in board.lines:
        if not line.deltas:
            continue
        facts: Mapping[str, Any] = {
            task: difference_facts(delta.difference, delta.p_adjusted) | {"mark": delta.mark}
            for task, delta in line.deltas.items()
        }
        rows.append(
            {
                "row": line.label,
                "study": line.study,
                "baseline": next(iter(line.deltas.values())).baseline,
                "tasks": {task: found for task, found in facts.items() if task != AVERAGE},
                "average": facts.get(AVERAGE),
            }
        )
    return json.dumps({"rows": rows}, indent=2) + "\n"


def difference_facts(found: Difference, p_adjusted: float | None) -> dict[str, Any]:
    """A difference by the names of the public contract."""
    return {
        "difference": found.value, "error": found.error, "low": found.low, "high": found.high, "p": found.p,
        "p_adjusted": p_adjusted, "won": _whole(found.won), "lost": _whole(found.lost), "questions": found.questions,
        "images": found.images,
    }  # fmt: skip


def unit_of(per_percent: float, known: bool) -> str:
    """`percent` of the maximum, `points`, or lmms-eval's own."""
    return "percent" if per_percent == 1 else "points" if known else "metric"


# -- numbers as texts -------------------------------------------------------------------------------------------------


def decimals(error: float | None) -> int:
    """How many places show two digits of an error, one at least: 1.2, 0.34, 0.056."""
    if error is None or error <= 0 or not math.isfinite(error):
        return 1
    return min(4, max(1, 1 - math.floor(math.log10(error))))


def interval(found: Difference, places: int, to: str = " to ") -> str:
    """Both ends."""
    if found.low is None or found.high is None:
        return MISSING
    return f"{found.low:+.{places}f}{to}{found.high:+.{places}f}"


def won_and_lost(found: Difference) -> str:
    """How many questions each of the two rows answered better; of several seeds, their mean."""
    return f"{_whole(round(found.won, 1)):g} / {_whole(round(found.lost, 1)):g}" if found.questions else MISSING


def p_text(p: float | None) -> str:
    """Two digits; small ones as a bound."""
    if p is None:
        return MISSING
    return "<0.0001" if p < 1e-4 else f"{p:.2f}" if p >= 0.095 else f"{p:.2g}"


def _whole(count: float) -> float:
    return int(count) if float(count).is_integer() else count


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
