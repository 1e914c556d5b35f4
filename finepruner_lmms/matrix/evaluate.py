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
from lmms_eval.tasks import TaskManager, get_task_dict
from loguru import logger

from finepruner_lmms.benchmarks import BENCHMARKS, Benchmark, image_names, submission
from finepruner_lmms.benchmarks.limits import document_numbers
from finepruner_lmms.benchmarks.measure import benchmark_of, measure, pictures_of
from finepruner_lmms.benchmarks.record import Sample as Logged
from finepruner_lmms.data.task_folders import folder as task_folder
from finepruner_lmms.engine.cost import PrefillCost
from finepruner_lmms.errors import FieldError, first_line
from finepruner_lmms.files import load_object, read_json_lines
from finepruner_lmms.lmms.identity import cell_identity
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.lmms.journal import Journal, read_journal, set_aside
from finepruner_lmms.lmms.names import model_name
from finepruner_lmms.lmms.plain_run import Answerer
from finepruner_lmms.lmms.pruned_model import PrunedModel
from finepruner_lmms.lmms.recorder import Recorder
from finepruner_lmms.lmms.together import Companion, Company
from finepruner_lmms.matrix.measures import name_of_task
from finepruner_lmms.matrix.plan import Cell, Plan, PlannedCell
from finepruner_lmms.matrix.records import Measure, Outcome, Sample, Scores
from finepruner_lmms.matrix.speed import measured


class InvalidResult(RuntimeError):
    """lmms-eval came back, but not with what a finished cell needs."""


def task_manager(plan: Plan) -> TaskManager:
    """The tasks of a plan, and none besides."""
    known = any(not cell.definition for cell in plan.cells)
    where = [str(task_folder(plan.data, plan.submission, plan.limit, plan.protocol))] if known else []
    where += dict.fromkeys(str(Path(cell.definition).parent) for cell in plan.cells if cell.definition)
    return TaskManager(include_path=where, include_defaults=False, model_name=model_name(plan.model.pretrained))


def evaluate_cell(
    lm: PrunedModel, manager: TaskManager, cell: Cell, attempt: Path, journal: Path, company: Company | None = None
) -> tuple[Outcome, list[Sample]] | None:
    """Result and samples of one cell; None in all processes but the first.

    Answers go to the folder `journal` as they come, and are found again by a later attempt, so that one that is cut off
    costs only the batch it was at. What is asked is answered for the other cells of the `company` as well.
    """
    lm.configure(**_method(cell))
    answers = lm.answer_identity()
    _check_identity(answers, cell)
    lm.seat = (company or Company({})).seat(cell.id, Journal(journal, answers.text(), lm.origin))
    lm.meter.start()
    task = name_of_task(cell.task)
    try:
        out = simple_evaluate(
            model=lm,
            model_args=lm.arguments.canonical(),
            tasks=[task],
            task_manager=manager,
            batch_size=lm.batch_size,
            log_samples=True,
            bootstrap_iters=0,
            limit=cell.limit if cell.definition else None,  # the ten choose by themselves
            datetime_str=datetime.now(UTC).strftime("%Y%m%d_%H%M%S"),
            # the ten read no image to score: with them, each would be decoded a second time, in every process
            cli_args=SimpleNamespace(output_path=str(attempt), process_with_media=bool(cell.definition)),
        )
    finally:
        lm.seat = None
    if lm.rank != 0:
        return None
    if out is None:
        raise InvalidResult("lmms-eval returned no results")
    asked = lm.task_dict[task][_split(out, task)]
    return _outcome(
        cell, out, out["samples"][task], asked, attempt, journal, Answerer(identity=answers, sizes=lm.decoder_sizes)
    )


def collect_cell(manager: TaskManager, cell: Cell, attempt: Path, journal: Path) -> tuple[Outcome, list[Sample]]:
    """What `evaluate_cell` gives, of a plain `lmms_eval --log_samples` run that has written to the folder `attempt`.

    Its answers are in `journal` (`lmms.plain_run.VARIABLE`). `InvalidResult` where it has not ended well, which
    lmms-eval's exit status does not say.
    """
    task = name_of_task(cell.task)
    try:
        answerer = Answerer.read(journal)
        out = load_object(_only(attempt, "*_results.json"))
        logged = read_json_lines(_only(attempt, f"*_samples_{task}.jsonl"))
        split = _split(out, task)
    except (FieldError, ValueError, KeyError, TypeError) as error:
        raise InvalidResult(f"the run left no whole result: {first_line(error)}") from error
    _check_identity(answerer.identity, cell)
    asking = get_task_dict([task], manager)[task]
    asked = asking.dataset[split]
    documents = asking.eval_docs_no_media  # what scoring reads
    samples = [
        # lmms-eval flattens the lists of one, and writes targets as texts
        sample
        | {"filtered_resps": [sample["filtered_resps"]], "target": asking.doc_to_target(documents[sample["doc_id"]])}
        for sample in logged
    ]
    return _outcome(cell, out, samples, asked, attempt, journal, answerer)


def _split(out: Mapping[str, Any], task: str) -> str:
    """The split whose questions were asked."""
    configuration = out["configs"][task]
    return str(configuration.get("test_split") or configuration["validation_split"])


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise InvalidResult(f"the run wrote {len(found)} files {pattern!r}, not one")
    return found[0]


def _outcome(
    cell: Cell,
    out: Mapping[str, Any],
    samples: list[Logged],
    asked: Any,
    attempt: Path,
    journal: Path,
    answerer: Answerer,
) -> tuple[Outcome, list[Sample]]:
    """Checked: what lmms-eval's results `out` and `samples` say, and what the journal says that the answers took.

    `asked` are the task's documents.
    """
    benchmark, task = BENCHMARKS.get(cell.task), name_of_task(cell.task)
    logged = sorted(samples, key=lambda sample: sample["doc_id"])
    # of those that the task's limit has left
    expected = out["n-samples"][task]["original" if benchmark is not None else "effective"]
    if cell.limit is not None and expected > cell.limit:
        raise InvalidResult(f"{expected} questions were asked, but the limit is {cell.limit}")
    documents = [sample["doc_id"] for sample in logged]
    if documents != sorted(set(documents)) or len(documents) != expected:
        raise InvalidResult(f"{len(set(documents))} different questions answered, {expected} expected")
    written = read_journal(journal, answerer.identity.text())
    if len(written.answers) > expected:
        set_aside(journal)
    if len(written.answers) != expected:
        raise InvalidResult(f"{journal} holds {len(written.answers)} answers, {expected} expected")
    numbers = document_numbers(asked)  # in the whole data set, so that studies with other limits can be joined
    logged = [sample | {"doc_id": numbers[sample["doc_id"]]} for sample in logged]
    names = pictures_of(asked) if benchmark is None else image_names(asked, benchmark.image_column)
    images = dict(zip(numbers, names, strict=True))
    scores, submitted = None, None
    metric = "" if benchmark is None else benchmark.metric.partition(",")[0]
    if benchmark is None:
        scores = _measured(cell, out["results"][task], out["higher_is_better"][task], logged, images)
        assert scores.measure is not None
        metric = scores.measure.metric.partition(",")[0]
    elif cell.submission:
        metric, submitted = "submission", _submission(attempt, benchmark.name, asked)
    elif not benchmark.judged:
        scores = _scores(benchmark, out["results"][task], logged, images)
    cost = PrefillCost.of(answerer.sizes, written.lengths)
    outcome = Outcome(
        answered=len(logged),
        expected=expected,
        cost=None if cost is None else asdict(cost),
        speed=measured(written, cell.identity.dtype),
        scores=scores,
        submission=submitted,
        traces=written.traces,
    )
    kept = (lambda sample: sample.get(metric)) if benchmark is None or cell.submission else benchmark.kept
    return outcome, [_line(sample, kept(sample), images) for sample in logged]


def gather(lm: PrunedModel, cells: Sequence[PlannedCell], monitor: bool) -> Company:
    """The cells of a task as a company, but for those that cannot be computed: each says why when it is evaluated."""
    members: dict[str, Companion] = {}
    for cell in cells if len(cells) > 1 else ():
        try:
            _, pruner = lm.method(**_method(cell))
            answers = lm.answer_identity(pruner)
            _check_identity(answers, cell)
        except (ValueError, TypeError, InvalidResult) as error:
            logger.warning(f"{cell.label} goes on alone: {first_line(error)}")
            continue
        journal = Journal(cell.path / "cache", answers.text(), lm.origin)
        members[cell.id] = Companion(cell.label, pruner, journal, lm.monitor_in(cell.path if monitor else None))
    return Company(members)


def recorder_of(plan: Plan, cell: Cell) -> Recorder:
    """Of which questions of a cell the traces are kept: what lmms-eval limits itself is among the first."""
    return Recorder(plan.record, cell.limit if cell.definition else None)


def _method(cell: Cell) -> dict[str, Any]:
    """A cell's method as the arguments of `PrunedModel.configure`."""
    return {"method": cell.method.method, "budget": cell.method.budget, **cell.method.parameters}


def _check_identity(answers: Identity, cell: Cell) -> None:
    """`InvalidResult` if these are answers to something else than was planned."""
    now = cell_identity(
        answers,
        cell.task,
        cell.limit,
        cell.submission,
        cell.identity.data,
        definition=cell.definition,
        protocol=cell.protocol,
    )
    if changes := now.changes_since(cell.identity):
        raise InvalidResult(f"since this was planned, {'; '.join(changes)}; `run` again")


def _scores(
    benchmark: Benchmark, results: Mapping[str, Any], logged: list[Logged], images: Mapping[int, str]
) -> Scores:
    """lmms-eval's metrics, checked against what the samples give, and the standard error."""
    # lmms-eval's own bootstrap is drawn in some ways of running only; ours, over images, is the standard error
    metrics = {k: float(v) for k, v in results.items() if _numeric(v) and "_stderr," not in k}
    if benchmark.metric not in metrics:
        raise InvalidResult(f"the metric {benchmark.metric!r} is {results.get(benchmark.metric)!r}, not a number")
    recomputed, value = benchmark.value(logged), metrics[benchmark.metric]
    if not math.isclose(recomputed, value, rel_tol=1e-6, abs_tol=1e-9):
        raise InvalidResult(f"{benchmark.metric} is {value!r}, but its samples give {recomputed!r}")
    error = benchmark.standard_error(logged, images)
    return Scores(metrics=metrics, percent=benchmark.percent(logged), standard_error=error)


def _measured(
    cell: Cell,
    results: Mapping[str, Any],
    directions: Mapping[str, Any],
    logged: list[Logged],
    images: Mapping[int, str],
) -> Scores:
    """The metrics of a task that is none of the ten, with what is known of them; a standard error where it has one."""
    metrics = {k: float(v) for k, v in results.items() if _numeric(v) and "_stderr," not in k}
    found = measure(metrics, directions, logged)
    if found is None:
        given = ", ".join(directions) or "none"
        raise InvalidResult(
            f"none of {cell.task}'s metrics ({given}) is a number; lmms-eval left it to a server or judge"
        )
    about, each = found
    benchmark, percent, error = benchmark_of(cell.task, about), None, None
    if about.scale is not None:
        percent = 100 * metrics[about.metric] / about.scale
    if about.per_sample:
        error = benchmark.standard_error(logged, images)
    return Scores(
        metrics=metrics, percent=percent, standard_error=error, measure=Measure(**asdict(about), directions=each)
    )


def _submission(attempt: Path, name: str, asked: Any) -> Path:
    """The file that the task wrote for the server, checked against all questions that were to be asked."""
    path = _only(attempt, "submissions/*")
    column = submission.SERVED[name].column
    submission.check(path, name, asked.select_columns([column])[column])
    return path


def _line(sample: Logged, score: Any, images: Mapping[int, str]) -> Sample:
    """What is kept of a question that lmms-eval logged."""
    line: Sample = {
        "doc_id": sample["doc_id"],
        "image": images[sample["doc_id"]],
        "target": json.loads(json.dumps(sample["target"], default=_plain)),
        "answer": sample["filtered_resps"][0],
        "score": json.loads(json.dumps(score, default=_plain)),
    }
    asked = sample["input"] if "input" in sample else next(iter(sample.get("arguments") or ()), None)  # in its files
    if isinstance(asked, str):
        line["question"] = asked
    return line


def _plain(value: Any) -> Any:
    """What JSON does not know: NumPy's numbers, or what a task has made."""
    return float(value) if _numeric(value) else str(value)


def _numeric(value: Any) -> bool:
    try:
        return not isinstance(value, str | bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
