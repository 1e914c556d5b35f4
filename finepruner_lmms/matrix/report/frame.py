"""Tables as data: named columns, rows in groups, and how they are written as text, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finepruner_lmms.output import csv_cell, latex, markdown, plain

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Strong:
    """A text that stands out: the best of its group."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Stacked:
    """A value with something small below it where there is room, and beside it elsewhere."""

    value: object
    below: str

    def __str__(self) -> str:
        return f"{self.value} {self.below}"


@dataclass(frozen=True)
class Frame:
    """A table: the names of its columns, and its rows, each with a value per column.

    `groups` are headings by the number of the row that they stand above. `words` is how many columns, from the left,
    hold words; these are aligned to the left, all others to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    groups: Mapping[int, str] = field(default_factory=dict)
    words: int = 1

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, object]], groups: Mapping[int, str] | None = None, words: int = 1) -> Frame:
        """Of rows by the names of the columns, which stand in the order in which they first appear; some may lack."""
        rows = list(rows)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return cls(columns, [[row.get(name, "") for name in columns] for row in rows], groups or {}, words)

    def text(self, title: str = "", mark: str = "*") -> str:
        """For a terminal, as wide as it is; what stands out has a `mark` before it."""
        from rich.cells import cell_len

        names = [plain(name) for name in self.columns]
        rows = [[f"{mark if _is_strong(v) else ''}{plain(v)}" for v in row] for row in self.rows]
        widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]

        def line(values: Sequence[str]) -> str:
            padded = []
            for number, (value, width) in enumerate(zip(values, widths, strict=True)):
                space = " " * (width - cell_len(value))
                padded.append(value + space if number < self.words else space + value)
            return "  ".join(padded).rstrip()

        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [*([plain(title)] if title else []), line(names), rule]
        for number, row in enumerate(rows):
            if number in self.groups:
                lines += [""] * (number > 0) + ([plain(self.groups[number])] if self.groups[number] else [])
            lines.append(line(row))
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """For reading: pipes, bold for what stands out, a row for each heading."""
        lines = [f"| {' | '.join(map(markdown, self.columns))} |"]
        lines.append(f"| {' | '.join([':--'] * self.words + ['--:'] * (len(self.columns) - self.words))} |")
        for number, row in enumerate(self.rows):
            if heading := self.groups.get(number):
                lines.append(f"| **{markdown(heading)}** |{'  |' * (len(self.columns) - 1)}")
            cells = (_markdown_cell(v) for v in row)
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def csv(self) -> str:
        """For programs: an empty field where there is no value."""
        file = io.StringIO()
        lines = ([csv_cell(value) for value in line] for line in (self.columns, *self.rows))
        csv.writer(file, lineterminator="\n").writerows(lines)
        return file.getvalue()

    def latex(self) -> str:
        """A `tabular` for the package booktabs."""
        layout = "l" * self.words + "r" * (len(self.columns) - self.words)
        lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", _latex_row(self.columns), r"\midrule"]
        for number, row in enumerate(self.rows):
            if number in self.groups:
                if number:
                    lines.append(r"\midrule")
                if heading := self.groups[number]:
                    lines.append(rf"\multicolumn{{{len(self.columns)}}}{{c}}{{\textit{{{latex(heading)}}}}} \\")
                    lines.append(r"\midrule")
            lines.append(_latex_row(row))
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def html(self) -> str:
        """For a page."""
        rows = [[plain(value) for value in row] for row in self.rows]
        frame = self._pandas(rows, [plain(name) for name in self.columns])
        return str(frame.to_html(index=False, border=0, escape=True))

    def dataframe(self) -> pd.DataFrame:
        """As a `pandas.DataFrame`: numbers stay numbers, and a value that is not there is NaN or None."""
        return self._pandas([list(row) for row in self.rows], list(self.columns)).infer_objects()

    def _pandas(self, rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(rows, columns=columns, dtype=object)


def _latex_row(values: Iterable[object]) -> str:
    line = " & ".join(map(_latex_cell, values)) + r" \\"
    return f"{{}}{line}" if line.startswith(("[", "*")) else line  # which would belong to the row before


def _latex_cell(value: object) -> str:
    if isinstance(value, Stacked):
        return rf"\shortstack[r]{{{_latex_cell(value.value)}\\{{\tiny {latex(value.below)}}}}}"
    return rf"\textbf{{{latex(value)}}}" if isinstance(value, Strong) else latex(value)


def _markdown_cell(value: object) -> str:
    if isinstance(value, Stacked):
        return f"{_markdown_cell(value.value)} {markdown(value.below)}"
    return f"**{markdown(value)}**" if isinstance(value, Strong) else markdown(value)


def _is_strong(value: object) -> bool:
    return isinstance(value, Strong) or (isinstance(value, Stacked) and isinstance(value.value, Strong))
