"""One cell: lmms-eval's own evaluator with our model on one task, checked, as a result and a line per question.

This file is part of what a result depends on (`lmms.code_identity`); starting, listening and storing are elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from loguru import logger

from finepruner_lmms.benchmarks import BENCHMARKS, Benchmark, image_names, submission
from finepruner_lmms.benchmarks.limits import document_numbers
from finepruner_lmms.benchmarks.record import Sample as Logged
from finepruner_lmms.errors import first_line
from finepruner_lmms.lmms.identity import cell_identity
from finepruner_lmms.lmms.journal import Journal
from finepruner_lmms.lmms.meter import device_name
from finepruner_lmms.lmms.model import LlavaFinePruner
from finepruner_lmms.lmms.ranks import every_rank
from finepruner_lmms.lmms.response_cache import share_answers
from finepruner_lmms.lmms.together import Companion, Company
from finepruner_lmms.matrix.launch import RUN_ID
from finepruner_lmms.matrix.plan import Cell, PlannedCell
from finepruner_lmms.matrix.records import Outcome, Sample, Scores
from finepruner_lmms.matrix.speed import measured
from finepruner_lmms.pruners import Pruner


class InvalidResult(RuntimeError):
    """lmms-eval came back, but not with what a finished cell needs."""


def evaluate_cell(
    lm: LlavaFinePruner, manager: TaskManager, cell: Cell, attempt: Path, cache: Path, company: Company | None = None
) -> tuple[Outcome, list[Sample]] | None:
    """Result and samples of one cell; None in all processes but the first.

    Answers go to `cache` as they come, and are found again by a later attempt, so that one that is cut off costs only
    the questions it had not answered. What is asked is answered for the other cells of the `company` as well.
    """
    benchmark = BENCHMARKS[cell.task]
    lm.configure(**_method(cell))
    _check_identity(lm, lm.pruner, cell)
    lm.seat = (company or Company({})).seat(cell.id, Journal(cache, lm.rank))
    share_answers(cache, RUN_ID, lm.rank)
    lm.lengths.clear()
    lm.meter.start()
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
    spent = every_rank(lm.accelerator, lm.meter.spent())
    if lm.rank != 0:
        return None
    if out is None:
        raise InvalidResult("lmms-eval returned no results")
    logged = sorted(out["samples"][benchmark.task], key=lambda sample: sample["doc_id"])
    expected = out["n-samples"][benchmark.task]["original"]  # of those that the task's limit has left
    if cell.limit is not None and expected > cell.limit:
        raise InvalidResult(f"{expected} questions were asked, but the limit is {cell.limit}")
    documents = [sample["doc_id"] for sample in logged]
    if documents != sorted(set(documents)) or len(documents) != expected:
        raise InvalidResult(f"{len(set(documents))} different questions answered, {expected} expected")
    asked = lm.task_dict[benchmark.task][out["configs"][benchmark.task]["test_split"]]
    numbers = document_numbers(asked)  # in the whole data set, so that studies with other limits can be joined
    logged = [sample | {"doc_id": numbers[sample["doc_id"]]} for sample in logged]
    images = dict(zip(numbers, image_names(asked, benchmark.image_column), strict=True))
    metric, scores, submitted = benchmark.metric.partition(",")[0], None, None
    if cell.submission:
        metric, submitted = "submission", _submission(attempt, benchmark.name, asked)
    elif not benchmark.judged:
        scores = _scores(benchmark, out["results"][benchmark.task], logged, images)
    cost = None if (prefill := lm.prefill_cost()) is None else asdict(prefill)
    speed = measured(spent, device_name(lm.device), cell.identity.dtype, lm.batch_size, lm.seat.answered)
    outcome = Outcome(
        answered=len(logged), expected=expected, cost=cost, speed=speed, scores=scores, submission=submitted
    )
    return outcome, [_line(sample, metric, images) for sample in logged]


def gather(lm: LlavaFinePruner, cells: Sequence[PlannedCell], monitor: bool) -> Company:
    """The cells of a task as a company, but for those that cannot be computed: each says why when it is evaluated."""
    members: dict[str, Companion] = {}
    for cell in cells if len(cells) > 1 else ():
        try:
            _, pruner = lm.method(**_method(cell))
            _check_identity(lm, pruner, cell)
        except (ValueError, TypeError, InvalidResult) as error:
            logger.warning(f"{cell.label} goes on alone: {first_line(error)}")
            continue
        journal = Journal(cell.path / "cache", lm.rank)
        members[cell.id] = Companion(cell.label, pruner, journal, lm.monitor_in(cell.path if monitor else None))
    return Company(members)


def _method(cell: Cell) -> dict[str, Any]:
    """A cell's method as the arguments of `LlavaFinePruner.configure`."""
    return {"method": cell.method.method, "budget": cell.method.budget, **cell.method.parameters}


def _check_identity(lm: LlavaFinePruner, pruner: Pruner, cell: Cell) -> None:
    """`InvalidResult` if this process would compute something else than was planned."""
    now = cell_identity(lm.answer_identity(pruner), cell.task, cell.limit, cell.submission, cell.identity.data)
    if changes := now.changes_since(cell.identity):
        raise InvalidResult(f"since this was planned, {'; '.join(changes)}; `run` again")


def _scores(
    benchmark: Benchmark, results: Mapping[str, Any], logged: list[Logged], images: Mapping[int, str]
) -> Scores:
    """lmms-eval's metrics, checked against what the samples give, and the standard error."""
    metrics = {k: float(v) for k, v in results.items() if _numeric(v)}
    if benchmark.metric not in metrics:
        raise InvalidResult(f"the metric {benchmark.metric!r} is {results.get(benchmark.metric)!r}, not a number")
    recomputed, value = benchmark.value(logged), metrics[benchmark.metric]
    if not math.isclose(recomputed, value, rel_tol=1e-6, abs_tol=1e-9):
        raise InvalidResult(f"{benchmark.metric} is {value!r}, but its samples give {recomputed!r}")
    error = benchmark.standard_error(logged, images)
    return Scores(metrics=metrics, percent=benchmark.percent(logged), standard_error=error)


def _submission(attempt: Path, name: str, asked: Any) -> Path:
    """The file that the task wrote for the server, checked against all questions that were to be asked."""
    (path,) = (attempt / "submissions").iterdir()
    column = submission.SERVED[name].column
    submission.check(path, name, asked.select_columns([column])[column])
    return path


def _line(sample: Logged, metric: str, images: Mapping[int, str]) -> Sample:
    """What is kept of a question that lmms-eval logged."""
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
