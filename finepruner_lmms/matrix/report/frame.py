"""Rows with named columns, and how they are written; pandas is loaded only for the forms that are made by it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finepruner_lmms.output import csv_cell, latex, markdown, plain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Frame:
    """A table: the names of its columns, and its rows, each with a value per column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, object]]) -> Frame:
        """Of rows by the names of the columns, which stand in the order in which they first appear; some may lack."""
        rows = list(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return cls(columns, [[row.get(name, "") for name in columns] for row in rows])

    def map(self, change: Callable[[str], str]) -> Frame:
        """Every name and every value as a text, changed."""
        rows = [[change(str(value)) for value in row] for row in self.rows]
        return Frame([change(name) for name in self.columns], rows)

    def markdown(self) -> str:
        """For reading: the first column to the left, all others to the right."""
        from tabulate import tabulate

        shown = self.map(markdown)
        align = ["left"] + ["right"] * (len(self.columns) - 1)
        return tabulate(shown.rows, headers=shown.columns, tablefmt="pipe", colalign=align, disable_numparse=True)

    def csv(self) -> str:
        """For programs: an empty field where there is no value."""
        file = io.StringIO()
        lines = ([csv_cell(value) for value in line] for line in (self.columns, *self.rows))
        csv.writer(file, lineterminator="\n").writerows(lines)
        return file.getvalue()

    def latex(self) -> str:
        """For booktabs."""
        layout = "l" + "r" * (len(self.columns) - 1)
        return str(self.map(latex)._pandas().style.hide(axis="index").to_latex(hrules=True, column_format=layout))

    def html(self) -> str:
        """For a page."""
        return str(self.map(plain)._pandas().to_html(index=False, border=0, escape=True))

    def _pandas(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame([list(row) for row in self.rows], columns=list(self.columns), dtype=object)
