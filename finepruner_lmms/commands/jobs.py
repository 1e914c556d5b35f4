"""Jobs on other machines: what each of them does, and ending them."""

from __future__ import annotations

import sys

import typer

from finepruner_lmms.commands.arguments import Output
from finepruner_lmms.output import plain


def work(output: Output) -> None:
    """Work through cells of a run that nobody else works on, with the GPUs of this machine, until none is left.

    What each job of `launch.executor` does. Start it on as many machines as you like, while `run` waits or without one.
    """
    from finepruner_lmms.matrix.cluster.job import StudyJob
    from finepruner_lmms.matrix.store import Store

    Store(output).study()
    StudyJob(str(output.resolve()))()


def cancel(output: Output) -> None:
    """End the jobs that work for a run; what is done is kept."""
    from finepruner_lmms.matrix.cluster.submissions import cancel as cancel_jobs
    from finepruner_lmms.matrix.store import Store

    store = Store(output)
    store.study()
    ended, problems = cancel_jobs(store.root)
    sys.stdout.write(
        f"cancelled {len(ended)} job{'s' if len(ended) > 1 else ''}: {', '.join(plain(job.id) for job in ended)}; "
        "what is done is kept, `run` goes on from here\n"
        if ended
        else "no job waits or runs\n"
    )
    for problem in problems:
        sys.stderr.write(f"{plain(problem)}\n")
    raise typer.Exit(1 if problems else 0)
