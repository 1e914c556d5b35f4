"""Jobs of SLURM, as an array that submitit writes and submits; the queue says what became of them."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finepruner_lmms.errors import Failure, FieldError, nearest, show
from finepruner_lmms.matrix.cluster.job import StudyJob
from finepruner_lmms.matrix.cluster_fields import minutes
from finepruner_lmms.matrix.executors import Job, Submission
from finepruner_lmms.matrix.sections import LaunchSection
from finepruner_lmms.matrix.squeue import SlurmError, ask, last_words, queue

_PROGRAMS = ("sbatch", "srun", "squeue", "scancel")
_MOST_WARNING = 90  # seconds
_TAIL = 16_384  # bytes
_REQUEUES = 1000  # how often a job may go on after its time was over
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
# what sbatch says, and the field that is to be changed
_FAULTS = (
    (re.compile("partition", re.I), ("partition",)),
    (re.compile("account", re.I), ("account",)),
    (re.compile("time", re.I), ("time",)),
    (re.compile("generic resource|gres|gpu|node configuration", re.I), ("gpus_per_node", "extra")),
    (re.compile("option|specification|qos|constraint|feature|memory|cpu", re.I), ("extra",)),
)
# what SLURM and submitit say of every job that ends early
_NOISE = re.compile(r"srun: |submitit (INFO|WARNING|ERROR) |slurmstepd\S*: error: \*\*\*|\s*$")
_ERROR = re.compile(r"[\w.]*(Error|Exception)\b.*: |.*\berror: ", re.I)


class SlurmRefused(Failure, RuntimeError):
    """`sbatch` refused, in a way that no field of ours explains."""


class SlurmExecutor:
    """`launch.executor: slurm`."""

    def check(self, launch: LaunchSection) -> None:
        """What SLURM needs on this machine and in the file is there."""
        if importlib.util.find_spec("submitit") is None:
            fix = "pip install 'finepruner_lmms[slurm]'"
            raise FieldError("launch.executor", "'slurm' needs the package submitit", value="slurm", fix=fix)
        if lacking := [name for name in _PROGRAMS if shutil.which(name) is None]:
            problem = f"'slurm' needs {', '.join(lacking)}, not found on this machine's PATH"
            raise FieldError("launch.executor", problem, value="slurm", fix="run it on a login node of the cluster")
        if launch.partition is not None:
            known = sorted(set((ask("sinfo", "--noheader", "--format", "%R") or "").split()))
            if lacking := [name for name in launch.partition.split(",") if known and name not in known]:
                problem = (
                    f"got {lacking[0]!r}{nearest(lacking[0], known)}; partitions of this cluster: {', '.join(known)}"
                )
                raise FieldError("launch.partition", problem, value=launch.partition)

    def submit(self, submission: Submission) -> list[str]:
        """One array of jobs; `FieldError` or `SlurmRefused` in sbatch's words."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = submitit.SlurmExecutor(folder=submission.folder / "%j", max_num_timeout=_REQUEUES)
        executor.update_parameters(**_parameters(submission))
        job = StudyJob(str(submission.root))
        try:
            with _outside_of_any_job(), contextlib.redirect_stderr(io.StringIO()):  # it prints what it raises
                if submission.jobs == 1:
                    return [str(executor.submit(job).job_id)]
                with executor.batch():
                    started = [executor.submit(job) for _ in range(submission.jobs)]
                return [str(one.job_id) for one in started]
        except (FailedJobError, FailedSubmissionError) as error:
            raise _refusal(last_words(str(error)), submission.launch) from None

    def jobs(self, name: str, ids: Sequence[str]) -> list[Job]:
        """What the queue holds of them."""
        found = queue(ids=ids) if ids else queue(name=name)
        return [
            Job(job.id, "waiting", why=job.reason)
            if job.state in _WAITING
            else Job(job.id, "running", job.node, job.state.lower() if job.state != "RUNNING" else "")
            for job in found
            if not ids or job.id in ids
        ]

    def cancel(self, ids: Sequence[str]) -> None:
        """`scancel`: SIGTERM, and SIGKILL once the cluster's KillWait is over."""
        ask("scancel", *ids)

    def reason(self, folder: Path, job: str) -> str:
        """The last line of a job's log that says something of its own; nothing where the job came to its end."""
        if (folder / job / f"{job}_0_result.pkl").exists():
            return ""
        log = folder / job / f"{job}_0_log.err"
        try:
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - _TAIL))
                lines = file.read().decode("utf-8", errors="replace").split("\n")
        except OSError:
            return f"it left no log in {log.parent}"
        said = [line.strip() for line in lines if not _NOISE.match(line)]
        last = ([line for line in said if _ERROR.match(line)] or said or ["its log says nothing"])[-1]
        return f"{last} ({log})"


def _parameters(submission: Submission) -> dict[str, Any]:
    """What submitit's executor is told."""
    launch = submission.launch
    assert launch.time is not None, "checked before"
    extra: dict[str, Any] = dict(launch.extra)
    limit = minutes(launch.time)
    parameters: dict[str, Any] = {
        "job_name": submission.name,
        "time": limit,
        "nodes": 1,
        "ntasks_per_node": 1,
        "signal_delay_s": min(_MOST_WARNING, 60 * limit // 4),
        "array_parallelism": submission.jobs,
        "wckey": None,
        "setup": list(launch.setup),
        # the one task of a job has all of its cores
        "srun_args": ["--cpu-bind=none"],
    }
    if launch.gpus_per_node:
        extra = {"gres": f"gpu:{launch.gpus_per_node}"} | extra
    if "cpus_per_task" in extra:  # srun does not take it over from sbatch
        parameters["srun_args"].append(f"--cpus-per-task={extra['cpus_per_task']}")
    for name in ("partition", "account"):
        if (value := getattr(launch, name)) is not None:
            parameters[name] = value
    parameters["additional_parameters"] = {name: value for name, value in extra.items() if value is not False}
    return parameters


@contextlib.contextmanager
def _outside_of_any_job() -> Iterator[None]:
    """What a job of SLURM's has in its environment would be taken for wishes by sbatch and by srun in the new job."""
    taken = {key: os.environ.pop(key) for key in list(os.environ) if re.fullmatch(r"SLURM_(?!CONF$).*|SRUN_.*", key)}
    try:
        yield
    finally:
        os.environ.update(taken)


def _refusal(words: str, launch: LaunchSection) -> Failure:
    for pattern, fields in _FAULTS:
        for field in fields:
            value = getattr(launch, field)
            if value and pattern.search(words):
                return FieldError(f"launch.{field}", f"got {show(value)}; sbatch: {words}", value=value)
    return SlurmRefused(f"launch: sbatch refused the jobs: {words}")


__all__ = ["SlurmError", "SlurmExecutor"]
