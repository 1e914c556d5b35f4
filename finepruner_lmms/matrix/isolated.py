"""Cells in launches of their own: for each, exactly the `accelerate launch -m lmms_eval` that a user would type.

The slowest way, since imports, index and model are loaded for each cell; and the one in which nothing of a cell can
have an effect on another. What lmms-eval wrote is then made a result as in the other modes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.lmms import heartbeat
from finepruner_lmms.lmms.names import model_name
from finepruner_lmms.matrix.launch import MARK, accelerate, heartbeat_of, last_error, sweep, tethered
from finepruner_lmms.matrix.measures import name_of_task
from finepruner_lmms.matrix.plan import Event, Plan, PlannedCell

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from finepruner_lmms.claims import Claim
    from finepruner_lmms.matrix.events import Events

_POLL = 0.2  # seconds


class LaunchFailed(RuntimeError):
    """lmms-eval ended without results; the text has the last error of its log."""


def run_isolated(plan: Plan, events: Events, folder: Path) -> None:
    """Work through the cells of a plan that nobody else has taken."""
    from finepruner_lmms.matrix.attempts import take
    from finepruner_lmms.matrix.evaluate import task_manager

    heartbeat.phase("index")
    manager = task_manager(plan)
    events.send(Event(event="ready", processes=plan.processes))
    for cell in plan.cells:
        if (claim := take(cell.path, cell.attempts)) is not None:
            _attempt(manager, cell, claim, plan, events, folder)


def command(plan: Plan, cell: PlannedCell, attempt: Path, tasks: Path) -> list[str]:
    """What a user would type for a cell."""
    module = [
        *("lmms_eval", "--model", model_name(plan.model.pretrained), "--model_args", model_args(plan, cell)),
        *(
            "--tasks",
            name_of_task(cell.task),
            "--include_path",
            str(Path(cell.definition).parent if cell.definition else tasks),
        ),
        *(("--limit", str(cell.limit)) if cell.definition and cell.limit is not None else ()),
        *("--batch_size", str(plan.batch_size), "--output_path", str(attempt / "lmms"), "--log_samples"),
    ]
    return accelerate(attempt, plan.processes, module)


def model_args(plan: Plan, cell: PlannedCell) -> str:
    """A cell's model and method as lmms-eval takes them. `FieldError` for a value that it would read otherwise."""
    given = {"pretrained": plan.model.pretrained} | plan.model.model_dump(exclude_none=True, exclude_defaults=True)
    given |= {"method": cell.method.method}
    given |= {} if cell.method.budget is None else {"budget": cell.method.budget}
    given |= cell.method.given
    for name, value in given.items():
        if isinstance(value, str) and set(value) & set(",="):
            fix = "use launch.mode resident or packed"
            raise FieldError(name, f"{show(value)} cannot stand in lmms-eval's --model_args", value=value, fix=fix)
    return ",".join(f"{name}={value}" for name, value in given.items())


def _attempt(manager: TaskManager, cell: PlannedCell, claim: Claim, plan: Plan, events: Events, folder: Path) -> None:
    """Launch, wait, collect, publish; what goes wrong is the cell's failure."""
    from loguru import logger

    from finepruner_lmms.matrix.attempts import begin, write_error
    from finepruner_lmms.matrix.evaluate import collect_cell
    from finepruner_lmms.matrix.provenance import Watch
    from finepruner_lmms.matrix.publish import Superseded, publish

    attempt = begin(claim, plan.launch)
    events.send(Event(event="start", cell=cell.id))
    started, watch = time.monotonic(), Watch()
    try:
        _launch(plan, cell, attempt, folder, events)
        heartbeat.phase("score")
        outcome = collect_cell(manager, cell, attempt, cell.path / "cache")
        run: dict[str, object] = {"batch_size": plan.batch_size, "processes": plan.processes, "mode": "isolated"}
        speed = outcome[0].speed
        device = None if speed is None else speed.conditions.device  # which only the launched processes see
        came = watch.provenance(cell, device=device, processes=plan.processes, batch_size=plan.batch_size, speed=speed)
        run["provenance"] = came.model_dump(exclude_none=True)
        publish(cell, claim, outcome, run, time.monotonic() - started)
    except Superseded as error:
        logger.warning(str(error))
        events.send(Event(event="lost", cell=cell.id))
    except Exception as error:  # noqa: BLE001 - whatever a task or model raises is this cell's failure, and is reported
        details = traceback.format_exc()
        logger.error(details)
        write_error(cell.path, type(error).__name__, str(error).strip() or "no message", details, claim.number)
        events.send(Event(event="failed", cell=cell.id))
    else:
        events.send(Event(event="done", cell=cell.id))


def _launch(plan: Plan, cell: PlannedCell, attempt: Path, folder: Path, events: Events) -> None:
    """Run lmms-eval and pass on how far it is. It ends with this process."""
    from finepruner_lmms.data.task_folders import folder as task_folder
    from finepruner_lmms.lmms.recorder import VARIABLE
    from finepruner_lmms.matrix.evaluate import recorder_of

    signs = folder / "lmms_eval"
    signs.mkdir(exist_ok=True)
    for file in signs.glob("rank-*.json"):  # of the cell before
        file.unlink()
    typed = command(plan, cell, attempt, task_folder(plan.data, plan.submission, plan.limit, plan.protocol))
    (attempt / "command.txt").write_text(shlex.join(typed) + "\n", encoding="utf-8")
    environment = os.environ | {
        heartbeat.VARIABLE: str(signs),
        MARK: str(signs),
        "FINEPRUNER_JOURNAL": str(cell.path / "cache"),
        VARIABLE: recorder_of(plan, cell).as_variable(),
        "FINEPRUNER_PARENT": "",  # their parent is this process, not the runner
    }
    log = attempt / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            tethered(typed), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            with heartbeat.aside():
                while process.poll() is None:
                    _pass_on(signs, events)
                    time.sleep(_POLL)
        finally:
            process.kill()
            sweep(signs)  # of a launcher that was killed the processes may be left
    if process.returncode or not list(attempt.glob("lmms/**/*_results.json")):
        how = f"lmms-eval ended with status {process.returncode} and no results"
        raise LaunchFailed(f"{how}: {last_error(log)}; log: {log}")


def _pass_on(signs: Path, events: Events) -> None:
    sign = heartbeat_of(signs)
    done, total = sign.get("done"), sign.get("total")
    if isinstance(done, int) and isinstance(total, int) and total:
        events.progress(done, total)
