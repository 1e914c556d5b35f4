"""Two rows question by question, of one study or of two: the paired differences, and how sure they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Measure, Result
from finepruner_lmms.matrix.report.board import AVERAGE
from finepruner_lmms.matrix.report.leaderboard import damage_notes
from finepruner_lmms.matrix.report.named_rows import NamedRow
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import StoreError
from finepruner_lmms.matrix.tallies import tally_of
from finepruner_lmms.statistics.differences import Difference, average_difference, same_questions
from finepruner_lmms.statistics.families import holm
from finepruner_lmms.statistics.power import Shown, detectable_by_error, equivalence
from finepruner_lmms.statistics.tally import Tally


@dataclass(frozen=True)
class Compared:
    """Two rows on one task, or on average.

    `first`, `second` and `difference` are in the unit in which the task's scores are printed, which is `per_percent`
    times percent of the maximum: MME's points. `p_adjusted` is Holm's over the tasks compared; the average, one
    question of its own, keeps its p. `detectable` is the smallest difference that as many answers, differing as much,
    show with 80 % power. `no_worse` says whether the first is shown to be no worse than the second by the margin.
    """

    task: str
    first: float
    second: float
    difference: Difference
    per_percent: float = 1.0
    measure: Measure | None = None
    """How a task that is none of the ten is measured; without a scale, scores are the metric itself."""
    p_adjusted: float | None = None
    no_worse: Shown | None = None

    @property
    def detectable(self) -> float | None:
        """None where no error is known."""
        error = self.difference.error
        return None if error is None else detectable_by_error(error)


@dataclass(frozen=True)
class Comparison:
    """Two rows on all tasks that both have done; `average` is over those whose score is a share of a maximum."""

    first: str
    second: str
    tasks: tuple[Compared, ...]
    average: Compared | None
    margin: float | None = None
    """In percentage points of the maximum."""
    seeds: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class _Pair:
    """What both rows have of a task: scores as printed, and a tally per seed; none where questions have no scores."""

    task: str
    shown: tuple[float, float]
    tallies: tuple[list[Tally], list[Tally]] | None
    measure: Measure | None

    @property
    def counts(self) -> bool:
        """Whether the score is a share of a known maximum."""
        return self.measure is None or self.measure.scale is not None


def compare_rows(first: NamedRow, second: NamedRow, margin: float | None = None) -> Comparison:
    """The paired difference on every task that both rows have done, and the average of these.

    `StoreError` where they have no finished task in common, or were asked other questions.
    """
    pairs = list(_pairs(first, second))
    if not pairs:
        raise StoreError(
            "; ".join(["compare: the two rows have no finished task in common", *damage_of(first, second)])
        )
    found = [_compared(pair, margin) for pair in pairs]
    tested = [one for one in found if one.difference.p is not None]
    adjusted = dict(zip([one.task for one in tested], holm([one.difference.p or 0.0 for one in tested]), strict=True))
    tasks = tuple(replace(one, p_adjusted=adjusted.get(one.task)) for one in found)
    seeds = len(first.places), len(second.places)
    return Comparison(first.label, second.label, tasks, _average(pairs, margin), margin, seeds)


def damage_of(*rows: NamedRow) -> tuple[str, ...]:
    """A line for each cell of these rows that is left out because its files are damaged."""
    lines: list[str] = []
    for row in rows:
        cells = [cell for cell in row.study.cells if cell.row in row.places]
        lines += damage_notes(cells, row.store.states(cells))
    return tuple(lines)


def _compared(pair: _Pair, margin: float | None) -> Compared:
    if pair.tallies is None:
        return Compared(pair.task, *pair.shown, _untested(*pair.shown), measure=pair.measure)
    one, other = pair.tallies
    return _of(
        pair.task, one[0].per_percent, pair.shown, average_difference({"": one}, {"": other}), margin, pair.measure
    )


def _average(pairs: Sequence[_Pair], margin: float | None) -> Compared | None:
    counted = [pair for pair in pairs if pair.counts]
    if not counted:
        return None
    scales = [1.0 if pair.tallies is None else pair.tallies[0][0].per_percent for pair in counted]
    first, second = (
        float(np.mean([pair.shown[place] / scale for pair, scale in zip(counted, scales, strict=True)]))
        for place in (0, 1)
    )
    one, other = ({p.task: p.tallies[place] for p in counted if p.tallies is not None} for place in (0, 1))
    if len(one) < len(counted):  # the mean would take what was not measured for nothing
        return Compared(AVERAGE, first, second, _untested(first, second))
    found = _of(AVERAGE, 1.0, (first, second), average_difference(one, other), margin, None)
    return replace(found, p_adjusted=found.difference.p)


def _of(
    task: str, per_percent: float, shown: tuple[float, float], found: Difference, margin: float | None,
    measure: Measure | None,
) -> Compared:  # fmt: skip
    less = measure is not None and not measure.higher_is_better
    no_worse = None if margin is None else equivalence(found.scaled(-1.0) if less else found, margin)
    return Compared(task, *shown, found.scaled(per_percent), per_percent, measure, no_worse=no_worse)


def _untested(first: float, second: float) -> Difference:
    """All that is known where questions have no scores of their own."""
    return Difference(first - second, None, None, None, None, 0, 0, 0, 0)


# -- what both rows have ----------------------------------------------------------------------------------------------


def _pairs(first: NamedRow, second: NamedRow) -> Iterator[_Pair]:
    """Of every task that both rows have done, in all their seeds."""
    for task in first.study.tasks:
        rows = (first, second)
        cells = [row.cells(task) for row in rows]
        if any(len(found) < len(row.places) for found, row in zip(cells, rows, strict=True)):
            continue  # an imported row need not have every task, nor another study
        results = [[state.result for state in row.store.states(found)] for row, found in zip(rows, cells, strict=True)]
        done = [[one for one in found if one is not None and not one.submission] for found in results]
        if any(len(found) < len(row.places) for found, row in zip(done, rows, strict=True)):
            continue
        judges = dict.fromkeys(None if one.judge is None else one.judge.name for found in done for one in found)
        if len(judges) > 1:
            if first.imported or second.imported:
                continue  # whoever judged an imported row, it was somebody else
            named = " and ".join("nobody" if name is None else repr(name) for name in judges)
            raise StoreError(f"compare: the two rows of {task} were judged by {named}")
        yield _pair(task, rows, cells, done)


def _pair(
    task: str, rows: Sequence[NamedRow], cells: Sequence[Sequence[Cell]], results: Sequence[Sequence[Result]]
) -> _Pair:
    measures = [result.measure for found in results for result in found]
    measure = measures[0]
    for other in measures[1:]:
        measure = _common(measure, other)
    tallies = [
        [tally_of(row.store, cell, result) for cell, result in zip(found, done, strict=True)]
        for row, found, done in zip(rows, cells, results, strict=True)
    ]
    one, other_row = ([tally for tally in found if tally is not None] for found in tallies)
    shown = [float(np.mean([_shown(task, result) for result in found])) for found in results]
    if len(one) < len(cells[0]) or len(other_row) < len(cells[1]):
        return _Pair(task, (shown[0], shown[1]), None, measure)
    if not same_questions(one, other_row):
        raise StoreError(f"compare: {_other_questions(task, rows, cells)}")
    return _Pair(task, (shown[0], shown[1]), (one, other_row), measure)


def _shown(task: str, result: Result) -> float:
    benchmark = benchmark_for(task, result)
    return benchmark.shown(result.metrics[benchmark.metric])


def _common(one: Measure | None, other: Measure | None) -> Measure | None:
    """What both say: a scale or scores of questions that one of them lacks, the pair lacks."""
    if one is None or other is None:
        return one or other
    scale = one.scale if one.scale == other.scale else None
    return one.model_copy(update={"scale": scale, "per_sample": one.per_sample and other.per_sample})


def _other_questions(task: str, rows: Sequence[NamedRow], cells: Sequence[Sequence[Cell]]) -> str:
    """How the questions of two rows differ: in their number, or in right answer or picture of one of them."""
    asked = [
        read_lines(row.store.cell_dir(cell) / "samples.jsonl")
        for row, found in zip(rows, cells, strict=True)
        for cell in found
    ]
    for other in asked[1:]:
        if [line["doc_id"] for line in other] != [line["doc_id"] for line in asked[0]]:
            return f"the two rows answered different questions of {task}; run them with the same limit and data"
        for mine, theirs in zip(asked[0], other, strict=True):
            if str(mine["target"]) == str(theirs["target"]) and mine["image"] == theirs["image"]:
                continue
            imported = next((repr(row.label) for row in rows if row.imported), None)
            fix = "run them on the same data" if imported is None else (
                f"import {imported} again with --replace now that the other row is done, or with --data"
            )  # fmt: skip
            return (
                f"whether both rows answered the same questions of {task} is not known (document {mine['doc_id']} "
                f"differs): {fix}"
            )
    return f"the two rows answered different questions of {task}"
