"""`fp.leaderboard(DIR)`: the leaderboard in Python, as a data frame, and as a table in a notebook."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.matrix.report.board import Leaderboard
from finepruner_lmms.matrix.report.exact import dataframe
from finepruner_lmms.matrix.report.leaderboard import leaderboard as read
from finepruner_lmms.matrix.report.tables import render
from finepruner_lmms.matrix.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Opened(Leaderboard):
    """A leaderboard that shows itself: Python's prompt and `print` the text of `table`, a notebook the Markdown."""

    def to_dataframe(self, relative: str = "ratios") -> pd.DataFrame:
        """A row per row, with every score, error, interval, difference and cost; what is not there is NaN.

        Scores in percent, MME in points, costs in units of 1 (seconds, bytes, operations). The columns are those of
        `table --format csv`. `relative` is `ratios` or `means`.
        """
        return dataframe(self, relative)

    def __str__(self) -> str:
        return render(self, "text")

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return render(self, "markdown")


def leaderboard(*folders: str | Path, baseline: str | None = None, merge_seeds: bool = True) -> Opened:
    """What is done so far in one run's directory, or in several, side by side.

    `baseline` is a row such as `fastv 128`, or a method, that all rows are compared with; without it each row is
    compared with `fastv` at its budget, or else with `vanilla`. With `merge_seeds`, rows that differ in their seed
    alone are one. A folder without a run is a `StoreError`.
    """
    found = read(*(Store(Path(folder)) for folder in folders), baseline=baseline, merge_seeds=merge_seeds)
    return Opened(**{field.name: getattr(found, field.name) for field in fields(found)})
