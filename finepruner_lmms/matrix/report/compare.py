"""Two rows of a matrix, question by question: the difference of their scores and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.measures import benchmark_for
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Measure
from finepruner_lmms.matrix.report.leaderboard import damage_notes
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import Store, StoreError
from finepruner_lmms.matrix.tallies import tally_of
from finepruner_lmms.statistics.differences import Difference, average_difference, difference
from finepruner_lmms.statistics.tally import Tally


@dataclass(frozen=True)
class Compared:
    """Two rows on one task, or on average: both scores and their paired difference, in percent of the maximum.

    Without scores of single questions there is no more than the difference itself.
    """

    task: str
    first: float
    second: float
    difference: Difference
    measure: Measure | None = None
    """How a task that is none of the ten is measured; without a scale, scores are the metric itself."""


def differences(store: Store, study: Study, first: int, second: int) -> list[Compared]:
    """The paired difference on every task that both rows have done, and after them the average of these.

    `StoreError` where they have no finished task in common, or were asked other questions.
    """
    pairs = list(_by_task(store, study, first, second))
    if not pairs:
        damaged = damage_of_rows(store, study, (first, second))
        raise StoreError("; ".join(["compare: the two rows have no finished task in common", *damaged]))
    found = [
        Compared(task, *scores, _alone(*scores) if tallies is None else difference(*tallies), measure)
        for task, scores, tallies, measure in pairs
    ]
    shares = [(task, scores, tallies) for task, scores, tallies, measure in pairs if _counts(measure)]
    if len(shares) > 1:
        means = float(np.mean([one for _, (one, _), _ in shares])), float(np.mean([two for _, (_, two), _ in shares]))
        known = {task: tallies for task, _, tallies in shares if tallies is not None}
        whole = len(known) == len(shares)
        one, other = ({task: [tallies[place]] for task, tallies in known.items()} for place in (0, 1))
        found.append(Compared("average", *means, average_difference(one, other) if whole else _alone(*means)))
    return found


def _alone(first: float, second: float) -> Difference:
    return Difference(first - second, None, None, None, None, 0, 0, 0, 0)


def _counts(measure: Measure | None) -> bool:
    """Whether a score is a share of a known maximum."""
    return measure is None or measure.scale is not None


def damage_of_rows(store: Store, study: Study, rows: Sequence[int]) -> tuple[str, ...]:
    """A line for each cell of these rows that is left out because its files are damaged."""
    cells = [cell for cell in study.cells if cell.row in rows]
    return damage_notes(cells, store.states(cells))


def _by_task(
    store: Store, study: Study, first: int, second: int
) -> Iterator[tuple[str, tuple[float, float], tuple[Tally, Tally] | None, Measure | None]]:
    """Task, both scores, their tallies and the measure, of every task that both rows have done.

    There are no tallies where no question has a score of its own.
    """
    for task in study.tasks:
        cells = [c for row in (first, second) for c in study.cells if c.row == row and c.task == task]
        if len(cells) < 2:  # an imported row need not have every task
            continue
        results = [state.result for state in store.states(cells)]
        if any(result is None or result.submission for result in results):
            continue
        judges = [result.judge and result.judge.name for result in results if result is not None]
        if len(set(judges)) > 1 and any(cell.method.imported is not None for cell in cells):
            continue  # whoever judged an imported row, it was somebody else
        if len(set(judges)) > 1:
            one_judge, other_judge = ("nobody" if name is None else repr(name) for name in judges)
            raise StoreError(f"compare: the two rows of {task} were judged by {one_judge} and {other_judge}")
        assert results[0] is not None and results[1] is not None, "both are done"
        _check_same(store, task, cells)
        measure = _common(results[0].measure, results[1].measure)
        one, other = (tally_of(store, cell, result) for cell, result in zip(cells, results, strict=True) if result)
        if one is None or other is None:
            benchmark = benchmark_for(task, results[0])
            first_, second_ = (benchmark.shown(result.metrics[benchmark.metric]) for result in results if result)
            yield task, (first_, second_), None, measure
            continue
        yield task, (one.value, other.value), (one, other), measure


def _common(one: Measure | None, other: Measure | None) -> Measure | None:
    """What both say: a scale or scores of questions that one of them lacks, the pair lacks."""
    if one is None or other is None:
        return one or other
    scale = one.scale if one.scale == other.scale else None
    return one.model_copy(update={"scale": scale, "per_sample": one.per_sample and other.per_sample})


def _check_same(store: Store, task: str, cells: Sequence[Cell]) -> None:
    """`StoreError` where the two rows may have been asked other questions, by number, right answer or picture."""
    one, other = (read_lines(store.cell_dir(cell) / "samples.jsonl") for cell in cells)
    if [s["doc_id"] for s in one] != [s["doc_id"] for s in other]:
        raise StoreError(f"compare: the two rows answered different questions of {task}")
    if (imported := next((cell.method for cell in cells if cell.method.imported is not None), None)) is None:
        return
    for mine, theirs in zip(one, other, strict=True):
        if str(mine["target"]) != str(theirs["target"]) or mine["image"] != theirs["image"]:
            raise StoreError(
                f"compare: whether both rows answered the same questions of {task} is not known (document "
                f"{mine['doc_id']} differs): import {imported.label!r} again with --replace now that the other row is "
                "done, or with --data"
            )


def find_row(study: Study, label: str) -> int:
    """The row that `label` names: `vanilla`, `fastv 64`, `finepruner 64 heads=4`. `StoreError` if there is none."""
    from finepruner_lmms.errors import nearest

    labels = [row.label for row in study.rows]
    wanted = " ".join(label.split())
    if wanted not in labels:
        raise StoreError(f"row: got {label!r}{nearest(wanted, labels)}; rows: {', '.join(labels)}")
    return labels.index(wanted)
