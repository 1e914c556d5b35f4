"""The leaderboard as text, Markdown, CSV or LaTeX. What is not done is shown as missing, never as 0."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.errors import list_names
from finepruner_lmms.matrix.measures import title
from finepruner_lmms.matrix.progress import MISSING
from finepruner_lmms.matrix.report.beside import beside_notes
from finepruner_lmms.matrix.report.board import Leaderboard, Line
from finepruner_lmms.matrix.report.frame import Frame
from finepruner_lmms.output import console, markdown, plain, rich_text

SUBMITTED = "submission written"
WAITING = "waiting"


RELATIVE = {
    "ratios": "relative: mean over tasks of the score divided by vanilla's.",
    "means": "relative: average divided by vanilla's.",
}
"""Both published ways to compare with vanilla, with the note that says which it is."""


def render(board: Leaderboard, form: str, relative: str = "ratios") -> str:
    """The table in one of `FORMATS`, ending in a newline; `relative` is one of `RELATIVE`."""
    return FORMATS[form](board, relative)


def reading_frame(board: Leaderboard) -> Frame:
    """The leaderboard as texts."""
    return _for_reading(board, "ratios", " ± ", " %")


def row_names(board: Leaderboard, line: Line, columns: bool) -> dict[str, object]:
    """What a row is called: method, budget and parameters, each in a column, or where these are many, in one."""
    row: dict[str, object] = {"method": line.method, "budget": line.budget}
    if columns or len(board.parameters) <= 2:
        row |= {name: line.parameters.get(name, "") for name in board.parameters}
    else:
        row["parameters"] = ", ".join(f"{name}={value}" for name, value in line.given.items())
    if line.seeds and not any(name == "seed" for name in board.parameters):
        row["method"] = f"{line.method} ({len(line.seeds)} seeds)"
    return row


def _frame(
    board: Leaderboard,
    cell: Callable[[str, Line], object],
    average: Callable[[Line], object],
    relative: Callable[[Line], object],
    titles: bool,
) -> Frame:
    rows = []
    for line in board.lines:
        row = row_names(board, line, columns=not titles)
        for task in board.tasks:
            row[task_title(board, task) if titles else task] = cell(task, line)
        rows.append(row | {"average": average(line), "relative": relative(line)})
    return Frame.of(rows)


def _relative(line: Line, how: str) -> float | None:
    return {"ratios": line.relative, "means": line.relative_of_means}[how]


def _for_reading(board: Leaderboard, how: str, plus_minus: str, percent: str) -> Frame:
    def cell(task: str, line: Line) -> str:
        if (score := line.scores.get(task)) is None:
            return SUBMITTED if task in line.submitted else WAITING if task in line.waiting else MISSING
        return with_error(score.shown, score.shown_error, plus_minus)

    def average(line: Line) -> str:
        return MISSING if line.average is None else with_error(line.average, line.average_error, plus_minus)

    def relative(line: Line) -> str:
        value = _relative(line, how)
        return MISSING if value is None else f"{value:.1f}{percent}"

    return _frame(board, cell, average, relative, titles=True)


def with_error(value: float, error: float | None, plus_minus: str = " ± ") -> str:
    """A score and its standard error, or a dash where that was not measured."""
    return f"{value:.1f}{plus_minus}{MISSING if error is None else f'{error:.1f}'}"


def task_title(board: Leaderboard, task: str) -> str:
    """With a mark where the score is none that others print."""
    return title(task, board.measures.get(task)) + (" (exact)" if "exact" in board.judges.get(task, ()) else "")


UNMEASURED = (
    f"± {MISSING}: not measured: fewer than two images, or no draw of images changes the score (0 %, 100 %), or that "
    "of one averaged."
)


def _unmeasured(board: Leaderboard) -> bool:
    scores = [score.shown_error for line in board.lines for score in line.scores.values()]
    return None in scores or any(line.average is not None and line.average_error is None for line in board.lines)


def notes(board: Leaderboard, relative: str = "ratios") -> list[str]:
    """What a reader must know about the numbers."""
    counts = ", ".join(f"{title(task)} {board.questions[task]}" for task in board.tasks if task in board.questions)
    served = [title(task) for task in board.tasks if any(task in line.submitted for line in board.lines)]
    lines = [
        f"Questions: {counts or 'none answered yet'}.",
        "± is the standard error over images; MME in points, the rest in percent.",
        *([UNMEASURED] if _unmeasured(board) else []),
        *(["MME: the question whose partner was not asked is left out."] if board.questions.get("mme", 0) % 2 else []),
        f"average: mean share of the maximum. {RELATIVE[relative]}",
        *([f"{', '.join(served)}: for its server, in the cell's folder; no part of the average."] if served else []),
    ]
    lines += _measures(board)
    lines += beside_notes(board)
    for task, judges in board.judges.items():
        name = title(task)
        if "exact" in judges:
            lines.append(f"{name} (exact) is scored by string match: not comparable with published scores.")
        if models := [name for name in judges if name != "exact"]:
            several = " More than one judge: scores of different judges are not comparable." if len(judges) > 1 else ""
            some = f": {board.asked[task]} answers without a letter read"
            what = " is judged" if task in BENCHMARKS and BENCHMARKS[task].judged else some
            lines.append(f"{name}{what} by {', '.join(models)}.{several}")
    if there := [line.method for line in board.lines if line.imported]:
        lines.append(f"Imported, not run here: {', '.join(there)}.")
    if any(line.waiting for line in board.lines):
        lines.append(f"{WAITING}: answered, waiting for the judge; 'judge OUTPUT' asks it.")
    for line in board.lines:
        if line.spread is not None:
            lines.append(
                f"{line.method} {line.budget}: mean of {len(line.seeds)} seeds, whose averages spread by "
                f"{line.spread:.2f} (standard deviation)."
            )
    return lines + list(board.damaged)


APART = "its maximum is not known or less is better"


def _measures(board: Leaderboard) -> Iterator[str]:
    """How the tasks that are none of the ten are measured."""
    for task in board.tasks:
        if (measure := board.measures.get(task)) is None:
            continue
        unit = "as lmms-eval prints it" if task in board.apart else "in percent"
        less = "" if measure.higher_is_better else ", less is better"
        alone = "" if measure.per_sample else "; single questions have no score, so that no error is known"
        others = [name.partition(",")[0] for name in measure.directions if name != measure.metric]
        more = f"; also measured: {list_names(others)}" if others else ""
        yield f"{task}: lmms-eval's {measure.metric.partition(',')[0]}, {unit}{less}{alone}{more}."
    if board.apart:
        yield f"{', '.join(board.apart)}: no part of averages, since {APART}."


def _text(board: Leaderboard, relative: str) -> str:
    frame = _for_reading(board, relative, " ±", " %")
    return as_text(frame, board, board.name) + "\n".join(map(plain, notes(board, relative))) + "\n"


def as_text(frame: Frame, board: Leaderboard, title: str) -> str:
    """A frame with a row per line of the leaderboard, budgets apart."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=rich_text(title), title_justify="left")
    for number, column in enumerate(frame.columns):
        table.add_column(rich_text(column), justify="left" if number == 0 else "right", no_wrap=True)
    previous = None
    for line, row in zip(board.lines, frame.rows, strict=True):
        if previous is not None and line.budget != previous:
            table.add_section()
        previous = line.budget
        table.add_row(*map(rich_text, row))
    file = io.StringIO()
    console(file, width=400, no_color=True).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n")[:-1]) + "\n"


def _markdown(board: Leaderboard, relative: str) -> str:
    return (
        as_markdown(_for_reading(board, relative, " ± ", " %"))
        + "\n".join(map(markdown, notes(board, relative)))
        + "\n"
    )


def as_markdown(frame: Frame) -> str:
    """A frame of texts, with an empty line after it."""
    return f"{frame.markdown()}\n\n"


def _csv(board: Leaderboard, relative: str) -> str:
    """Full precision; the columns are `method,budget,<parameters>,<tasks>,average,relative`."""
    frame = _frame(
        board,
        lambda task, line: line.scores[task].shown if task in line.scores else None,
        lambda line: line.average,
        lambda line: _relative(line, relative),
        titles=False,
    )
    return frame.csv()


def _latex(board: Leaderboard, relative: str) -> str:
    return _for_reading(board, relative, " ± ", " %").latex()


FORMATS: dict[str, Callable[[Leaderboard, str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
}
