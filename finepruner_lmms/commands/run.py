"""Planning a study, and working through it."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Annotated

import typer

from finepruner_lmms.commands.arguments import Config, LimitOption, OutputOption
from finepruner_lmms.errors import check_choice


def run(
    config: Config,
    output: OutputOption = None,
    limit: LimitOption = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed/--no-retry-failed", help="Whether cells that failed before are tried again.")
    ] = True,
    max_attempts: Annotated[
        int | None, typer.Option(metavar="N", help="Leave out cells whose attempts failed N times.", min=1)
    ] = None,
) -> None:
    """Run the cells of a matrix that are not done yet; then print the leaderboard."""
    from finepruner_lmms.commands.preflight import ROOM, check_folder, check_machine
    from finepruner_lmms.data.ready import require_data
    from finepruner_lmms.judge.client import JudgeError
    from finepruner_lmms.judge.judgements import JudgementsError
    from finepruner_lmms.matrix.cluster.follow import follow
    from finepruner_lmms.matrix.cluster_fields import LOCAL
    from finepruner_lmms.matrix.estimate import estimate_study
    from finepruner_lmms.matrix.executors import find_executor
    from finepruner_lmms.matrix.judging import judge_cells, keep_scores
    from finepruner_lmms.matrix.modes import mode_here
    from finepruner_lmms.matrix.progress import display_for
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.report.tables import render
    from finepruner_lmms.matrix.run_settings import RunSettings, save_settings
    from finepruner_lmms.matrix.runner import LaunchError, clean_up, run_cells
    from finepruner_lmms.matrix.study import open_study, report_unfinished, to_run, worth_trying
    from finepruner_lmms.output import console, one_line

    matrix, store, study = open_study(config, output, limit)
    require_data(matrix.file.data, matrix.file.benchmarks, matrix.file.submission)
    check_machine(matrix.file)
    check_folder("--output", store.root, ROOM)
    launch, began = matrix.file.launch, time.time()
    here = launch.executor == LOCAL
    if not here:
        find_executor(launch.executor).check(launch)
    with ExitStack() as held:
        if here:  # several may look on while jobs work: each cell is one job's, and `jobs/` names these
            held.enter_context(store.lock())
            clean_up(store)
        store.save_study(keep_scores(store, study))
        states = store.states(study.cells)
        left = worth_trying(store, to_run(study, states, retry_failed), max_attempts)
        found = estimate_study(matrix, study, states, left, store) if left else None
        mode = None if found is None else mode_here(matrix.file, found.modes, found.processes, len(left))
        settings = RunSettings(
            file=matrix.file,
            written=config.read_text(encoding="utf-8", errors="replace"),
            seconds={} if found is None else dict(found.seconds),
            began=began,
            passed_over=tuple({cell.id for cell in to_run(study, states)} - {cell.id for cell in left}),
        )
        save_settings(store.root, settings)
        total, finished = len(states), len(states) - len(left)
        with display_for(console(), total, finished) as display:
            display.note(f"{total} cells, {finished} done before, {len(left)} to do; results in {store.root}")
            try:
                if here:
                    run_cells(store, matrix.file, left, display, mode=mode, seconds=settings.seconds)
                else:
                    follow(store, study, settings, display)
                    held.enter_context(store.lock())
                judge_cells(store, study, matrix.file.judge, display)
            except LaunchError as error:
                display.note(str(error))
            except (JudgeError, JudgementsError) as error:
                display.note(
                    f"{one_line(error)}; the answers are kept; `run`, or `judge {store.root}`, goes on from here"
                )
    sys.stdout.write(f"\n{render(leaderboard(store), 'text')}")
    raise typer.Exit(1 if report_unfinished(store, study) else 0)


def plan(
    config: Config,
    output: OutputOption = None,
    limit: LimitOption = None,
    form: Annotated[str, typer.Option("--format", help="text, or jsonl: one JSON object per cell")] = "text",
) -> None:
    """Show what would run and what is done, with an estimate of the time, without running."""
    from finepruner_lmms.matrix.overview import plan_lines, plan_text
    from finepruner_lmms.matrix.study import open_study

    check_choice("--format", form, ("text", "jsonl"))
    sys.stdout.write((plan_lines if form == "jsonl" else plan_text)(*open_study(config, output, limit, planning=True)))
