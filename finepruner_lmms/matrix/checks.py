"""What a matrix file whose fields have the right types may still get wrong, apart from its methods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.benchmarks.submission import SERVED, TEST
from finepruner_lmms.data.lmms_tasks import all_tasks
from finepruner_lmms.demo.root import MINIATURES
from finepruner_lmms.errors import FieldError, show
from finepruner_lmms.judge.settings import OPTIONAL, JudgeServer
from finepruner_lmms.matrix.cluster_fields import FOR_JOBS, LOCAL, SLURM
from finepruner_lmms.matrix.executors import find_executor
from finepruner_lmms.matrix.sections import MatrixFile
from finepruner_lmms.matrix.task_names import no_task

_BUILT_IN = ("hub", *MINIATURES)
_LIMITS = {
    "mme": (2, "mme asks two questions per image, so give at least 2"),
    "mmbench": (4, "mmbench asks every question in up to four orders, so give at least 4"),
    "mmbench_cn": (4, "mmbench_cn asks every question in up to four orders, so give at least 4"),
}


def check_settings(file: MatrixFile) -> Iterator[FieldError]:
    """Every mistake in tasks, limit, data, submission, judge and model."""
    yield from _check_tasks(file)
    yield from _check_limit(file)
    yield from _check_data(file)
    yield from _check_judge(file)
    if isinstance(file.judge, JudgeServer):
        yield from _check_key(file.judge)
    yield from _check_model(file)
    yield from _check_executor(file)


def missing_data(file: MatrixFile) -> list[str]:
    """What of the data is not there; the hub is asked when something is run."""
    from finepruner_lmms.data.ready import missing_data

    if file.data == "hub" or not (file.data in MINIATURES or _is_folder(file.data)):
        return []
    known = [task for task in file.tasks if task in BENCHMARKS and not (file.submission and task in SERVED)]
    return [str(problem) for problem in missing_data(file.data, known)]


def _check_tasks(file: MatrixFile) -> Iterator[FieldError]:
    if file.tasks_dir is not None and not _is_folder(file.tasks_dir):
        problem = f"{show(file.tasks_dir)} is no folder; expected one with YAML files of lmms-eval tasks"
        yield FieldError("tasks_dir", problem, value=file.tasks_dir)
        return
    others = all_tasks(file.tasks_dir) if set(file.tasks) - set(BENCHMARKS) else {}
    for number, task in enumerate(file.tasks):
        field = f"tasks.{number}"
        if task not in BENCHMARKS and (problem := no_task(task, others)):
            yield FieldError(field, problem, value=task)
        elif task in file.tasks[:number]:
            yield FieldError(field, f"{task!r} is given twice", value=task)


def _check_limit(file: MatrixFile) -> Iterator[FieldError]:
    if file.limit is None:
        return
    for task in dict.fromkeys(file.tasks):
        unit, why = _LIMITS.get(task, (1, ""))
        if file.limit < unit:
            yield FieldError("limit", f"got {file.limit}; {why}", value=file.limit)
    if file.submission:
        yield FieldError("limit", f"got {file.limit}; a submission needs every question, so leave it out")


def _check_data(file: MatrixFile) -> Iterator[FieldError]:
    own = file.data not in _BUILT_IN
    if own and not _is_folder(file.data):
        yield FieldError("data", f"{show(file.data)} is neither 'hub', 'demo' nor an existing folder", value=file.data)
    if not file.submission:
        return
    served = [task for task in file.tasks if task in SERVED]
    if not served:
        yield FieldError("submission", f"none of the tasks has a server; these have: {', '.join(SERVED)}", value=True)
    for task in served if own else []:
        if not _is_folder(f"{file.data}/{task}/{TEST}"):
            what = f"{task}/{TEST}, whose questions a submission answers"
            yield FieldError("data", f"{show(file.data)} has no folder {what}", value=file.data)


def _check_judge(file: MatrixFile) -> Iterator[FieldError]:
    judged = [task for task in file.tasks if task in BENCHMARKS and BENCHMARKS[task].judged]
    if judged and file.judge is None:
        yield FieldError(
            f"tasks.{file.tasks.index(judged[0])}",
            f"{judged[0]!r} needs a judge; add `judge: {{url: ..., model: ...}}` (an OpenAI-compatible server), "
            "`judge: later` (answers now, `judge OUTPUT` afterwards), or `judge: exact` (string match, not comparable "
            "with published scores)",
            value=judged[0],
        )
    also = file.judge.also if isinstance(file.judge, JudgeServer) else frozenset()
    if also and not also & set(file.tasks):
        known = " or ".join(sorted(also))
        yield FieldError("judge.mmbench", f"got true, but none of the tasks is {known}; leave it out", value=True)
    elif also and file.submission:
        why = "with `submission: true` a server scores MMBench; leave one of them out"
        yield FieldError("judge.mmbench", f"got true, but {why}", value=True)
    elif file.judge is not None and not judged and not also:
        could = OPTIONAL & set(file.tasks) and ", or give a server with `mmbench: true`, which judges MMBench"
        yield FieldError("judge", f"none of the tasks is judged; leave it out{could or ''}")


def _check_key(judge: JudgeServer) -> Iterator[FieldError]:
    try:
        problem = judge.key_problem("key_env" in judge.model_fields_set)
    except FieldError as error:
        problem = str(error)
    if problem:
        yield FieldError("judge.key_env", problem)


def _check_model(file: MatrixFile) -> Iterator[FieldError]:
    from finepruner_lmms.lmms.model_args import ModelArguments

    try:
        ModelArguments.parse(file.model.model_dump(exclude_none=True))
    except FieldError as error:
        yield error.under("model")
    if file.model.device_map is not None and file.launch.processes != 1:
        problem = f"got {file.launch.processes!r}, but with model.device_map one process takes all GPUs"
        yield FieldError("launch.processes", problem, value=file.launch.processes, fix="write `processes: 1`")


def _check_executor(file: MatrixFile) -> Iterator[FieldError]:
    launch = file.launch
    given = sorted(launch.model_fields_set & set(FOR_JOBS))
    if launch.executor == LOCAL and given:
        field = f"launch.{given[0]}"
        yield FieldError(field, "is for jobs", fix="add `executor: slurm` (docs/cluster.md), or leave it out")
    elif launch.executor == SLURM and launch.time is None:
        fix = "say how long a job may run, such as time: '04:00:00'"
        yield FieldError("launch.time", "is missing, and SLURM's jobs need it", fix=fix)
    elif launch.executor not in (LOCAL, SLURM):
        try:
            find_executor(launch.executor)
        except FieldError as error:
            yield error


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # a name longer than a file system takes
        return False
