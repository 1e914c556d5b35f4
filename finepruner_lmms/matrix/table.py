"""The leaderboard as text, Markdown, CSV or LaTeX. What is not done is shown as missing, never as 0."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.matrix.leaderboard import Leaderboard, Line, Score

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"


def render(board: Leaderboard, form: str) -> str:
    """The table in one of `FORMATS`, ending in a newline."""
    return FORMATS[form](board)


def _frame(
    board: Leaderboard,
    cell: Callable[[str, Score | None], object],
    average: Callable[[Line], object],
    relative: Callable[[Line], object],
    titles: bool,
) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for line in board.lines:
        row: dict[str, object] = {"method": line.method, "budget": line.budget}
        row |= {name: line.parameters.get(name, "") for name in board.parameters}
        if line.seeds and not any(name == "seed" for name in board.parameters):
            row["method"] = f"{line.method} ({len(line.seeds)} seeds)"
        for task in board.tasks:
            row[BENCHMARKS[task].title if titles else task] = cell(task, line.scores.get(task))
        rows.append(row | {"average": average(line), "relative": relative(line)})
    return pd.DataFrame(rows, dtype=object)


def _for_reading(board: Leaderboard, plus_minus: str, percent: str) -> pd.DataFrame:
    def cell(_task: str, score: Score | None) -> str:
        return MISSING if score is None else f"{score.shown:.1f}{plus_minus}{score.shown_error:.1f}"

    def average(line: Line) -> str:
        return MISSING if line.average is None else f"{line.average:.1f}{plus_minus}{line.average_error:.1f}"

    def relative(line: Line) -> str:
        return MISSING if line.relative is None else f"{line.relative:.1f}{percent}"

    return _frame(board, cell, average, relative, titles=True)


def notes(board: Leaderboard) -> list[str]:
    """What a reader must know about the numbers."""
    counts = ", ".join(
        f"{BENCHMARKS[task].title} {board.questions[task]}" for task in board.tasks if task in board.questions
    )
    lines = [
        f"Questions: {counts or 'none answered yet'}.",
        "± is the standard error over images; MME in points, the rest in percent.",
        "average: mean share of the maximum. relative: mean over tasks of the score divided by vanilla's.",
    ]
    for line in board.lines:
        if line.spread is not None:
            lines.append(
                f"{line.method} {line.budget}: mean of {len(line.seeds)} seeds, whose averages spread by "
                f"{line.spread:.2f} (standard deviation)."
            )
    return lines


def _text(board: Leaderboard) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    frame = _for_reading(board, " ±", " %")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{board.name}", title_justify="left")
    for number, column in enumerate(frame.columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    previous = None
    for line, row in zip(board.lines, frame.itertuples(index=False), strict=True):
        if previous is not None and line.budget != previous:
            table.add_section()
        previous = line.budget
        table.add_row(*map(str, row))
    file = io.StringIO()
    Console(file=file, width=400, no_color=True, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in [*file.getvalue().splitlines(), *notes(board)]) + "\n"


def _markdown(board: Leaderboard) -> str:
    frame = _for_reading(board, " ± ", " %")
    align = ["left"] + ["right"] * (len(frame.columns) - 1)
    table = frame.to_markdown(index=False, colalign=align, disable_numparse=True)
    return f"{table}\n\n" + "\n".join(notes(board)) + "\n"


def _csv(board: Leaderboard) -> str:
    """Full precision; the columns are `method,budget,<parameters>,<tasks>,average,relative`."""
    frame = _frame(
        board,
        lambda _task, score: None if score is None else score.shown,
        lambda line: line.average,
        lambda line: line.relative,
        titles=False,
    )
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _latex(board: Leaderboard) -> str:
    frame = _for_reading(board, " ± ", " %").astype(str).map(_escape)
    frame.columns = [_escape(column) for column in frame.columns]
    layout = "l" + "r" * (len(frame.columns) - 1)
    return str(frame.style.hide(axis="index").to_latex(hrules=True, column_format=layout))


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$").replace(MISSING, "--")


FORMATS: dict[str, Callable[[Leaderboard], str]] = {"text": _text, "markdown": _markdown, "csv": _csv, "latex": _latex}
