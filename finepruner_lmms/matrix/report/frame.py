"""Tables as data: named columns, rows in groups, and how they are written as text, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

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
    """A value with something small below it where there is room, and beside it elsewhere; both are numbers of ours."""

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

    def beside(self, more: Sequence[Mapping[str, object]]) -> Frame:
        """With more columns to the right; `more` has a mapping per row."""
        names = list(dict.fromkeys(name for row in more for name in row))
        rows = [[*row, *(new.get(name, "") for name in names)] for row, new in zip(self.rows, more, strict=True)]
        return Frame([*self.columns, *names], rows, self.groups, self.words)

    def split(self, most: int) -> list[Frame]:
        """Frames of at most `most` rows, each of whole groups but where a group alone is longer."""
        starts = sorted({0, *self.groups})
        cuts, begin = [0], 0
        for start, end in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            if end - begin > most and start > begin:
                begin = start
                cuts.append(begin)
            while end - begin > most:
                begin += most
                cuts.append(begin)
        ends = [*cuts[1:], len(self.rows)]
        return [
            Frame(
                self.columns,
                self.rows[first:last],
                {row - first: heading for row, heading in self.groups.items() if first <= row < last},
                self.words,
            )
            for first, last in zip(cuts, ends, strict=True)
        ]

    def text(self, title: str = "", mark: str = "*", width: int = 160) -> str:
        """For a terminal. What stands out has a `mark` before it; columns that do not fit go on below."""
        names = [plain(name) for name in self.columns]
        rows = [[f"{mark if _is_strong(v) else ''}{plain(v)}" for v in row] for row in self.rows]
        widths = [max(map(cell_len, column)) for column in zip(names, *rows, strict=True)]
        words, blocks = list(range(self.words)), [[self.words]] if len(names) > self.words else [[]]
        for column in range(self.words + 1, len(names)):
            if sum(widths[other] + 2 for other in (*words, *blocks[-1], column)) > width:
                blocks.append([])
            blocks[-1].append(column)
        texts = [self._block([*words, *block], names, rows, widths) for block in blocks]
        return (f"{plain(title)}\n" if title else "") + "\n".join(texts)

    def _block(self, columns: list[int], names: list[str], rows: list[list[str]], widths: list[int]) -> str:
        def line(values: list[str]) -> str:
            return "  ".join(self._padded(values, widths, columns)).rstrip()

        lines = [line(names), "─" * (sum(widths[column] + 2 for column in columns) - 2)]
        for number, row in enumerate(rows):
            if number in self.groups:
                lines += [""] * (number > 0) + ([plain(self.groups[number])] if self.groups[number] else [])
            lines.append(line(row))
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """For reading, also as it stands: pipes, bold for what stands out, a row for each heading."""
        names = [markdown(name) for name in self.columns]
        rows = [[_markdown_cell(value) for value in row] for row in self.rows]
        widths = [max(3, *map(cell_len, column)) for column in zip(names, *rows, strict=True)]
        sides = [
            ":" + "-" * (width - 1) if n < self.words else "-" * (width - 1) + ":" for n, width in enumerate(widths)
        ]
        lines = [self._pipes(names, widths), f"| {' | '.join(sides)} |"]
        for number, row in enumerate(rows):
            if heading := self.groups.get(number):
                lines.append(f"| **{markdown(heading)}** |{'  |' * (len(self.columns) - 1)}")
            lines.append(self._pipes(row, widths))
        return "\n".join(lines)

    def _pipes(self, values: list[str], widths: list[int]) -> str:
        return f"| {' | '.join(self._padded(values, widths, range(len(values))))} |"

    def _padded(self, values: list[str], widths: list[int], columns: Iterable[int]) -> list[str]:
        spaces = {column: " " * (widths[column] - cell_len(values[column])) for column in columns}
        return [values[n] + space if n < self.words else space + values[n] for n, space in spaces.items()]

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
            room = r"\addlinespace[2pt]" if any(isinstance(value, Stacked) for value in row) else ""
            lines.append(_latex_row(row) + room)
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
        return rf"\shortstack[r]{{{_minus(_latex_cell(value.value))}\\{{\tiny {_minus(latex(value.below))}}}}}"
    return rf"\textbf{{{latex(value)}}}" if isinstance(value, Strong) else latex(value)


def _minus(text: str) -> str:
    """With minus signs where LaTeX would print hyphens."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)


def _markdown_cell(value: object) -> str:
    if isinstance(value, Stacked):
        return f"{_markdown_cell(value.value)} {value.below}"  # brackets that nothing follows are no link
    return f"**{markdown(value)}**" if isinstance(value, Strong) else markdown(value)


def _is_strong(value: object) -> bool:
    return isinstance(value, Strong) or (isinstance(value, Stacked) and isinstance(value.value, Strong))
