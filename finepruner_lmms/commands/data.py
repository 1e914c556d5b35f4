"""Data and checkpoints: fetched, and given to lmms-eval."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from finepruner_lmms.errors import FieldError
from finepruner_lmms.output import plain


def tasks(
    data: Annotated[str, typer.Option(help="hub, demo, or a data root")] = "hub",
    submission: Annotated[
        bool, typer.Option("--submission", help="Tasks that only a server scores write its file, of their test split.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="So many questions of each task, in whole groups, instead of lmms-eval's first.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="llava, or lmms_eval: by whose rules answers are scored (docs/scoring.md).")
    ] = "llava",
    find: Annotated[
        str | None, typer.Option(metavar="WORD", help="Instead: the names of tasks that hold WORD, lmms-eval's too.")
    ] = None,
) -> None:
    """Print the folder to pass to lmms-eval's --include_path, so that the tasks fp_<name> read that data."""
    if find is not None:
        _list_tasks(find)
        return
    from finepruner_lmms.benchmarks.protocol import check_protocol
    from finepruner_lmms.data.task_folders import folder

    sys.stdout.write(f"{folder(data, submission, limit, check_protocol(protocol))}\n")


def _list_tasks(word: str) -> None:
    """Print the names that hold a word; of what is no task for texts, what it is."""
    from finepruner_lmms.data.lmms_tasks import lmms_tasks
    from finepruner_lmms.matrix.task_names import find_tasks

    for name, problem in find_tasks(word, lmms_tasks()):
        sys.stdout.write(plain(f"{name}{f'  ({problem})' if problem else ''}") + "\n")


def prepare(
    data: Annotated[Path, typer.Option(metavar="ROOT", help="The data root: a folder, made if it is not there.")],
    tasks: Annotated[str, typer.Option(help="Benchmarks, separated by commas.", show_default="all")] = "",
    checkpoint: Annotated[
        list[str] | None, typer.Option(metavar="OWNER/NAME[@REV]", help="Also a checkpoint, into ROOT/checkpoints.")
    ] = None,
    revision: Annotated[list[str] | None, typer.Option(metavar="TASK=REV", help="A revision other than main.")] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Take files that are here already.")
    ] = None,
    accept_rows: Annotated[
        bool, typer.Option("--accept-rows", help="Take tables with another number of rows than is known.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash again what was prepared before.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be fetched, with sizes; write nothing.")
    ] = False,
) -> None:
    """Fetch benchmark data and checkpoints into a data root, and check them; then nothing needs the network."""
    from finepruner_lmms.benchmarks import BENCHMARKS
    from finepruner_lmms.commands.preflight import check_folder
    from finepruner_lmms.data.jobs import checkpoint_job, task_jobs
    from finepruner_lmms.data.plan import Options
    from finepruner_lmms.data.session import prepare_all
    from finepruner_lmms.output import console

    names = [name.strip() for name in tasks.split(",")] if tasks else [] if checkpoint else list(BENCHMARKS)
    if source is not None and not source.is_dir():
        raise FieldError("--from", f"{str(source)!r} is not a folder", value=source)
    revisions = dict(entry.partition("=")[::2] for entry in revision or [])
    if wrong := [task for task, wanted in revisions.items() if not wanted]:
        raise FieldError("--revision", f"got {wrong[0]!r}; expected task=revision", value=wrong[0])
    jobs = task_jobs(names, revisions) + [checkpoint_job(text) for text in checkpoint or []]
    if not dry_run:
        check_folder("--data", data)
    failed = prepare_all(data, jobs, Options(source, accept_rows, verify), dry_run, console())
    raise typer.Exit(1 if failed else 0)
