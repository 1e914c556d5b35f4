"""The benchmark of a cell: one of the ten, or what lmms-eval's own task says of itself in the cell's result."""

from __future__ import annotations

from finepruner_lmms.benchmarks import BENCHMARKS, Benchmark
from finepruner_lmms.benchmarks.measure import benchmark_of, title_of
from finepruner_lmms.matrix.records import Damage, Measure, Result


def benchmark_for(task: str, result: Result) -> Benchmark:
    """How a result is read. `Damage` where a task that is none of the ten does not say how it was measured."""
    if task in BENCHMARKS:
        return BENCHMARKS[task]
    if result.measure is None:
        raise Damage(f"result.json: measure is missing, without which {task}'s metric is not known")
    return benchmark_of(task, result.measure.measured)


def has_samples(result: Result) -> bool:
    """Whether its questions have scores of their own."""
    return result.measure is None or result.measure.per_sample


def title(task: str, measure: Measure | None = None) -> str:
    """What a task is called for people."""
    return (
        BENCHMARKS[task].title if task in BENCHMARKS else title_of(task, None if measure is None else measure.measured)
    )


def name_of_task(task: str) -> str:
    """What lmms-eval calls it."""
    return BENCHMARKS[task].task if task in BENCHMARKS else task
