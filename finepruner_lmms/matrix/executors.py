"""Executors: who does the work of a study where this process does not, and how an installed package adds one.

An executor starts jobs somewhere, says which of them still wait or run, and ends them. What a job does is not its
business: it runs one command, which takes cells that nobody else works on until none is left. docs/cluster.md has the
contract and an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from finepruner_lmms.errors import FieldError, first_line, nearest, show
from finepruner_lmms.matrix.cluster_fields import LOCAL, SLURM
from finepruner_lmms.matrix.sections import LaunchSection

GROUP = "finepruner_lmms.executors"
"""The entry point group in which a package names a class without arguments that is an `Executor`."""
_BUILT_IN = EntryPoint(SLURM, "finepruner_lmms.matrix.cluster.slurm:SlurmExecutor", GROUP)


@dataclass(frozen=True)
class Job:
    """A job that is not over. `where` is its machine once it has one, `why` what it waits for."""

    id: str
    state: Literal["waiting", "running"]
    where: str = ""
    why: str = ""


@dataclass(frozen=True)
class Submission:
    """Jobs to start together.

    `name` is unique and needs no quoting; `root` is the output directory, `folder` an empty one inside of it for
    whatever the executor writes (logs above all); both are absolute and have to be the same directory on every machine.
    Each of the `jobs` jobs runs `command`. SIGTERM ends it cleanly, within some 10 seconds.
    """

    name: str
    root: Path
    folder: Path
    jobs: int
    launch: LaunchSection
    command: tuple[str, ...]


@runtime_checkable
class Executor(Protocol):
    """Starts, lists and ends jobs. One object serves one command; nothing is kept in it between two."""

    def check(self, launch: LaunchSection) -> None:
        """Raise `FieldError` for what cannot work, before anything is written: `launch.time`, a missing program."""

    def submit(self, submission: Submission) -> list[str]:
        """Start the jobs and return their ids, each of its own and of printable characters. An `errors.Failure` if not.

        Returns at once; jobs may wait for as long as they like.
        """

    def jobs(self, name: str, ids: Sequence[str]) -> list[Job]:
        """Those of a submission's jobs that wait or run. A job that is not listed is over, however it ended.

        `ids` are those that `submit` returned; none where its process died before it could write them down, so that
        only `name` is known. Raise an `errors.Failure` where nobody answers: an empty list means that all are over.
        """

    def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs, those that wait and those that run."""

    def reason(self, folder: Path, job: str) -> str:
        """The last that is known of a job that is over, in one line, as from its log; empty where nothing is."""


def executors() -> list[EntryPoint]:
    """Ours, and those of installed packages, in a fixed order."""
    found = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    return [_BUILT_IN, *(point for point in found if point.name not in (LOCAL, _BUILT_IN.name))]


def find_executor(name: str) -> Executor:
    """The executor of this name; `FieldError` where there is none, or where it cannot be loaded."""
    known = {point.name: point for point in executors()}
    if name not in known:
        names = [LOCAL, *known]
        problem = f"got {show(name)}{nearest(name, names)}; known: {', '.join(names)}"
        raise FieldError("launch.executor", problem, value=name)
    point = known[name]
    try:
        executor = point.load()()
    except FieldError:
        raise
    except Exception as error:
        owner = point.dist.name if point.dist is not None else "finepruner_lmms"
        problem = f"{name!r} ({point.value}) of {owner!r} cannot be loaded: {type(error).__name__}: {first_line(error)}"
        raise FieldError("launch.executor", problem, value=name) from error
    if not isinstance(executor, Executor):
        lacking = [part for part in ("check", "submit", "jobs", "cancel", "reason") if not hasattr(executor, part)]
        raise FieldError("launch.executor", f"{name!r} ({point.value}) is no executor: it lacks {', '.join(lacking)}")
    return executor
