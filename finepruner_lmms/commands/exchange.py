"""Results on their way out and in: files for other programs, questions in SQL, results of other runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finepruner_lmms.commands.arguments import Output
from finepruner_lmms.errors import check_choice


def export(
    output: Output,
    form: Annotated[
        str,
        typer.Option("--format", help="csv, parquet, eee, hf or inspect; several with commas.", show_default=False),
    ],
    to: Annotated[Path | None, typer.Option("--to", help="A folder.", show_default="OUTPUT/export/<format>")] = None,
    pictures: Annotated[
        int, typer.Option(min=0, help="Inspect: the pictures of so many questions of each cell; 1000 are some 100 MB.")
    ] = 200,
) -> None:
    """Write what is done for other programs: tables of cells and samples, Every Eval Ever, the hub, Inspect."""
    from finepruner_lmms.commands.preflight import check_folder
    from finepruner_lmms.matrix.export.command import export_run
    from finepruner_lmms.output import plain

    if to is not None or output.is_dir():
        check_folder("OUTPUT" if to is None else "--to", to or output)
    for line in export_run(output, form, to, pictures):
        sys.stdout.write(f"{plain(line)}\n")


def query(
    output: Output,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="Over the tables cells and samples.", show_default=False)],
    form: Annotated[str, typer.Option("--format", help="text, csv or json")] = "text",
) -> None:
    """Ask cells and samples in SQL (DuckDB); nothing can be written, and no other file read."""
    from finepruner_lmms.matrix.export.query import FORMATS, ask

    check_choice("--format", form, FORMATS)
    sys.stdout.write(ask(output, sql, form))


def import_(
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="The directory of a run, made if not there.", show_default=False)
    ],
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="A folder that lmms-eval wrote with --log_samples, or its *_results.json.",
            show_default=False,
        ),
    ],
    label: Annotated[str, typer.Option(help="What its row is called.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Where its questions are: hub, demo, or a data root.", show_default="the run's")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in place of an earlier import.")] = False,
) -> None:
    """Make results that lmms-eval wrote elsewhere a row of `table`, `compare` and `report`."""
    from finepruner_lmms.commands.preflight import check_folder
    from finepruner_lmms.matrix.importing.results import import_results
    from finepruner_lmms.output import plain

    check_folder("OUTPUT", output)
    said = import_results(output, label, results, data, replace)
    sys.stdout.write("".join(f"{plain(line)}\n" for line in said.split("\n") if line))
