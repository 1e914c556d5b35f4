"""Comparing rows question by question: two of them, or all with a baseline, of one study or of several."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finepruner_lmms.errors import FieldError, check_choice
from finepruner_lmms.output import one_line

_FORMATS = ("text", "json")


def compare(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="OUTPUT A B",
            help="A folder and two of its rows, such as 'finepruner 64 heads=4' and 'fastv 64' ('random 64' is all its "
            "seeds); or rows of two folders, DIR1:ROW DIR2:ROW; or, with --baseline, folders.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Compare all rows with this one, or with this method at their budget."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="Say whether A is shown to be no worse than B by so many percentage points."
        ),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="text or json")] = "text",
) -> None:
    """Compare rows question by question: A minus B with 95 % intervals, or all rows minus a baseline."""
    check_choice("--format", form, _FORMATS)
    if margin is not None and not 0 < margin <= 100:
        raise FieldError("--margin", f"got {margin:g}; expected more than 0, up to 100 percentage points", value=margin)
    if baseline is not None:
        _with_baseline(what, baseline, margin, form)
    else:
        _two_rows(context, what, margin, form)


def _two_rows(context: typer.Context, what: list[str], margin: float | None, form: str) -> None:
    from finepruner_lmms.matrix.report.compare import compare_rows, damage_of
    from finepruner_lmms.matrix.report.comparison_text import comparison_json, comparison_text
    from finepruner_lmms.matrix.report.named_rows import find_row, split_place
    from finepruner_lmms.matrix.store import Store

    if len(what) == 2:
        places = [split_place(text) for text in what]
    elif len(what) == 3:
        places = [(Path(what[0]), row) for row in what[1:]]
    else:
        problem = f"got {len(what)}; expected a folder and two rows, DIR1:ROW DIR2:ROW, or --baseline"
        raise typer.BadParameter(problem, ctx=context, param_hint="OUTPUT A B")
    first, second = (find_row(Store(folder), label) for folder, label in places)
    found = compare_rows(first, second, margin)
    sys.stdout.write(comparison_json(found) if form == "json" else comparison_text(found))
    _say(damage_of(first, second))


def _with_baseline(folders: list[str], baseline: str, margin: float | None, form: str) -> None:
    from finepruner_lmms.matrix.report.comparison_text import baseline_json, baseline_text
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.store import Store

    if margin is not None:
        raise FieldError("--margin", "is for two rows", value=margin, fix="name them: OUTPUT A B --margin POINTS")
    for folder in folders:
        if not Path(folder).is_dir():
            problem = f"got {folder!r} beside --baseline, which is no folder of results"
            raise FieldError("compare", problem, value=folder, fix="leave out --baseline to compare two rows")
    board = leaderboard(*(Store(Path(folder)) for folder in folders), baseline=baseline)
    if not any(line.deltas for line in board.lines):
        raise FieldError("--baseline", f"no row has a finished task in common with {baseline!r}", value=baseline)
    sys.stdout.write(baseline_json(board) if form == "json" else baseline_text(board))
    _say(board.damaged if form == "json" else ())


def _say(lines: tuple[str, ...]) -> None:
    for line in lines:
        sys.stderr.write(f"{one_line(line)}\n")
