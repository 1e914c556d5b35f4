"""Showing a run: bars on a terminal, a plain line per event anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from finepruner_lmms.matrix.forecast import Forecast, show_duration
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Result
from finepruner_lmms.output import plain, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

MISSING = "–"
"""What a table shows where there is no value."""
EVERY = 60.0
"""Seconds between two lines of a log that say how far a run is."""
_SHOWN = 8
"""Workers that such a line names."""


def score_text(result: Result) -> str:
    """`86.3 ± 1.2 % of the maximum, 240 questions, 4.1 s`, or `submission.json written, 8000 questions, 90.1 s`."""
    if result.submission is not None:
        what = f"{result.submission.file} written"
    else:
        error = result.error
        shown = MISSING if error is None else f"{error:.1f}"
        what = f"{result.percent:.1f} ± {shown} % of the maximum" if result.percent is not None else _own(result, shown)
    seconds = "" if result.seconds is None else f", {result.seconds:.1f} s"
    return f"{what}, {result.answered} questions{seconds}"


def _own(result: Result, error: str) -> str:
    """A score without a known maximum, as lmms-eval prints it."""
    assert result.measure is not None, "otherwise there is a share of the maximum"
    return f"{result.measure.metric.partition(',')[0]} {result.metrics[result.measure.metric]:.4g} ± {error}"


@dataclass
class AtWork:
    """What a worker is at: a cell, and how many of its questions are answered, if it said so."""

    label: str
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.label} {self.done}/{self.total}" if self.total else self.label


class PlainDisplay:
    """One line per event, each as soon as it happens, and one a minute that says how far the run is."""

    def __init__(self, console: Console, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._total, self._done, self._clock = console, total, done, clock
        self._forecast = Forecast((), {}, clock)
        self._at_work: dict[int, AtWork] = {}
        self._told = clock()

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def expect(self, cells: Sequence[Cell], seconds: Mapping[str, float]) -> None:
        """What the time that is left is reckoned from."""
        self._forecast = Forecast(cells, seconds, self._clock)

    def tick(self) -> None:
        """A line a minute: what is at work, and the time that is left."""
        if self._clock() - self._told >= EVERY:
            self._told = self._clock()
            self._say_how_far()

    def _say_how_far(self) -> None:
        at_work = [str(one) for one in self._at_work.values()]
        more = len(at_work) - _SHOWN
        shown = ", ".join([*at_work[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
        text = "; ".join(filter(None, [shown, self._left()]))
        if text:
            self.note(f"{self._count()} {text}")

    def _left(self) -> str:
        left = self._forecast.left()
        return "" if left is None else f"about {show_duration(left)} left"

    def _count(self) -> str:
        width = len(str(self._total))
        return f"[{self._done:{width}}/{self._total}]"

    def note(self, text: str) -> None:
        """Something that is not about one cell."""
        self._line(f"{time.strftime('%H:%M:%S')} {text}")

    def cell_started(self, label: str, worker: int = 0) -> None:
        """Nothing at once: the line that matters is the one at the end."""
        self._at_work[worker] = AtWork(label)
        self._forecast.began(label)

    def cell_progress(self, done: int, total: int, worker: int = 0, together: int = 1) -> None:
        """Nothing at once: a log is not a terminal."""
        if worker in self._at_work and total:
            one = self._at_work[worker]
            one.done, one.total = done, total
            self._forecast.progress(one.label, done / total, together)
        self.tick()

    def cell_ended(self, cell: Cell, state: str, text: str, worker: int = 0) -> None:
        """The score, or the reason of the failure."""
        self._done += 1
        self._at_work.pop(worker, None)
        self._forecast.ended(cell.label, state != "failed")
        self.note(f"{self._count()} {state:6} {cell.label}: {text}")

    def _line(self, text: str) -> None:
        say(self._console, text)


class BarDisplay(PlainDisplay):
    """A bar for all cells, and one for each worker with its cell; finished cells scroll by above them."""

    def __init__(self, console: Console, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        super().__init__(console, total, done, clock)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._cells = self._progress.add_task("cells", total=total, completed=done, speed="", left="")
        self._workers: dict[int, TaskID] = {}
        self._begun: dict[int, tuple[float, int]] = {}

    def __enter__(self) -> BarDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tick(self) -> None:
        """The time that is left, beside the first bar."""
        if self._clock() - self._told >= 1:
            self._told = self._clock()
            self._progress.update(self._cells, left=self._left())

    def cell_started(self, label: str, worker: int = 0) -> None:
        """The bar of this worker is about this cell."""
        super().cell_started(label, worker)
        if worker not in self._workers:
            self._workers[worker] = self._progress.add_task("", total=None, speed="", left="")
        shown = label if len(self._workers) == 1 else f"{worker}: {label}"
        self._begun.pop(worker, None)
        self._progress.reset(
            self._workers[worker], description=plain(shown), total=None, visible=True, speed="", left=""
        )

    def cell_progress(self, done: int, total: int, worker: int = 0, together: int = 1) -> None:
        """Questions answered, and how many per second since the first of them."""
        super().cell_progress(done, total, worker, together)
        if worker not in self._workers:
            return
        began, before = self._begun.setdefault(worker, (time.monotonic(), done))
        passed = time.monotonic() - began
        speed = f"{(done - before) / passed:.1f} questions/s" if passed and done > before else ""
        self._progress.update(self._workers[worker], completed=done, total=total, speed=speed)

    def cell_ended(self, cell: Cell, state: str, text: str, worker: int = 0) -> None:
        """The first bar moves on."""
        super().cell_ended(cell, state, text, worker)
        self._progress.update(self._cells, completed=self._done)


def display_for(console: Console, total: int, done: int) -> PlainDisplay:
    """Bars where somebody watches, lines elsewhere."""
    return (BarDisplay if console.is_terminal else PlainDisplay)(console, total, done)
