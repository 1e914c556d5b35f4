"""By how much finished cells took longer than predicted, and what others will take at that pace.

What their questions took is told apart from starting and scoring, so that a few questions tell of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finepruner_lmms.engine.roofline import EAGER, Sizes
from finepruner_lmms.matrix.cell_time import CELL, Asked, Launched, cell_parts
from finepruner_lmms.matrix.records import Result


@dataclass(frozen=True)
class Finished:
    """A cell that is done: what it asked, and what came of it."""

    asked: Asked
    result: Result


class _Pace:
    """By how much finished cells took longer than predicted: what their questions took, and what all else."""

    def __init__(self) -> None:
        self.cells, self.apart, self.questions, self.predicted = 0, 0.0, 0.0, 0.0

    def add(self, one: Finished, predicted: float) -> None:
        """Summed, since of cells that were answered at once one took the time of all."""
        took = seconds_of(one.result)
        answering = _answering(one.result)
        if answering is None:  # a version that did not measure: all in proportion
            answering = took * (1 - CELL.value / predicted)
        self.cells += 1
        self.apart += took - answering
        self.questions += answering
        self.predicted += predicted - CELL.value

    def of(self, predicted: float) -> float:
        """What a cell will take."""
        apart = max(self.apart, 0.0) / self.cells
        return apart + (predicted - CELL.value) * self.questions / self.predicted


def cell_seconds(
    sizes: Sizes, cells: Mapping[str, Asked], finished: Sequence[Finished], how: Launched
) -> dict[str, float]:
    """The time of each of `cells`, by its id, corrected by what `finished` ones took: of the same task, or else all."""
    known: dict[tuple[object, ...], float] = {}

    def predicted(asked: Asked, how: Launched) -> float:
        key = asked, how.processes, how.batch_size, how.execution.name
        if key not in known:  # thousands of rows have few schedules
            known[key] = cell_parts(sizes, asked, how).total
        return known[key]

    typical, by_task = _Pace(), dict[str, _Pace]()
    for one in finished:
        expected = predicted(one.asked, _as_run(how, one.result))
        for pace in (typical, by_task.setdefault(one.asked.task, _Pace())):
            pace.add(one, expected)
    seconds = {}
    for name, asked in cells.items():
        expected = predicted(asked, how)
        seconds[name] = by_task.get(asked.task, typical).of(expected) if finished else expected
    return seconds


def _as_run(how: Launched, result: Result) -> Launched:
    """How a finished cell was launched, which may be another way than what is planned."""
    if result.speed is None:
        return how
    ran = result.speed.conditions
    return Launched(ran.processes, ran.batch_size, how.machine, EAGER if ran.execution == "eager" else how.execution)


def seconds_of(result: Result) -> float:
    """The time that all of a finished cell's questions take, also where an earlier attempt had answered some."""
    speed = result.speed
    assert result.seconds is not None, "imported results are no cell of a plan"
    if speed is not None and speed.attempts > 1:  # `seconds` is the last attempt's
        return speed.seconds / speed.conditions.together
    if speed is None or speed.questions >= result.answered:
        return result.seconds
    return result.seconds + (result.answered - speed.questions) / speed.questions_per_second


def _answering(result: Result) -> float | None:
    """The part of that in which its questions were answered; None where nobody measured it."""
    speed = result.speed
    if speed is None or not speed.questions_per_second:
        return None
    return result.answered / speed.questions_per_second / speed.conditions.together
