"""The worker: loads the model once and works through cells with lmms-eval's own evaluator.

Every process of a worker runs the same cells in the same order; the first one claims and writes. Several workers may
go through the same plan: each takes the cells that no other has taken. What a worker says to its parent are lines in
the events file. Cells that are to run in launches of their own are in `isolated`.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finepruner_lmms.files import load_object
from finepruner_lmms.lmms import heartbeat
from finepruner_lmms.matrix.events import Events
from finepruner_lmms.matrix.plan import Event, Plan, PlannedCell
from finepruner_lmms.matrix.provenance import Watch, devices_of
from finepruner_lmms.matrix.records import parse
from finepruner_lmms.output import log_plainly

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from finepruner_lmms.claims import Claim
    from finepruner_lmms.lmms.pruned_model import PrunedModel
    from finepruner_lmms.lmms.together import Company

LEFT = 75  # exit status of a worker that leaves cells to a fresh one


def main() -> None:
    """Run the plan named on the command line."""
    heartbeat.begin()  # before anything that takes long
    _leave_with_the_parent()
    log_plainly()
    plan_file = Path(sys.argv[1])
    plan = parse(Plan, load_object(plan_file), plan_file.name)
    first = int(os.environ.get("RANK", "0")) == 0
    events = Events(plan_file.with_name("events.jsonl") if first else None)
    events.send(Event(event="loading"))
    if plan.mode == "isolated":
        from finepruner_lmms.matrix.isolated import run_isolated

        run_isolated(plan, events, plan_file.parent)
    else:
        _run(plan, events, first)
    events.send(Event(event="end"))


def _run(plan: Plan, events: Events, first: bool) -> None:
    """Load the model and work through the cells that can be had."""
    heartbeat.phase("load")
    from finepruner_lmms.lmms.model import FinePruner
    from finepruner_lmms.matrix.evaluate import gather, task_manager

    lm = FinePruner(**plan.model.model_dump(exclude_none=True), batch_size=plan.batch_size)
    lm.on_progress = events.progress if first else None
    heartbeat.phase("index")
    manager = task_manager(plan)
    events.send(Event(event="ready", processes=lm.world_size))
    for cells in at_once(plan.cells, plan.fan_out):
        heartbeat.phase("index")
        mine = _claimed(lm, cells, first)
        company = gather(lm, [cell for cell, _, _ in mine], plan.monitor)
        for cell, number, claim in mine:
            if not _attempt(lm, manager, cell, number, claim, plan, events, first, company):
                # peers wait inside a collective for a process that failed: only a fresh launch can go on
                os._exit(LEFT)


def at_once(cells: Sequence[PlannedCell], most: int | None) -> Iterator[list[PlannedCell]]:
    """The cells in groups of one task, of at most so many each, to be answered together."""
    for _, those in itertools.groupby(cells, key=lambda cell: cell.task):
        group = list(those)
        size = len(group) if most is None else most
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _claimed(lm: PrunedModel, cells: Sequence[PlannedCell], first: bool) -> list[tuple[PlannedCell, int, Claim | None]]:
    """Those of the cells that nobody else has taken: which attempt this is, and the claim, which the first process has.

    All processes are told the number of the attempt.
    """
    from accelerate.utils import broadcast_object_list

    from finepruner_lmms.matrix.attempts import take

    held: dict[str, Claim] = {}
    if first:
        for cell in cells:
            if (claim := take(cell.path, cell.attempts)) is not None:
                held[cell.id] = claim
    numbers = {name: claim.number for name, claim in held.items()}
    if lm.world_size > 1:
        numbers = broadcast_object_list([numbers])[0]
    return [(cell, numbers[cell.id], held.get(cell.id)) for cell in cells if cell.id in numbers]


def _attempt(
    lm: PrunedModel,
    manager: TaskManager,
    cell: PlannedCell,
    number: int,
    claim: Claim | None,
    plan: Plan,
    events: Events,
    first: bool,
    company: Company | None,
) -> bool:
    """Run one cell and write what came of it; False if this worker must not go on."""
    import torch
    from loguru import logger

    from finepruner_lmms.lmms.meter import device_name
    from finepruner_lmms.matrix.attempts import begin, write_error
    from finepruner_lmms.matrix.evaluate import evaluate_cell, recorder_of
    from finepruner_lmms.matrix.publish import Superseded, publish

    # after these a process may no longer compute correctly
    poisoned = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
    folder = cell.path
    attempt = folder if claim is None else begin(claim, plan.launch)
    events.send(Event(event="start", cell=cell.id))
    started, watch = time.monotonic(), Watch(devices_of(lm.device, lm.world_size))
    lm.monitor_to(folder if plan.monitor else None)
    lm.recorder = recorder_of(plan, cell)
    try:
        outcome = evaluate_cell(lm, manager, cell, attempt, folder / "cache", company)
        if outcome is not None and claim is not None:
            heartbeat.phase("score")
            run: dict[str, object] = {
                "batch_size": plan.batch_size,
                "processes": lm.world_size,
                "device": str(lm.device),
            }
            came = watch.provenance(
                cell,
                device=device_name(lm.device),
                processes=lm.world_size,
                batch_size=plan.batch_size,
                speed=outcome[0].speed,
            )
            run["provenance"] = came.model_dump(exclude_none=True)
            publish(cell, claim, outcome, run, time.monotonic() - started)
    except Superseded as error:
        logger.warning(str(error))
        events.send(Event(event="lost", cell=cell.id))
        return lm.world_size == 1
    except Exception as error:  # noqa: BLE001 - whatever a task or model raises is this cell's failure, and is reported
        details = traceback.format_exc()
        logger.error(details)  # the launch's log
        write_error(folder, type(error).__name__, str(error).strip() or "no message", details, number)
        events.send(Event(event="failed", cell=cell.id))
        return lm.world_size == 1 and not isinstance(error, poisoned)
    events.send(Event(event="done", cell=cell.id))
    return True


def _leave_with_the_parent() -> None:
    """End this process when the runner does, however it ends: its end of our standard input closes."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    if os.environ.get("FINEPRUNER_PARENT") == "stdin":
        threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    main()
