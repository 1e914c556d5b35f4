"""Showing a run: bars on a terminal, a plain line per event anywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Result
from finepruner_lmms.output import plain, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

MISSING = "–"
"""What a table shows where there is no value."""


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


class PlainDisplay:
    """One line per event, each as soon as it happens."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console, self._total, self._done = console, total, done

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def note(self, text: str) -> None:
        """Something that is not about one cell."""
        self._line(f"{time.strftime('%H:%M:%S')} {text}")

    def cell_started(self, label: str, worker: int = 0) -> None:
        """Nothing: the line that matters is the one at the end."""

    def cell_progress(self, done: int, total: int, worker: int = 0) -> None:
        """Nothing: a log is not a terminal."""

    def cell_ended(self, cell: Cell, state: str, text: str, worker: int = 0) -> None:
        """The score, or the reason of the failure."""
        self._done += 1
        width = len(str(self._total))
        self.note(f"[{self._done:{width}}/{self._total}] {state:6} {cell.label}: {text}")

    def _line(self, text: str) -> None:
        say(self._console, text)


class BarDisplay(PlainDisplay):
    """A bar for all cells, and one for each worker with its cell; finished cells scroll by above them."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        super().__init__(console, total, done)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._cells = self._progress.add_task("cells", total=total, completed=done, speed="")
        self._workers: dict[int, TaskID] = {}
        self._begun: dict[int, tuple[float, int]] = {}

    def __enter__(self) -> BarDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def cell_started(self, label: str, worker: int = 0) -> None:
        """The bar of this worker is about this cell."""
        if worker not in self._workers:
            self._workers[worker] = self._progress.add_task("", total=None, speed="")
        shown = label if len(self._workers) == 1 else f"{worker}: {label}"
        self._begun.pop(worker, None)
        self._progress.reset(self._workers[worker], description=plain(shown), total=None, visible=True, speed="")

    def cell_progress(self, done: int, total: int, worker: int = 0) -> None:
        """Questions answered, and how many per second since the first of them."""
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
