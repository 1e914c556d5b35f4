"""Two rows of a matrix, question by question: the difference of their scores and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finepruner_lmms.benchmarks.record import Sample as Logged
from finepruner_lmms.benchmarks.statistics import spread
from finepruner_lmms.lazy import np
from finepruner_lmms.matrix.measures import benchmark_for, has_samples
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import Measure, Result
from finepruner_lmms.matrix.report.leaderboard import damage_notes
from finepruner_lmms.matrix.results import read_lines
from finepruner_lmms.matrix.store import Store, StoreError


@dataclass(frozen=True)
class Difference:
    """First minus second, in percent of the maximum: `value`, its standard error, and its 95 % interval.

    Error and interval are None where they were not measured: no draw of images changes the difference.
    """

    task: str
    first: float
    second: float
    value: float
    error: float | None
    low: float | None
    high: float | None
    measure: Measure | None = None
    """How a task that is none of the ten is measured; without a scale, scores are the metric itself."""

    @classmethod
    def of(
        cls, task: str, shown: tuple[float, float], draws: np.ndarray | None, measure: Measure | None = None
    ) -> Difference:
        """From both scores and the bootstrapped differences; None where no question has a score."""
        if draws is None or (error := spread(draws)) is None:
            return cls(task, *shown, shown[0] - shown[1], None, None, None, measure)
        low, high = np.quantile(draws, (0.025, 0.975))
        return cls(task, *shown, shown[0] - shown[1], error, float(low), float(high), measure)


def differences(store: Store, study: Study, first: int, second: int) -> list[Difference]:
    """The paired difference on every task that both rows have done, and after them the average of these.

    Bootstrapped over images, with the same draws for both rows, so that what they share cancels. `StoreError` where
    they have no finished task in common, or were asked other questions.
    """
    pairs = list(_by_task(store, study, first, second))
    found = [Difference.of(*one) for one in pairs]
    if not found:
        damaged = damage_of_rows(store, study, (first, second))
        raise StoreError("; ".join(["compare: the two rows have no finished task in common", *damaged]))
    shares = [d for d in found if _counts(d.measure)]
    if len(shares) > 1:
        means = float(np.mean([d.first for d in shares])), float(np.mean([d.second for d in shares]))
        draws = [drawn for _, _, drawn, measure in pairs if drawn is not None and _counts(measure)]
        # the mean would take what was not measured for nothing
        whole = None if any(d.error is None for d in shares) else np.mean(draws, axis=0)
        found.append(Difference.of("average", means, whole))
    return found


def _counts(measure: Measure | None) -> bool:
    """Whether a score is a share of a known maximum."""
    return measure is None or measure.scale is not None


def damage_of_rows(store: Store, study: Study, rows: Sequence[int]) -> tuple[str, ...]:
    """A line for each cell of these rows that is left out because its files are damaged."""
    cells = [cell for cell in study.cells if cell.row in rows]
    return damage_notes(cells, store.states(cells))


def average_draws(store: Store, study: Study, first: int, second: int) -> tuple[float, np.ndarray] | None:
    """The difference averaged over all tasks, and its bootstrap draws; None unless both rows have done them all."""
    found = list(_by_task(store, study, first, second))
    shares = [(scores, drawn) for _, scores, drawn, measure in found if _counts(measure)]
    drawn = [draws for _, draws in shares if draws is not None]
    if len(found) < len(study.tasks) or not drawn or len(drawn) < len(shares):
        return None
    value = float(np.mean([scores[0] - scores[1] for scores, _ in shares]))
    return value, np.mean(drawn, axis=0)


def _by_task(
    store: Store, study: Study, first: int, second: int
) -> Iterator[tuple[str, tuple[float, float], np.ndarray | None, Measure | None]]:
    """Task, both scores, the draws of their difference and the measure, of every task that both rows have done.

    There are no draws where no question has a score of its own.
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
        one, other = (_samples(store, cell, result) for cell, result in zip(cells, results, strict=True) if result)
        if [s["doc_id"] for s in one] != [s["doc_id"] for s in other]:
            raise StoreError(f"compare: the two rows answered different questions of {task}")
        assert results[0] is not None and results[1] is not None, "both are done"
        benchmark = benchmark_for(task, results[0])
        images = {sample["doc_id"]: sample["image"] for sample in one}
        _check_same(task, cells, one, other)
        measure = _common(results[0].measure, results[1].measure)
        if not (has_samples(results[0]) and has_samples(results[1])):
            values = (
                benchmark_for(task, result).shown(result.metrics[benchmark.metric]) for result in results if result
            )
            yield task, (next(values), next(values)), None, measure
            continue
        draws = benchmark.replicates(one, images) - benchmark.replicates(other, images)
        yield task, (benchmark.percent(one), benchmark.percent(other)), draws, measure


def _common(one: Measure | None, other: Measure | None) -> Measure | None:
    """What both say: a scale or scores of questions that one of them lacks, the pair lacks."""
    if one is None or other is None:
        return one or other
    scale = one.scale if one.scale == other.scale else None
    return one.model_copy(update={"scale": scale, "per_sample": one.per_sample and other.per_sample})


def _check_same(task: str, cells: Sequence[Cell], one: Sequence[Logged], other: Sequence[Logged]) -> None:
    """`StoreError` where an imported row's questions may be others than the other row's, by target or picture."""
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


def _samples(store: Store, cell: Cell, result: Result) -> list[Logged]:
    """The logged samples of a finished cell, as its benchmark reads them."""
    metric = benchmark_for(cell.task, result).metric.partition(",")[0]
    samples = read_lines(store.cell_dir(cell) / "samples.jsonl")
    return [{**sample, metric: sample["score"]} for sample in samples]
