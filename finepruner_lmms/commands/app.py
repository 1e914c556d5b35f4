"""All commands together. What a command needs it imports itself, so that `--help` is immediate."""

from __future__ import annotations

from typing import Annotated

import typer

from finepruner_lmms.commands import (
    bench,
    compare,
    data,
    demo_page,
    doctor,
    exchange,
    jobs,
    judge,
    methods,
    picture,
    profile,
    run,
    show,
    status,
)
from finepruner_lmms.commands.failures import Commands
from finepruner_lmms.commands.version import show_version

app = typer.Typer(
    cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Sweep visual token pruning methods over benchmarks with lmms-eval.",
)  # fmt: skip


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the versions in use.")
    ] = False,
) -> None:
    pass


for command in (
    run.run,
    run.plan,
    status.status,
    jobs.cancel,
    jobs.work,
    show.table,
    show.report,
    compare.compare,
    judge.judge,
    exchange.export,
    exchange.query,
    data.tasks,
    data.prepare,
    doctor.doctor,
    methods.methods,
    bench.bench,
    picture.show,
    profile.profile,
    demo_page.app,
):
    app.command()(command)
app.command("import")(exchange.import_)  # a word of Python's own
