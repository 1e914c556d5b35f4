"""Showing what a study found: the leaderboard, the report, two rows compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finepruner_lmms.commands.arguments import Outputs
from finepruner_lmms.errors import check_choice
from finepruner_lmms.output import one_line, plain

if TYPE_CHECKING:
    from finepruner_lmms.matrix.report.board import Leaderboard
    from finepruner_lmms.matrix.store import Store


def table(
    outputs: Outputs,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex")] = "text",
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What rows are compared with: a row such as 'fastv 128', or a method at each row's budget.",
            show_default="fastv, else vanilla",
        ),
    ] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="One row per seed, instead of their mean (always so in CSV).")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .png, .pdf or .svg file.")] = None,
    costs: Annotated[bool, typer.Option("--costs", help="What each row cost, instead of scores.")] = False,
    relative: Annotated[
        str, typer.Option(help="ratios: mean of the ratios to vanilla; means: ratio of the averages.")
    ] = "ratios",
    reference: Annotated[
        bool, typer.Option("--reference", help="Published scores of LLaVA-1.5-7B beside yours, and what is reproduced.")
    ] = False,
    source: Annotated[
        str | None, typer.Option(help="One publication alone, such as tops-t11; with --reference.")
    ] = None,
) -> None:
    """Print the leaderboard of a run, or of several side by side."""
    from finepruner_lmms.commands.preflight import check_file
    from finepruner_lmms.matrix.report.costs import render_costs
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.report.plots import check_kind, draw
    from finepruner_lmms.matrix.report.tables import FORMATS, RELATIVE, render
    from finepruner_lmms.matrix.store import Store

    check_choice("--format", form, FORMATS)
    check_choice("--relative", relative, RELATIVE)
    if picture is not None:
        check_kind(picture)
        check_file("--picture", picture)
    stores = [Store(output) for output in outputs]
    for store in stores:
        store.study()
    board = leaderboard(*stores, baseline=baseline, merge_seeds=not seeds and form != "csv")
    if reference or source is not None:
        sys.stdout.write(_beside_published(board, stores, form, source))
    else:
        sys.stdout.write(render_costs(board, form) if costs else render(board, form, relative))
    if costs or form in ("csv", "latex"):  # which have no place for it
        _say_damage(board.damaged)
    if picture is not None:
        draw(leaderboard(*stores, test=False), picture)


def _beside_published(board: Leaderboard, stores: Sequence[Store], form: str, source: str | None) -> str:
    from finepruner_lmms.matrix.report.reference.comparison import literature
    from finepruner_lmms.matrix.report.reference.tables import render_literature

    found = literature(board, stores, source)
    for warning in found.warnings:
        sys.stderr.write(f"warning: {one_line(warning)}\n")
    return render_literature(board, found, form)


def report(
    outputs: Outputs,
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="The file.", show_default="OUTPUT/report.html; of several runs, FIRST/report-of-N.html"
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="A folder for figures as PDF, PNG and SVG, each with its data as CSV, instead of the page."),
    ] = None,
) -> None:
    """Write a self-contained HTML report of a run, or of several in one: tables, pictures, questions, heads."""
    from finepruner_lmms.commands.preflight import check_file
    from finepruner_lmms.matrix.report.page.html import write_report
    from finepruner_lmms.matrix.store import Store

    stores = [Store(output) for output in outputs]
    for store in stores:
        store.study()
    if figures is not None:
        _write_figures(stores, figures)
        return
    # that of several is not taken for the first one's own
    name = "report.html" if len(outputs) == 1 else f"report-of-{len(outputs)}.html"
    target = outputs[0] / name if to is None else to
    check_file("--to", target)
    write_report(stores, target)
    sys.stdout.write(f"{plain(target)}\n")


def _write_figures(stores: Sequence[Store], folder: Path) -> None:
    from finepruner_lmms.commands.preflight import check_folder
    from finepruner_lmms.matrix.report.figures import write_figures
    from finepruner_lmms.matrix.report.leaderboard import leaderboard

    check_folder("--figures", folder)
    for file in write_figures(leaderboard(*stores, baseline="vanilla", test=False), folder):
        sys.stdout.write(f"{plain(file)}\n")


def _say_damage(lines: Sequence[str]) -> None:
    for line in lines:
        sys.stderr.write(f"{one_line(line)}\n")
