"""The worker: loads the model once and works through cells with lmms-eval's own evaluator.

Started by `accelerate launch -m finepruner_lmms.matrix.worker PLAN`; every process runs the same cells in the same
order, the first one writes. `python -m finepruner_lmms.matrix.worker` does nothing that needs the parent: what it
says to it are lines in the events file.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from loguru import logger

from finepruner_lmms.benchmarks import BENCHMARKS, Benchmark, image_names, submission
from finepruner_lmms.benchmarks.limits import document_numbers
from finepruner_lmms.data.task_folders import folder as task_folder
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.matrix.store import (
    Json,
    begin_attempt,
    publish_submission,
    write_answered,
    write_error,
    write_result,
)

# after these a process may no longer compute correctly
_POISONED = tuple(getattr(torch, name) for name in ("OutOfMemoryError", "AcceleratorError") if hasattr(torch, name))
_EVERY = 0.5  # seconds between two reports of progress
LEFT = 75  # exit status of a worker that leaves cells to a fresh one


class InvalidResult(RuntimeError):
    """lmms-eval came back, but not with what a finished cell needs."""


class Events:
    """What the first process tells the parent, a JSON object a line."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", encoding="utf-8", buffering=1)
        self._last = 0.0

    def send(self, event: str, **facts: Any) -> None:
        """Say it now."""
        if self._file is not None:
            self._file.write(json.dumps({"event": event, **facts}) + "\n")

    def progress(self, done: int, total: int) -> None:
        """Say how many questions are answered, now and then."""
        now = time.monotonic()
        if now - self._last >= _EVERY or done == total:
            self._last = now
            self.send("progress", done=done, total=total)


def main() -> None:
    """Run the plan named on the command line."""
    plan_file = Path(sys.argv[1])
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    _leave_with_the_parent()
    os.environ["FINEPRUNER_JUDGE"] = "later"  # the parent sees to it
    first = int(os.environ.get("RANK", "0")) == 0
    events = Events(plan_file.with_name("events.jsonl") if first else None)
    events.send("loading")
    lm = LlavaFinePruner(**plan["model"], batch_size=plan["batch_size"])
    lm.on_progress = events.progress if first else None
    manager = TaskManager(
        include_path=str(task_folder(plan["data"], plan.get("submission", False), plan["limit"])),
        include_defaults=False,
        model_name="llava_finepruner",
    )
    events.send("ready", processes=lm.world_size)
    for cell in plan["cells"]:
        if not _attempt(lm, manager, cell, plan, events, first):
            # peers wait inside a collective for a process that failed: only a fresh launch can go on
            os._exit(LEFT)
    events.send("end")


def _attempt(lm: LlavaFinePruner, manager: TaskManager, cell: Json, plan: Json, events: Events, first: bool) -> bool:
    """Run one cell and write what came of it; False if this worker must not go on."""
    folder = Path(cell["path"])
    attempt = begin_attempt(folder, plan["launch"]) if first else folder
    events.send("start", cell=cell["id"])
    started = time.monotonic()
    lm.monitor_to(folder if plan.get("monitor") else None)
    try:
        outcome = evaluate_cell(lm, manager, cell["spec"], attempt, folder / "cache", cell["id"])
        if outcome is not None:
            result, samples = outcome
            if "submission" in result:
                result["submission"] = publish_submission(folder, result["submission"])
            seconds = time.monotonic() - started
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            about = {"id": cell["id"], "spec": cell["spec"], "seconds": round(seconds, 3), "finished": finished}
            run = {"batch_size": plan["batch_size"], "processes": lm.world_size, "device": str(lm.device)}
            write = write_answered if BENCHMARKS[cell["task"]].judged else write_result
            write(folder, about | run | result, samples)
            shutil.rmtree(folder / "cache", ignore_errors=True)
    except Exception as error:  # noqa: BLE001 - whatever a task or model raises is this cell's failure, and is reported
        details = traceback.format_exc()
        logger.error(details)  # the launch's log
        write_error(folder, type(error).__name__, str(error).strip() or "no message", details)
        events.send("failed", cell=cell["id"])
        return lm.world_size == 1 and not isinstance(error, _POISONED)
    events.send("done", cell=cell["id"])
    return True


def evaluate_cell(
    lm: LlavaFinePruner, manager: TaskManager, spec: Json, attempt: Path, cache: Path, run_id: str
) -> tuple[Json, list[Json]] | None:
    """Result and samples of one cell; None in all processes but the first.

    Answers go to `cache` as they come, under a fixed run id, so that an attempt that is cut off costs only the
    questions it had not answered.
    """
    benchmark = BENCHMARKS[spec["task"]]
    lm.configure(method=spec["method"], budget=spec["budget"], **spec["parameters"])
    os.environ["LMMS_CACHE_RUN_ID"] = run_id
    lm.lengths.clear()
    out = simple_evaluate(
        model=lm,
        model_args=lm.arguments.canonical(),
        tasks=[benchmark.task],
        task_manager=manager,
        batch_size=lm.batch_size,
        use_cache=str(cache),
        log_samples=True,
        bootstrap_iters=0,
        datetime_str=datetime.now(UTC).strftime("%Y%m%d_%H%M%S"),
        # scoring reads no image: with them, each would be decoded a second time, in every process
        cli_args=SimpleNamespace(output_path=str(attempt), process_with_media=False),
    )
    if lm.rank != 0:
        return None
    if out is None:
        raise InvalidResult("lmms-eval returned no results")
    logged = sorted(out["samples"][benchmark.task], key=lambda sample: sample["doc_id"])
    expected = out["n-samples"][benchmark.task]["original"]  # of those that a limit has left
    if spec["limit"] is not None and expected > spec["limit"]:
        raise InvalidResult(f"{expected} questions were asked, but the limit is {spec['limit']}")
    documents = [sample["doc_id"] for sample in logged]
    if documents != sorted(set(documents)) or len(documents) != expected:
        raise InvalidResult(f"{len(set(documents))} different questions answered, {expected} expected")
    asked = lm.task_dict[benchmark.task][out["configs"][benchmark.task]["test_split"]]
    numbers = document_numbers(asked)  # in the whole data set, so that studies with other limits can be joined
    logged = [sample | {"doc_id": numbers[sample["doc_id"]]} for sample in logged]
    images = dict(zip(numbers, image_names(asked, benchmark.image_column), strict=True))
    metric, outcome = benchmark.metric.partition(",")[0], {}
    if spec.get("submission"):
        metric, outcome = "submission", {"submission": _submission(attempt, benchmark.name, asked)}
    elif not benchmark.judged:
        outcome = _scores(benchmark, out["results"][benchmark.task], logged, images)
    result = outcome | {
        "answered": len(logged),
        "expected": expected,
        # of this process's questions; those that an earlier attempt had answered are not among them
        "cost": None if (cost := lm.prefill_cost()) is None else asdict(cost),
    }
    return result, [_line(sample, metric, images) for sample in logged]


def _scores(benchmark: Benchmark, results: Json, logged: list[Json], images: Mapping[int, str]) -> Json:
    """lmms-eval's metrics, checked against what the samples give, and the standard error."""
    metrics = {k: float(v) for k, v in results.items() if _numeric(v)}
    if benchmark.metric not in metrics:
        raise InvalidResult(f"the metric {benchmark.metric!r} is {results.get(benchmark.metric)!r}, not a number")
    recomputed, value = benchmark.value(logged), metrics[benchmark.metric]
    if not math.isclose(recomputed, value, rel_tol=1e-6, abs_tol=1e-9):
        raise InvalidResult(f"{benchmark.metric} is {value!r}, but its samples give {recomputed!r}")
    error = benchmark.standard_error(logged, images)
    return {"metrics": metrics, "percent": benchmark.percent(logged), "standard_error": error}


def _submission(attempt: Path, name: str, asked: Any) -> Path:
    """The file that the task wrote for the server, checked against all questions that were to be asked."""
    (path,) = (attempt / "submissions").iterdir()
    column = submission.SERVED[name].column
    submission.check(path, name, asked.select_columns([column])[column])
    return path


def _line(sample: Json, metric: str, images: Mapping[int, str]) -> Json:
    """One question for `samples.jsonl`, joined by `doc_id` and `image` with those of other cells."""
    return {
        "doc_id": sample["doc_id"],
        "image": images[sample["doc_id"]],
        "target": sample["target"],
        "answer": sample["filtered_resps"][0],
        "score": json.loads(json.dumps(sample.get(metric), default=float)),
    }


def _numeric(value: Any) -> bool:
    try:
        return not isinstance(value, str | bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


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
