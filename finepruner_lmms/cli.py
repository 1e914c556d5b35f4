"""The command line: `python run_matrix.py COMMAND`, or `finepruner COMMAND`.

Exit status: 0 done, 1 some cells failed (all others are kept), 2 the request itself is wrong and nothing was run,
130 stopped from outside (what is done is kept). Imports are inside the commands, so that `--help` is immediate.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from finepruner_lmms.doctor.report import Request
    from finepruner_lmms.matrix.config import Matrix
    from finepruner_lmms.matrix.store import Json, State, Store

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Sweep visual token pruning methods over benchmarks with lmms-eval.",
)  # fmt: skip
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The matrix file (YAML).", show_default=False)]
Output = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The directory of a run.", show_default=False)]
OutputOption = Annotated[
    Path | None, typer.Option("--output", help="Where results go.", show_default="runs/<name of the matrix>")
]


class _Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, treated as Ctrl-C."""


@app.command()
def run(config: Config, output: OutputOption = None) -> None:
    """Run the cells of a matrix that are not done yet; then print the leaderboard."""
    from rich.console import Console

    from finepruner_lmms.data.ready import data_problems
    from finepruner_lmms.judge.client import JudgeError
    from finepruner_lmms.judge.judgements import JudgementsError
    from finepruner_lmms.matrix.judging import judge_cells
    from finepruner_lmms.matrix.progress import display_for
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.report.tables import render
    from finepruner_lmms.matrix.runner import LaunchError, run_cells
    from finepruner_lmms.matrix.store import StoreError

    matrix, store, record = _open(config, output)
    if problems := data_problems(matrix.file.data, matrix.file.tasks, matrix.file.submission):
        _refuse("\n".join(map(str, problems)))
    console = Console()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    with ExitStack() as held:
        try:
            held.enter_context(store.lock())
        except StoreError as error:
            _refuse(str(error))
        store.save_matrix(record)
        states = store.states(record["cells"])
        left = _to_run(record, states)
        total, finished = len(states), len(states) - len(left)
        with display_for(console, total, finished) as display:
            display.note(f"{total} cells, {finished} done before, {len(left)} to do; results in {store.root}")
            try:
                run_cells(store, matrix.file, left, display)
                judge_cells(store, record, matrix.file.judge, display)
            except LaunchError as error:
                display.note(str(error))
            except (JudgeError, JudgementsError) as error:
                display.note(f"{error}\nthe answers are kept; `run`, or `judge {store.root}`, goes on from here")
            except KeyboardInterrupt:
                display.note("stopped; what is done is kept, `run` goes on from here")
                raise typer.Exit(130) from None
    board = leaderboard(store)
    sys.stdout.write(f"\n{render(board, 'text')}")
    failed = _report_unfinished(store, record)
    raise typer.Exit(1 if failed else 0)


@app.command()
def plan(
    config: Config,
    output: OutputOption = None,
    form: Annotated[str, typer.Option("--format", help="text, or jsonl: a JSON object a cell")] = "text",
) -> None:
    """Show what would run and what is done, with an estimate of the time, without running."""
    from finepruner_lmms.matrix.cells import unknown_commits
    from finepruner_lmms.matrix.runner import estimate_seconds

    _check_format(form, ("text", "jsonl"))
    _, store, record = _open(config, output)
    cells = record["cells"]
    states = store.states(cells)
    if form == "jsonl":
        reasons = store.explain_missing(_to_run(record, states))
        for cell, state in zip(cells, states, strict=True):
            facts = {"id": cell["id"], "state": state.name, "task": cell["task"], **_facts(cell)}
            facts["reason"] = reasons.get(cell["id"], state.reason)
            sys.stdout.write(json.dumps(facts | {"directory": str(store.cell_dir(cell))}, ensure_ascii=False) + "\n")
        return
    left = _to_run(record, states)
    layers, tokens = record["num_layers"], record["num_visual_tokens"]
    lines = [
        f"{record['name']}: {len(record['rows'])} rows x {len(record['tasks'])} tasks = {len(cells)} cells, "
        f"{len(cells) - len(left)} done, {len(left)} to do",
        f"model: {record['model']} ({layers} decoder layers, {tokens} visual tokens an image)",
    ]
    reasons = store.explain_missing(left)
    for cell, state in zip(cells, states, strict=True):
        why = reasons.get(cell["id"], state.reason)
        lines.append(f"  {state.name:8} {cell['label']}{': ' + why if why else ''}")
    lines += unknown_commits(cells)
    seconds = estimate_seconds([state.result for state in states if state.result is not None], left)
    if left:
        known = "unknown until a cell of each task is done" if seconds is None else f"about {_duration(seconds)}"
        lines.append(f"time for what is left: {known}")
    sys.stdout.write("\n".join(lines) + "\n")


@app.command()
def status(output: Output) -> None:
    """List done, running, waiting, failed and missing cells, with each failure's reason."""
    from finepruner_lmms.matrix.runner import score_text

    store = _store(output)
    record = _matrix(store)
    states = store.states(record["cells"])
    counts = {name: sum(state.name == name for state in states) for name in ("done", "running", "failed", "missing")}
    if waiting := sum(state.name == "waiting" for state in states):
        counts["waiting for the judge"] = waiting
    lines = [f"{record['name']}: " + ", ".join(f"{count} {name}" for name, count in counts.items())]
    for cell, state in zip(record["cells"], states, strict=True):
        text = score_text(state.result) if state.result else state.reason
        lines.append(f"  {state.name:8} {cell['label']}{': ' + text if text else ''}")
    if others := store.others(record["cells"]):
        lines.append(
            f"{others} more finished cells are of other settings, code or checkpoints; they are kept, not shown"
        )
    sys.stdout.write("\n".join(lines) + "\n")


@app.command()
def table(
    output: Output,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex")] = "text",
    seeds: Annotated[
        bool, typer.Option("--seeds", help="A row a seed, instead of their mean (always so in CSV).")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .png, .pdf or .svg file.")] = None,
    costs: Annotated[bool, typer.Option("--costs", help="What prefill cost in each row, instead of scores.")] = False,
    relative: Annotated[
        str, typer.Option(help="ratios: mean of the ratios to vanilla; means: ratio of the averages.")
    ] = "ratios",
) -> None:
    """Print the leaderboard."""
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.report.tables import FORMATS, RELATIVE, render, render_costs

    _check_format(form, tuple(FORMATS))
    if relative not in RELATIVE:
        _refuse(f"relative: got {relative!r}; known: {', '.join(RELATIVE)}")
    store = _store(output)
    _matrix(store)
    board = leaderboard(store, merge_seeds=not seeds and form != "csv")
    sys.stdout.write(render_costs(board, form) if costs else render(board, form, relative))
    if picture is not None:
        from finepruner_lmms.matrix.report.plots import draw

        try:
            draw(leaderboard(store), picture)
        except ValueError as error:
            _refuse(str(error))


@app.command()
def report(
    output: Output,
    to: Annotated[Path | None, typer.Option("--to", help="The file.", show_default="OUTPUT/report.html")] = None,
) -> None:
    """Write a self-contained HTML report: tables, pictures, and the head study where rows differ in their heads."""
    from finepruner_lmms.matrix.report.html import write_report
    from finepruner_lmms.matrix.store import StoreError

    store = _store(output)
    _matrix(store)
    target = output / "report.html" if to is None else to
    try:
        write_report(store, target)
    except StoreError as error:
        _refuse(str(error))
    sys.stdout.write(f"{target}\n")


@app.command()
def compare(
    output: Output,
    first: Annotated[str, typer.Argument(metavar="A", help="A row, such as 'finepruner 64 heads=4'.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another, such as 'fastv 64'.")],
) -> None:
    """Compare two rows question by question: A minus B, with standard errors and 95 % intervals."""
    from finepruner_lmms.matrix.report.compare import differences, find_row
    from finepruner_lmms.matrix.report.tables import render_differences
    from finepruner_lmms.matrix.store import StoreError

    store = _store(output)
    record = _matrix(store)
    try:
        found = differences(store, record, find_row(record, first), find_row(record, second))
    except StoreError as error:
        _refuse(str(error))
    sys.stdout.write(render_differences(found, first, second))


@app.command()
def judge(
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The directory of a run, or a file of answers.")],
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, such as http://host:8000/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable with its key.")] = None,
    mmbench: Annotated[
        bool | None, typer.Option("--mmbench/--no-mmbench", help="Also the letters of answers to MMBench in words.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="By string match instead, without a server.")] = False,
) -> None:
    """Judge the answers that wait for it, in a run's directory or in a file that lmms-eval left; goes on where it was.

    Without options the judge is the one that the run, or else FINEPRUNER_JUDGE, names.
    """
    from finepruner_lmms.judge.answers import AnswersError
    from finepruner_lmms.judge.client import JudgeError
    from finepruner_lmms.judge.judgements import JudgementsError
    from finepruner_lmms.matrix.judging import judge_file, judge_run
    from finepruner_lmms.matrix.store import StoreError

    options = {"url": url, "model": model, "key_env": key_env, "mmbench": mmbench}
    try:
        text = (judge_file if target.is_file() else judge_run)(target, options, exact)
    except JudgeError as error:
        sys.stderr.write(f"{error}\nwhat is judged is kept; the same command goes on from here\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except (AnswersError, JudgementsError, StoreError, ValueError) as error:
        _refuse(str(error))
    sys.stdout.write(text)


@app.command()
def tasks(
    data: Annotated[str, typer.Option(help="hub, demo, or a data root")] = "hub",
    submission: Annotated[
        bool, typer.Option("--submission", help="Tasks that only a server scores write its file, of their test split.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="So many questions of each task, in whole groups, instead of lmms-eval's first.")
    ] = None,
) -> None:
    """Print the folder to pass to lmms-eval's --include_path, so that the tasks fp_<name> read that data."""
    from finepruner_lmms.data.task_folders import folder

    try:
        sys.stdout.write(f"{folder(data, submission, limit)}\n")
    except ValueError as error:
        _refuse(str(error))


@app.command()
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
    from rich.console import Console

    from finepruner_lmms.benchmarks import BENCHMARKS
    from finepruner_lmms.data.jobs import checkpoint_job, task_jobs
    from finepruner_lmms.data.plan import Options
    from finepruner_lmms.data.session import prepare_all

    names = [name.strip() for name in tasks.split(",")] if tasks else [] if checkpoint else list(BENCHMARKS)
    try:
        pairs = [entry.partition("=")[::2] for entry in revision or []]
        if wrong := [entry for entry, (_, wanted) in zip(revision or [], pairs, strict=True) if not wanted]:
            raise ValueError(f"revision: got {wrong[0]!r}; expected task=revision")
        if source is not None and not source.is_dir():
            raise ValueError(f"from: {str(source)!r} is not a folder")
        jobs = task_jobs(names, dict(pairs)) + [checkpoint_job(text) for text in checkpoint or []]
    except ValueError as error:
        _refuse(str(error))
    failed = prepare_all(data, jobs, Options(source, accept_rows, verify), dry_run, Console())
    raise typer.Exit(1 if failed else 0)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A matrix file to run.")] = None,
    data: Annotated[str | None, typer.Option(help="hub, demo, or a data root")] = None,
    pretrained: Annotated[str | None, typer.Option(help="A checkpoint: hub id, folder, or demo")] = None,
    tasks: Annotated[str, typer.Option(help="Benchmarks, separated by commas.", show_default="all")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what is ready on this machine and what is missing. Exit status 1 if something would stop a run."""
    from rich.console import Console

    from finepruner_lmms.doctor import report as doctors

    if config is not None and (data or pretrained or tasks):
        _refuse("doctor: give a matrix file, or --data, --pretrained and --tasks, not both")
    try:
        request = _request_of(config) if config is not None else _request(data, pretrained, tasks)
    except ValueError as error:
        _refuse(str(error))
    with redirect_stdout(sys.stderr):  # lmms-eval logs to the standard output
        checks = doctors.examine(request)
    if as_json:
        sys.stdout.write(f"{doctors.as_json(checks)}\n")
    else:
        doctors.show(checks, Console())
    raise typer.Exit(0 if doctors.ready(checks) else 1)


def main() -> None:
    """The console script."""
    app()


# -- helpers ----------------------------------------------------------------------------------------------------------


def _open(config: Path, output: Path | None) -> tuple[Matrix, Store, Json]:
    """The checked matrix, its store, and the record of its rows and cells."""
    from finepruner_lmms.matrix.cells import as_record, describe_row, expand
    from finepruner_lmms.matrix.config import load_matrix
    from finepruner_lmms.matrix.judging import assign
    from finepruner_lmms.matrix.store import Store
    from finepruner_lmms.matrix.yaml_places import ConfigError

    try:
        matrix = load_matrix(config)
    except ConfigError as error:
        _refuse(str(error))
    store = Store(output if output is not None else Path("runs") / matrix.file.name)
    record = {
        "name": matrix.file.name,
        "model": matrix.file.model.pretrained,
        "num_layers": matrix.num_layers,
        "num_visual_tokens": matrix.num_visual_tokens,
        "tasks": matrix.file.tasks,
        "rows": [describe_row(row) for row in matrix.rows],
        "cells": [as_record(cell) for cell in expand(matrix)],
    }
    return matrix, store, assign(record, matrix.file.judge)


def _request(data: str | None, pretrained: str | None, tasks: str) -> Request:
    """What `doctor` is to look at, as given on the command line."""
    from finepruner_lmms.benchmarks import BENCHMARKS
    from finepruner_lmms.data.jobs import task_jobs
    from finepruner_lmms.doctor.report import Request

    names = [job.name for job in task_jobs(tasks.split(","), {})] if tasks else list(BENCHMARKS)
    if data not in (None, "hub", "demo", "demo-tuning") and not Path(data).is_dir():
        raise ValueError(f"data: {data!r} is neither 'hub', 'demo' nor an existing folder")
    return Request("hub" if data is None and tasks else data, names, pretrained)


def _request_of(config: Path) -> Request:
    """What a matrix file needs. A file that is wrong for another reason than its data is a `ConfigError`."""
    from finepruner_lmms.doctor.report import Request
    from finepruner_lmms.matrix.config import load_matrix
    from finepruner_lmms.pruners import build_pruner

    matrix = load_matrix(config, check_data=False)
    pruners = [build_pruner(row.method, **row.arguments) for row in matrix.rows]
    model = matrix.file.model
    file = matrix.file
    attention = model.attn_implementation
    return Request(file.data, file.tasks, model.pretrained, attention, pruners, file.judge, file.submission)


def _store(output: Path) -> Store:
    from finepruner_lmms.matrix.store import Store

    return Store(output)


def _matrix(store: Store) -> Json:
    from finepruner_lmms.matrix.store import StoreError

    try:
        return store.matrix()
    except StoreError as error:
        _refuse(str(error))


def _facts(cell: Json) -> dict[str, Any]:
    spec = cell["spec"]
    return {
        "method": spec["method"],
        "budget": spec["budget"],
        "parameters": spec["parameters"],
        "limit": spec["limit"],
    }


def _to_run(record: Json, states: Sequence[State]) -> list[Json]:
    """The cells without answers."""
    return [cell for cell, state in zip(record["cells"], states, strict=True) if state.name not in ("done", "waiting")]


def _report_unfinished(store: Store, record: Json) -> int:
    """Say which cells are not as far as the matrix asks, and why; returns how many."""
    states = store.states(record["cells"])
    enough = ("done", "waiting") if record["judge"] == "later" else ("done",)
    unfinished = [
        (cell, state) for cell, state in zip(record["cells"], states, strict=True) if state.name not in enough
    ]
    if record["judge"] == "later" and any(state.name == "waiting" for state in states):
        sys.stdout.write(f"waiting for the judge: `judge {store.root} --url URL --model NAME`\n")
    for cell, state in unfinished:
        sys.stderr.write(f"{state.name}: {cell['label']}{': ' + state.reason if state.reason else ''}\n")
    return len(unfinished)


def _check_format(form: str, known: tuple[str, ...]) -> None:
    if form not in known:
        _refuse(f"format: got {form!r}; known: {', '.join(known)}")


def _refuse(message: str) -> NoReturn:
    """Say what is wrong with the request and exit with status 2."""
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(2)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


if __name__ == "__main__":
    main()
