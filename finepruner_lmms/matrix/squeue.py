"""What SLURM's queue says: which of its jobs wait or run, and whether the job behind a claim still lives.

Only `squeue` and `scontrol` are asked; `sacct` needs an accounting database, which not every cluster has.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from finepruner_lmms.errors import Failure

_PATIENCE = 30  # seconds for one answer
_FRESH = 5.0  # seconds for which an answer about a job is believed
_FIELDS = {"JobArrayID": 48, "RestartCnt": 12, "State": 24, "NodeList": 64, "Reason": 64}  # columns and their widths


class SlurmError(Failure, RuntimeError):
    """SLURM did not answer, or refused; nothing is known about its jobs."""

    exit_status = 1


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue. `id` is `8` or, of an array, `8_1`; `state` is SLURM's, such as `PENDING`."""

    id: str
    restarts: int
    state: str
    node: str
    reason: str


def job_is_alive(job: str) -> bool | None:
    """Whether the job that `claims.this_job` once named still waits or runs; None where that cannot be told from here.

    It cannot on a machine without `squeue`, of another cluster, or while SLURM does not answer.
    """
    return _is_alive(job, int(time.monotonic() / _FRESH))


@functools.lru_cache(maxsize=256)
def _is_alive(job: str, _period: int) -> bool | None:
    kind, _, rest = job.partition(":")
    cluster, _, rest = rest.partition(":")
    number, _, restarts = rest.partition(":")
    if kind != "slurm" or not number or not restarts.isdecimal() or shutil.which("squeue") is None:
        return None
    try:
        if cluster and cluster != cluster_name():
            return None
        found = queue(ids=[number])
    except SlurmError:
        return None
    return any(other.id == number and other.restarts <= int(restarts) for other in found)


def queue(ids: Sequence[str] = (), name: str = "") -> list[QueuedJob]:
    """Those of the jobs `ids`, or of our jobs called `name`, that wait, run or are being ended."""
    chosen = ["--jobs", ",".join(ids)] if ids else ["--user", str(os.getuid()), "--name", name]
    columns = ",".join(f"{field}:{width}" for field, width in _FIELDS.items())
    answer = ask("squeue", "--noheader", "--array", *chosen, "--Format", columns)
    if answer is None:
        return []
    jobs = []
    for line in answer.splitlines():
        values, start = [], 0
        for width in _FIELDS.values():
            values.append(line[start : start + width].strip())
            start += width
        job, restarts, state, node, reason = values
        if job:
            jobs.append(QueuedJob(job, int(restarts) if restarts.isdecimal() else 0, state, node, reason))
    return jobs


@functools.cache
def cluster_name() -> str:
    """The name of this machine's cluster, or nothing where SLURM does not say."""
    for line in (ask("scontrol", "show", "config") or "").splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "ClusterName":
            return value.strip()
    return ""


def ask(*command: str) -> str | None:
    """What one of SLURM's commands prints; None where it knows no such job. `SlurmError` in its own words otherwise."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, errors="replace", check=False)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {_PATIENCE} s") from None
    if done.returncode == 0:
        return done.stdout
    if "Invalid job id" in done.stderr:
        return None
    raise SlurmError(f"{command[0]}: {last_words(done.stderr) or f'exit status {done.returncode}'}")


def last_words(text: str) -> str:
    """The last line of what one of SLURM's commands complains, without the command's name."""
    lines = [line.strip() for line in text.split("\n")]
    lines = [line for line in lines if line and not line.startswith("Try ")]
    return lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else ""
