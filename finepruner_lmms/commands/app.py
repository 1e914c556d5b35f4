"""All commands together. What a command needs it imports itself, so that `--help` is immediate."""

from __future__ import annotations

import typer

from finepruner_lmms.commands import bench, data, doctor, exchange, jobs, judge, picture, run, show
from finepruner_lmms.commands.failures import Commands

app = typer.Typer(
    cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Sweep visual token pruning methods over benchmarks with lmms-eval.",
)  # fmt: skip
for command in (
    run.run,
    run.plan,
    run.status,
    jobs.cancel,
    jobs.work,
    show.table,
    show.report,
    show.compare,
    judge.judge,
    exchange.export,
    exchange.query,
    data.tasks,
    data.prepare,
    doctor.doctor,
    bench.bench,
    picture.show,
):
    app.command()(command)
app.command("import")(exchange.import_)  # a word of Python's own
