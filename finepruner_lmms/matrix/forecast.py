"""How long the rest of a run takes, by its own pace: the work that is done, per second since the first cell began.

The work of a cell is the time that the estimate expects of it, so that a pace on small cells tells of large ones; where
nothing is expected, every cell is as much as another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from finepruner_lmms.matrix.plan import Cell

_LEAST = 20.0
"""Seconds before which a pace says little."""


class Forecast:
    """The cells of a run, how much of each is done, and when the first of them began."""

    def __init__(
        self, cells: Sequence[Cell], seconds: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        known = all(seconds.get(cell.id, 0.0) > 0 for cell in cells)
        self._work = {cell.label: seconds[cell.id] if known else 1.0 for cell in cells}
        self._task = {cell.label: cell.task for cell in cells}
        self._done = dict.fromkeys(self._work, 0.0)
        self._ended: set[str] = set()
        self._clock = clock
        self._began: float | None = None
        self._expected = clock()

    def began(self, label: str) -> None:
        """Somebody works on a cell."""
        if self._began is None and label in self._work:
            self._began = self._clock()

    def progress(self, label: str, share: float, together: int = 1) -> None:
        """So much of a cell is done, and as much of those answered together with it, the next ones of its task."""
        if label not in self._work:
            return
        others = [o for o in self._work if self._task[o] == self._task[label] and o != label and o not in self._ended]
        for one in [label, *others[: together - 1]]:
            self._done[one] = max(self._done[one], min(share, 1.0))

    def ended(self, label: str, done: bool) -> None:
        """A cell ended; one that failed is no work any more, and none that was done."""
        if label not in self._work:
            return
        if self._began is None:  # on another machine
            self._began = self._expected
        if done:
            self._ended.add(label)
            self._done[label] = 1.0
        else:
            for kept in (self._work, self._task, self._done):
                kept.pop(label)

    def left(self) -> float | None:
        """Seconds until all is done at the pace of now; None where there is no pace yet."""
        if self._began is None:
            return None
        passed = self._clock() - self._began
        done = sum(self._work[label] * share for label, share in self._done.items())
        if passed < _LEAST or done <= 0:
            return None
        return max(0.0, (sum(self._work.values()) - done) * passed / done)


def show_duration(seconds: float) -> str:
    """`12 seconds`, `3 minutes`, `2.5 hours`, `3.1 days`."""
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
