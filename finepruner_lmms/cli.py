"""The command line: `python run_matrix.py COMMAND`, or `finepruner COMMAND`.

Exit status: 0 done, 1 some cells failed (all others are kept), 2 the request itself is wrong and nothing was run,
130 stopped from outside (what is done is kept). Imports are inside the commands, so that `--help` is immediate.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from finepruner_lmms.errors import Failure, FieldError, check_choice

# of the machine, not of what was asked: the disk is full, or breaks
_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Commands(TyperGroup):
    """Commands whose expected failures are one line each; a fault of ours keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; this is the one place that turns a failure into an exit status."""
        try:
            return super().invoke(ctx)
        except Failure as error:
            text, status = str(error), error.exit_status
        except BrokenPipeError:  # who reads our output went away
            raise
        except OSError as error:
            named = "" if error.filename is None else f"{error.filename}: "
            text, status = f"{named}{error.strerror or error}", 1 if error.errno in _FAULTS else 2
        sys.stderr.write(f"{text}\n")
        raise typer.Exit(status)


app = typer.Typer(
    cls=Commands, add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
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

    from finepruner_lmms.data.ready import require_data
    from finepruner_lmms.judge.client import JudgeError
    from finepruner_lmms.judge.judgements import JudgementsError
    from finepruner_lmms.matrix.judging import judge_cells
    from finepruner_lmms.matrix.progress import display_for
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.report.tables import render
    from finepruner_lmms.matrix.runner import LaunchError, run_cells
    from finepruner_lmms.matrix.study import open_study, report_unfinished, to_run

    matrix, store, study = open_study(config, output)
    require_data(matrix.file.data, matrix.file.tasks, matrix.file.submission)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    with ExitStack() as held:
        held.enter_context(store.lock())
        store.save_study(study)
        states = store.states(study.cells)
        left = to_run(study, states)
        total, finished = len(states), len(states) - len(left)
        with display_for(Console(), total, finished) as display:
            display.note(f"{total} cells, {finished} done before, {len(left)} to do; results in {store.root}")
            try:
                run_cells(store, matrix.file, left, display)
                judge_cells(store, study, matrix.file.judge, display)
            except LaunchError as error:
                display.note(str(error))
            except (JudgeError, JudgementsError) as error:
                display.note(f"{error}\nthe answers are kept; `run`, or `judge {store.root}`, goes on from here")
            except KeyboardInterrupt:
                display.note("stopped; what is done is kept, `run` goes on from here")
                raise typer.Exit(130) from None
    sys.stdout.write(f"\n{render(leaderboard(store), 'text')}")
    raise typer.Exit(1 if report_unfinished(store, study) else 0)


@app.command()
def plan(
    config: Config,
    output: OutputOption = None,
    form: Annotated[str, typer.Option("--format", help="text, or jsonl: one JSON object per cell")] = "text",
) -> None:
    """Show what would run and what is done, with an estimate of the time, without running."""
    from finepruner_lmms.matrix.overview import plan_lines, plan_text
    from finepruner_lmms.matrix.study import open_study

    check_choice("--format", form, ("text", "jsonl"))
    sys.stdout.write((plan_lines if form == "jsonl" else plan_text)(*open_study(config, output)))


@app.command()
def status(output: Output) -> None:
    """List done, running, waiting, failed and missing cells, with each failure's reason."""
    from finepruner_lmms.matrix.status import status_text
    from finepruner_lmms.matrix.store import Store

    store = Store(output)
    sys.stdout.write(status_text(store, store.study()))


@app.command()
def table(
    output: Output,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex")] = "text",
    seeds: Annotated[
        bool, typer.Option("--seeds", help="One row per seed, instead of their mean (always so in CSV).")
    ] = False,
    picture: Annotated[Path | None, typer.Option(help="Also draw it: a .png, .pdf or .svg file.")] = None,
    costs: Annotated[bool, typer.Option("--costs", help="What each row cost, instead of scores.")] = False,
    relative: Annotated[
        str, typer.Option(help="ratios: mean of the ratios to vanilla; means: ratio of the averages.")
    ] = "ratios",
) -> None:
    """Print the leaderboard."""
    from finepruner_lmms.matrix.report.costs import render_costs
    from finepruner_lmms.matrix.report.leaderboard import leaderboard
    from finepruner_lmms.matrix.report.tables import FORMATS, RELATIVE, render
    from finepruner_lmms.matrix.store import Store

    check_choice("--format", form, FORMATS)
    check_choice("--relative", relative, RELATIVE)
    store = Store(output)
    store.study()
    board = leaderboard(store, merge_seeds=not seeds and form != "csv")
    sys.stdout.write(render_costs(board, form) if costs else render(board, form, relative))
    if picture is not None:
        from finepruner_lmms.matrix.report.plots import draw

        draw(leaderboard(store), picture)


@app.command()
def report(
    output: Output,
    to: Annotated[Path | None, typer.Option("--to", help="The file.", show_default="OUTPUT/report.html")] = None,
) -> None:
    """Write a self-contained HTML report: tables, pictures, and the head study where rows differ in their heads."""
    from finepruner_lmms.matrix.report.html import write_report
    from finepruner_lmms.matrix.store import Store

    store = Store(output)
    store.study()
    target = output / "report.html" if to is None else to
    write_report(store, target)
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
    from finepruner_lmms.matrix.store import Store

    store = Store(output)
    study = store.study()
    found = differences(store, study, find_row(study, first), find_row(study, second))
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
    from finepruner_lmms.judge.client import JudgeError
    from finepruner_lmms.matrix.judging import judge_file, judge_run

    options = {"url": url, "model": model, "key_env": key_env, "mmbench": mmbench}
    try:
        sys.stdout.write((judge_file if target.is_file() else judge_run)(target, options, exact))
    except JudgeError as error:
        sys.stderr.write(f"{error}\nwhat is judged is kept; the same command goes on from here\n")
        raise typer.Exit(error.exit_status) from None


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

    sys.stdout.write(f"{folder(data, submission, limit)}\n")


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
    if source is not None and not source.is_dir():
        raise FieldError("--from", f"{str(source)!r} is not a folder", value=source)
    revisions = dict(entry.partition("=")[::2] for entry in revision or [])
    if wrong := [task for task, wanted in revisions.items() if not wanted]:
        raise FieldError("--revision", f"got {wrong[0]!r}; expected task=revision", value=wrong[0])
    jobs = task_jobs(names, revisions) + [checkpoint_job(text) for text in checkpoint or []]
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
    from finepruner_lmms.doctor.request import request
    from finepruner_lmms.matrix.study import what_it_needs

    if config is not None and (data or pretrained or tasks):
        raise FieldError("doctor", "give a matrix file, or --data, --pretrained and --tasks, not both")
    asked = request(data, pretrained, tasks) if config is None else what_it_needs(config)
    with redirect_stdout(sys.stderr):  # lmms-eval logs to the standard output
        checks = doctors.examine(asked)
    if as_json:
        sys.stdout.write(f"{doctors.as_json(checks)}\n")
    else:
        doctors.show(checks, Console())
    raise typer.Exit(0 if doctors.ready(checks) else 1)


@app.command()
def bench(
    pretrained: Annotated[str | None, typer.Option(help="A checkpoint: hub id, folder, or demo.")] = None,
    like: Annotated[
        str | None, typer.Option(help="Random weights of this shape, without a download: llava-1.5-7b, ..., tiny.")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="Such as fastv:64,finepruner:25%:heads=4; vanilla always.", show_default="a few")
    ] = "",
    batch: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,8,32",
    execution: Annotated[str, typer.Option(help="auto, eager, graphs, or both of these.")] = "auto",
    tokens: Annotated[int, typer.Option(help="New tokens of an answer of fixed length.")] = 16,
    text: Annotated[int, typer.Option(help="Text tokens of a prompt, with --like.")] = 60,
    rounds: Annotated[int, typer.Option(help="How often each method is asked.")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, float16 or bfloat16; auto: bfloat16 on a GPU, else float32.")
    ] = "auto",
    out: Annotated[Path | None, typer.Option(help="A folder for the files.", show_default="runs/bench-<model>")] = None,
    redraw: Annotated[
        Path | None, typer.Option("--redraw", help="A bench.json measured before: only write its table and picture.")
    ] = None,
) -> None:
    """Measure methods on this device, side by side, next to what their operation counts promise."""
    from finepruner_lmms.bench.session import measure, write

    if redraw is not None:
        if pretrained or like:
            raise FieldError("--redraw", "measures nothing", value=redraw, fix="leave --pretrained and --like out")
        sys.stdout.write(write(redraw, out or redraw.parent))
        return
    asked: dict[str, Any] = {"pretrained": pretrained, "like": like, "methods": methods, "batch": batch}
    asked |= {"execution": execution, "tokens": tokens, "text": text, "rounds": rounds}
    asked |= {"device": device, "dtype": dtype}
    result = measure(asked, out)
    sys.stdout.write(write(result, result.parent))


def main() -> None:
    """The console script."""
    # no plug-in of pydantic has a say in our records; looking for one reads what every installed package says of itself
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    app()


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped(number)


if __name__ == "__main__":
    main()
