"""The worker: loads the model once and works through cells with lmms-eval's own evaluator.

Started by `accelerate launch -m finepruner_lmms.matrix.worker PLAN`; every process runs the same cells in the same
order, the first one writes. `python -m finepruner_lmms.matrix.worker` does nothing that needs the parent: what it
says to it are lines in the events file.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from lmms_eval.tasks import TaskManager
from loguru import logger

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.data.task_folders import folder as task_folder
from finepruner_lmms.files import load_object
from finepruner_lmms.lmms.meter import device_name
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.together import Company
from finepruner_lmms.matrix.attempts import begin_attempt, write_error
from finepruner_lmms.matrix.evaluate import evaluate_cell, gather
from finepruner_lmms.matrix.plan import Event, Plan, PlannedCell
from finepruner_lmms.matrix.provenance import Watch, devices_of
from finepruner_lmms.matrix.records import parse
from finepruner_lmms.matrix.results import publish_submission, write_answered, write_result

# after these a process may no longer compute correctly
_POISONED = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
_EVERY = 0.5  # seconds between two reports of progress
LEFT = 75  # exit status of a worker that leaves cells to a fresh one


class Events:
    """What the first process tells the parent, one JSON object per line."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", encoding="utf-8", buffering=1)
        self._last = 0.0

    def send(self, event: Event) -> None:
        """Say it now."""
        if self._file is not None:
            self._file.write(event.model_dump_json(exclude_defaults=True) + "\n")

    def progress(self, done: int, total: int) -> None:
        """Say how many questions are answered, now and then."""
        now = time.monotonic()
        if now - self._last >= _EVERY or done == total:
            self._last = now
            self.send(Event(event="progress", done=done, total=total))


def main() -> None:
    """Run the plan named on the command line."""
    plan_file = Path(sys.argv[1])
    plan = parse(Plan, load_object(plan_file), plan_file.name)
    _leave_with_the_parent()
    first = int(os.environ.get("RANK", "0")) == 0
    events = Events(plan_file.with_name("events.jsonl") if first else None)
    events.send(Event(event="loading"))
    lm = LlavaFinePruner(**plan.model.model_dump(exclude_none=True), batch_size=plan.batch_size)
    lm.on_progress = events.progress if first else None
    manager = TaskManager(
        include_path=str(task_folder(plan.data, plan.submission, plan.limit)),
        include_defaults=False,
        model_name="llava_finepruner",
    )
    events.send(Event(event="ready", processes=lm.world_size))
    for cells in at_once(plan.cells, plan.fan_out):
        company = gather(lm, cells, plan.monitor)
        for cell in cells:
            if not _attempt(lm, manager, cell, plan, events, first, company):
                # peers wait inside a collective for a process that failed: only a fresh launch can go on
                os._exit(LEFT)
    events.send(Event(event="end"))


def at_once(cells: Sequence[PlannedCell], most: int | None) -> Iterator[list[PlannedCell]]:
    """The cells in groups of one task, of at most so many each, to be answered together."""
    for _, those in itertools.groupby(cells, key=lambda cell: cell.task):
        group = list(those)
        size = len(group) if most is None else most
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _attempt(
    lm: LlavaFinePruner,
    manager: TaskManager,
    cell: PlannedCell,
    plan: Plan,
    events: Events,
    first: bool,
    company: Company | None,
) -> bool:
    """Run one cell and write what came of it; False if this worker must not go on."""
    folder = cell.path
    attempt = begin_attempt(folder, plan.launch) if first else folder
    events.send(Event(event="start", cell=cell.id))
    started, watch = time.monotonic(), Watch(devices_of(lm.device, lm.world_size))
    lm.monitor_to(folder if plan.monitor else None)
    try:
        outcome = evaluate_cell(lm, manager, cell, attempt, folder / "cache", company)
        if outcome is not None:
            found, samples = outcome
            result = found.model_dump(include={"answered", "expected", "cost", "speed"})
            if found.scores is not None:
                result |= found.scores.model_dump()
            if found.submission is not None:
                result["submission"] = publish_submission(folder, found.submission).model_dump()
            seconds = time.monotonic() - started
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"id": cell.id, "spec": cell.spec(), "seconds": round(seconds, 3), "finished": finished}
            run = {"batch_size": plan.batch_size, "processes": lm.world_size, "device": str(lm.device)}
            came = watch.provenance(
                cell,
                device=device_name(lm.device),
                processes=lm.world_size,
                batch_size=plan.batch_size,
                speed=found.speed,
            )
            run["provenance"] = came.model_dump(exclude_none=True)
            write = write_answered if BENCHMARKS[cell.task].judged else write_result
            write(folder, about | run | result, samples)
            shutil.rmtree(folder / "cache", ignore_errors=True)
    except Exception as error:  # noqa: BLE001 - whatever a task or model raises is this cell's failure, and is reported
        details = traceback.format_exc()
        logger.error(details)  # the launch's log
        write_error(folder, type(error).__name__, str(error).strip() or "no message", details)
        events.send(Event(event="failed", cell=cell.id))
        return lm.world_size == 1 and not isinstance(error, _POISONED)
    events.send(Event(event="done", cell=cell.id))
    return True


def _leave_with_the_parent() -> None:
    """End this process when the parent does, however it ends: its end of our standard input closes."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    if os.environ.get("FINEPRUNER_PARENT") == "stdin":
        threading.Thread(target=wait, name="parent", daemon=True).start()


if __name__ == "__main__":
    main()
