"""`jobs/<n>/` in an output directory: what was submitted, so that any process on any machine finds its jobs again.

    jobs/<n>/submission.json      who submitted how many jobs, when and to whom, and their ids
    jobs/<n>/…                    what the executor writes; logs above all

The record is written before the jobs are submitted, under a name that only they have, and again with their ids: a
process that dies in between leaves jobs that are found by that name.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from finepruner_lmms.errors import Failure
from finepruner_lmms.files import write_json
from finepruner_lmms.matrix.executors import Job, Submission, find_executor
from finepruner_lmms.matrix.records import Damage, Record, load
from finepruner_lmms.matrix.sections import LaunchSection

_FILE = "submission.json"


class Submitted(Record):
    """`submission.json`."""

    executor: str
    name: str
    jobs: int
    ids: tuple[str, ...] = ()
    submitted: str = ""
    host: str = ""
    cancelled: bool = False
    """Whether `cancel` ended its jobs."""
    over: bool = False
    """Whether none of its jobs is left, so that nobody has to ask again."""


@dataclass
class Live:
    """What of all submissions still waits or runs, and what could not be found out."""

    jobs: list[tuple[Path, Submitted, Job]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    """The names of submissions that were cancelled."""

    @property
    def waiting(self) -> list[Job]:
        """Those without a machine."""
        return [job for _, _, job in self.jobs if job.state == "waiting"]

    @property
    def running(self) -> list[Job]:
        """Those with one."""
        return [job for _, _, job in self.jobs if job.state == "running"]


def submit(root: Path, study: str, launch: LaunchSection, jobs: int) -> tuple[Path, Submitted]:
    """Start `jobs` jobs for the study in `root`. `Failure` if the executor refuses; nothing is left behind then."""
    executor = find_executor(launch.executor)
    folder = _new_folder(root.resolve())
    record = Submitted(
        executor=launch.executor,
        name=f"fp-{study[:40]}-{secrets.token_hex(4)}",
        jobs=jobs,
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
    )
    _write(folder, record)
    command = (sys.executable, "-m", "finepruner_lmms.cli", "work", str(root.resolve()))
    try:
        ids = executor.submit(Submission(record.name, root.resolve(), folder, jobs, launch, command))
    except BaseException:
        _write(folder, record.model_copy(update={"over": True}))
        raise
    record = record.model_copy(update={"ids": tuple(ids)})
    _write(folder, record)
    return folder, record


def live(root: Path, remember: bool = False) -> Live:
    """Which jobs of all submissions wait or run; with `remember`, those of which none does are not asked for again."""
    found = Live()
    for folder, record in _submissions(root, found.problems):
        if record.cancelled:
            found.cancelled.add(record.name)
        if record.over:
            continue
        try:
            jobs = find_executor(record.executor).jobs(record.name, record.ids)
        except Failure as failure:
            found.problems.append(f"{folder.parent.name}/{folder.name}: {failure}")
            continue
        found.jobs += [(folder, record, job) for job in jobs]
        if remember and not jobs and record.ids:
            _write(folder, record.model_copy(update={"over": True}))
        elif remember and jobs and not record.ids:  # whoever submitted them could not write down which they are
            _write(folder, record.model_copy(update={"ids": tuple(job.id for job in jobs)}))
    return found


def cancel(root: Path, which: str = "") -> tuple[list[Job], list[str]]:
    """End the jobs of all submissions, or those that are `which`; returns them, and what could not be done."""
    found = live(root)
    ended: list[Job] = []
    by_folder: dict[Path, tuple[Submitted, list[Job]]] = {}
    for folder, record, job in found.jobs:
        if not which or job.state == which:
            by_folder.setdefault(folder, (record, []))[1].append(job)
    for folder, (record, jobs) in by_folder.items():
        try:
            if not which:  # first, so that a `run` that looks on does not take it for an accident
                _write(folder, record.model_copy(update={"cancelled": True}))
            find_executor(record.executor).cancel([job.id for job in jobs])
            ended += jobs
        except Failure as failure:
            found.problems.append(f"{folder.parent.name}/{folder.name}: {failure}")
    return ended, found.problems


def describe(root: Path) -> list[str]:
    """A line for each job that waits or runs, for `status`."""
    if not (root / "jobs").is_dir():
        return []
    found = live(root)
    if not found.jobs and not found.problems:
        return []
    lines = [f"jobs: {len(found.running)} running, {len(found.waiting)} waiting"]
    for folder, record, job in found.jobs:
        about = ", ".join(filter(None, [f"on {job.where}" if job.where else "", job.why]))
        lines.append(f"  {job.state:8} {record.executor} {job.id}{f': {about}' if about else ''} (jobs/{folder.name})")
    return lines + [f"  unknown  {problem}" for problem in found.problems]


def why(folder: Path, record: Submitted, job: str) -> str:
    """The last that is known of a job that is over."""
    return find_executor(record.executor).reason(folder, job)


def _submissions(root: Path, problems: list[str]) -> Iterator[tuple[Path, Submitted]]:
    folders = [folder for folder in root.glob("jobs/*") if folder.name.isdecimal()]
    for folder in sorted(folders, key=lambda folder: int(folder.name)):
        try:
            record = load(Submitted, folder / _FILE)
        except Damage as damage:
            problems.append(f"jobs/{folder.name}: {damage}")
            continue
        if record is not None:
            yield folder, record


def _new_folder(root: Path) -> Path:
    parent = root / "jobs"
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(folder.name) for folder in parent.iterdir() if folder.name.isdecimal()), default=0)
    while True:
        folder = parent / str(number)
        try:
            folder.mkdir()
        except FileExistsError:  # another `run` took it meanwhile
            number += 1
        else:
            return folder


def _write(folder: Path, record: Submitted) -> None:
    write_json(folder / _FILE, record.model_dump(mode="json"))
