"""What is ready on this machine."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from finepruner_lmms.errors import FieldError


def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A matrix file to run.")] = None,
    data: Annotated[str | None, typer.Option(help="hub, demo, or a data root")] = None,
    pretrained: Annotated[str | None, typer.Option(help="A checkpoint: hub id, folder, or demo")] = None,
    tasks: Annotated[str, typer.Option(help="Benchmarks, separated by commas.", show_default="all")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is ready on this machine and what is missing. Exit status 1 if something would stop a run."""
    from finepruner_lmms.doctor import report as doctors
    from finepruner_lmms.doctor.request import request
    from finepruner_lmms.matrix.study import what_it_needs
    from finepruner_lmms.output import console

    if config is not None and (data or pretrained or tasks):
        raise FieldError("doctor", "give a matrix file, or --data, --pretrained and --tasks, not both")
    asked = request(data, pretrained, tasks) if config is None else what_it_needs(config)
    with redirect_stdout(sys.stderr):  # lmms-eval logs to the standard output
        checks = doctors.examine(asked)
    if as_json:
        sys.stdout.write(f"{doctors.as_json(checks)}\n")
    else:
        doctors.show(checks, console())
    raise typer.Exit(0 if doctors.ready(checks) else 1)
