"""Scoring answers that wait for a judge."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def judge(
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The directory of a run, or a file of answers.")],
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, such as http://host:8000/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable with its key.")] = None,
    mmbench: Annotated[
        bool | None, typer.Option("--mmbench/--no-mmbench", help="Also the letters of answers to MMBench in words.")
    ] = None,
    times: Annotated[int | None, typer.Option(help="How often each answer to MM-Vet is judged.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="By string match instead, without a server.")] = False,
) -> None:
    """Judge the answers that wait for it, in a run's directory or in a file that lmms-eval left; goes on where it was.

    Without options the judge is the one that the run, or else FINEPRUNER_JUDGE, names.
    """
    from finepruner_lmms.commands.preflight import check_folder
    from finepruner_lmms.matrix.judging import judge_file, judge_run

    options = {"url": url, "model": model, "key_env": key_env, "mmbench": mmbench, "times": times}
    if target.exists():  # judgements are paid for: they must not be lost
        check_folder("OUTPUT", target.parent if target.is_file() else target)
    sys.stdout.write((judge_file if target.is_file() else judge_run)(target, options, exact))
