"""The store: one directory per cell, and what is true about it.

    runs/<name>/
      matrix.json                   rows and cells of the latest `run`
      launches/<n>/                 plan.json, events.jsonl and log.txt of one worker
      cells/<slug>-<id>/
        status.json                 the attempt that is running or ran last: host, pid, start, launch
        attempt-<n>/                files that lmms-eval writes by itself
        cache/                      answers of an unfinished attempt
        answers.jsonl, answered.json   where a judge scores: what samples and result are made of
        samples.jsonl               one line per question: target, answer, score, image
        submission.json, .xlsx      for the server, where only that scores
        result.json                 written last, atomically; a cell is done if and only if this is valid
        error.json                  why the last attempt failed
      judgements.jsonl              what a judge said, by question, answer and judge, for all cells

Nothing is ever deleted but the cache of a finished cell; cells of other settings or code stay where they are.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.errors import Failure
from finepruner_lmms.files import (
    Locked,
    LockUnsupported,
    is_locked,
    lock,
    read_json_lines,
    read_object,
    write_bytes,
    write_json,
    write_json_lines,
)
from finepruner_lmms.lmms.identity_record import Identity
from finepruner_lmms.matrix.plan import Cell, Study
from finepruner_lmms.matrix.records import CellError, Damage, Result, Sample, Status, Submission, load, parse

SCHEMA = 2
Json = dict[str, Any]


class StoreError(Failure, ValueError):
    """An output directory that cannot be used as asked."""


@dataclass(frozen=True)
class State:
    """`name`: done, waiting (for the judge), failed, running or missing; `reason` says why, where there is a why."""

    name: str
    reason: str = ""
    result: Result | None = None


class Store:
    """An output directory."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    # -- the matrix -----------------------------------------------------------------------------------------------

    def save_study(self, study: Study) -> None:
        """Remember what `status` and `table` are to show."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / "matrix.json", study.model_dump(mode="json"))

    def study(self) -> Study:
        """What `save_study` was given; `StoreError` where nothing was run or the file holds something else."""
        if not self.root.is_dir():
            raise StoreError(f"output: {str(self.root)!r} is not a folder; `run` makes one under runs/<name>")
        try:
            study = load(Study, self.root / "matrix.json")
        except Damage as damage:
            raise StoreError(
                f"output: {str(self.root)!r}: {damage}; the file is damaged or of another version: `run` with the same "
                "matrix file and --output writes it again, and no result is lost"
            ) from None
        if study is None:
            raise StoreError(f"output: {str(self.root)!r} holds no matrix.json, so nothing was run into it")
        return study

    # -- cells ----------------------------------------------------------------------------------------------------

    def cell_dir(self, cell: Cell) -> Path:
        """The directory of a cell: that with its id, since the same cell may have been named in other words before."""
        named = self.root / "cells" / cell.folder
        if named.is_dir():
            return named
        return next(iter(self.root.glob(f"cells/*-{cell.id}")), named)

    def cell_dirs(self, cells: Iterable[Cell]) -> list[Path]:
        """The directory of each cell, as `cell_dir`: what is there is looked through once for all."""
        folder = self.root / "cells"
        there = sorted(entry.name for entry in os.scandir(folder)) if folder.is_dir() else []
        by_id = {name.rpartition("-")[2]: name for name in reversed(there)}
        names = set(there)
        return [folder / (c.folder if c.folder in names else by_id.get(c.id, c.folder)) for c in cells]

    def explain_missing(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Why the stored result of the same settings does not count for a cell, by the cell's id.

        Of several stored results the one with the fewest differences is named; cells of new settings are left out.
        """
        stored = [found for file in sorted(self.root.glob("cells/*/result.json")) if (found := _stored(file))]
        alike: dict[tuple[str, str], list[tuple[Identity, str]]] = {}
        for folder, task, other in stored:
            alike.setdefault((task, other.settings), []).append((other, folder))
        reasons = {}
        for cell in cells:
            planned = cell.identity
            if near := alike.get((cell.task, planned.settings)):
                explained = [(planned.changes_since(other), folder) for other, folder in near]
                changes, folder = min(explained, key=lambda pair: len(pair[0]))
                if changes:
                    reasons[cell.id] = f"{'; '.join(changes)} (since {folder})"
        return reasons

    def state(self, cell: Cell, live: bool) -> State:
        """What is true about a cell; `live` says whether a run is working in this directory now."""
        return _state(self.cell_dir(cell), cell, live)

    def states(self, cells: Sequence[Cell]) -> list[State]:
        """The state of each cell."""
        live, folders = self.is_live(), self.cell_dirs(cells)
        return [_state(folder, cell, live) for folder, cell in zip(folders, cells, strict=True)]

    def others(self, cells: Iterable[Cell]) -> int:
        """How many finished cells there are that do not belong to the matrix: other settings, code or checkpoint."""
        mine = set(self.cell_dirs(cells))
        return sum(1 for result in self.root.glob("cells/*/result.json") if result.parent not in mine)

    def new_launch(self) -> Path:
        """A fresh directory for one worker."""
        folder = self.root / "launches"
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(d.name) for d in folder.iterdir() if d.name.isdecimal()), default=0)
        (folder / str(number)).mkdir()
        return folder / str(number)

    # -- one run at a time ----------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory; `StoreError` if another run does. The system lets go when the process ends."""
        with ExitStack() as held:
            try:
                held.enter_context(lock(self._lock))
            except Locked as error:
                raise StoreError(f"output: {str(self.root)!r} is in use by {error.holder}") from None
            except LockUnsupported as error:
                raise StoreError(f"output: {error}; give --output a folder on a disk that can") from None
            yield

    def is_live(self) -> bool:
        """Whether a run holds this directory now."""
        return is_locked(self._lock)

    @property
    def _lock(self) -> Path:
        return self.root / ".lock"


def _state(folder: Path, cell: Cell, live: bool) -> State:
    """What is true about a cell whose directory is `folder`."""
    if not folder.is_dir():
        return State("missing")
    problem, result = check_result(folder, cell)
    if result is not None:
        return State("done", result=result)
    if (found := find_answers(folder, cell)) is not None:
        return State("waiting", problem or f"{found[0]['answered']} questions answered, waiting for the judge")
    try:
        status, error = load(Status, folder / "status.json"), load(CellError, folder / "error.json")
    except Damage as damage:
        return State("failed", str(damage))
    if live and status is not None and status.state == "running":
        return State("running", f"attempt {status.attempt} on {status.host}, process {status.pid}")
    if error is not None:
        return State("failed", f"{error.error}: {error.message}")
    if problem:
        return State("failed", problem)
    return State("missing", "interrupted" if status is not None else "")


def _stored(file: Path) -> tuple[str, str, Identity] | None:
    """Folder, task and identity of a result, if it has them."""
    try:
        result = load(Result, file)
    except Damage:
        return None
    if result is None or result.spec.identity is None:
        return None
    return file.parent.name, result.spec.task, result.spec.identity


def check_result(folder: Path, cell: Cell) -> tuple[str, Result | None]:
    """The result if it is valid; otherwise what is wrong with it, or "" where there is none.

    Valid: of this cell, its metric a number (or its submission there), as many questions answered as the task has, the
    samples unchanged, and scored by whom the cell names: its `judge`, or any if that is None; nobody if not `judged`.
    """
    try:
        result = load(Result, folder / "result.json")
    except Damage as damage:
        return str(damage), None
    if result is None:
        return "", None
    if flaw := _flaw(folder, cell, result):
        return flaw, None
    if waits := _waits_for(cell, result):
        return f"{result.answered} questions answered, waiting {waits}", None
    return "", result


def _flaw(folder: Path, cell: Cell, result: Result) -> str:
    """What is wrong with a result, whoever scored it, or ""."""
    if result.schema_version != SCHEMA or result.id != cell.id:
        return f"result.json is of {result.id!r}, schema {result.schema_version!r}"
    metric, written = BENCHMARKS[cell.task].metric, result.submission
    numbers = {metric: result.metrics.get(metric), "percent": result.percent}  # the error may be None: not measured
    for name, value in () if written else numbers.items():
        if value is None:
            return f"result.json: {name} is None, not a number"
    if written and not _is_file_of(folder / written.file, written.bytes):
        return f"{written.file} is missing or was changed after the result was written"
    if result.answered != result.expected or not result.expected:
        return f"result.json: {result.answered} of {result.expected} questions answered"
    if not _is_file_of(folder / "samples.jsonl", result.samples_bytes):
        return "samples.jsonl is missing or was changed after the result was written"
    return ""


def _waits_for(cell: Cell, result: Result) -> str:
    """Whom a result must be scored anew by, or "" if that is who scored it."""
    judged = None if result.judge is None else result.judge.name
    before = "" if judged is None else f"; {judged!r} judged before"
    if not cell.judged:
        return before and f"to be scored without a judge{before}"
    if judged is None:
        return "for the judge"
    return "" if cell.judge in (None, judged) else f"for the judge {cell.judge!r}{before}"


def _is_file_of(path: Path, size: int | None) -> bool:
    return path.is_file() and path.stat().st_size == size


def publish_submission(folder: Path, source: Path) -> Submission:
    """Put a file for a server beside where the result will be; what the result says of it."""
    content = source.read_bytes()
    target = folder / f"submission{source.suffix}"
    write_bytes(target, content)
    return Submission(file=target.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def begin_attempt(folder: Path, launch: str) -> Path:
    """Claim a cell for an attempt: writes its status, puts an earlier failure away, returns `attempt-<n>`."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(d.name[8:]) for d in folder.glob("attempt-*") if d.name[8:].isdecimal()), default=0)
    attempt = folder / f"attempt-{number}"
    attempt.mkdir()
    written = ("result.json", "samples.jsonl", "submission.json", "submission.xlsx", "answered.json", "answers.jsonl")
    for name in ("error.json", *written):
        if (folder / name).exists():  # of the attempt before; kept as evidence
            (folder / name).replace(attempt.with_name(f"attempt-{max(number - 1, 1)}") / name)
    status = {"state": "running", "attempt": number, "host": socket.gethostname(), "pid": os.getpid(), "launch": launch}
    write_json(folder / "status.json", status)
    return attempt


def end_attempt(folder: Path, state: str) -> None:
    """Write down how the attempt ended: "done" or "failed"."""
    if (status := read_object(folder / "status.json")) is not None:  # a process may fail before the first has begun
        write_json(folder / "status.json", status | {"state": state})


def write_error(folder: Path, error: str, message: str, details: str = "") -> None:
    """Say why an attempt failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "error.json", {"error": error, "message": message, "details": details})
    end_attempt(folder, "failed")


def write_result(folder: Path, result: Json, samples: list[Sample]) -> Json:
    """Samples first, then the result: what makes a cell done comes last. Returns what the file holds."""
    written = _write_lines(folder / "result.json", result, folder / "samples.jsonl", samples)
    end_attempt(folder, "done")
    return written


def write_answered(folder: Path, result: Json, answers: list[Sample]) -> None:
    """Keep the answers that a judge scores: `result` and `answers` lack nothing but what the judge says."""
    _write_lines(folder / "answered.json", result, folder / "answers.jsonl", answers)
    end_attempt(folder, "answered")


def find_answers(folder: Path, cell: Cell) -> tuple[Json, Path] | None:
    """What is known of a cell's answers before a judge scores them, and the file with a line each.

    They are what `write_answered` was told, or else samples that were scored without a judge. None where they are not
    there, or are no longer those.
    """
    answered, scored = read_object(folder / "answered.json"), read_object(folder / "result.json")
    if answered is not None and answered.get("schema_version") == SCHEMA and answered.get("id") == cell.id:
        whole = _is_file_of(folder / "answers.jsonl", answered.get("samples_bytes"))
        if whole and answered.get("answered") == answered.get("expected"):
            return answered, folder / "answers.jsonl"
    if scored is None or {"judge", "submission"} & set(scored):
        return None
    try:
        flaw = _flaw(folder, cell, parse(Result, scored, "result.json"))
    except Damage:
        return None
    return None if flaw else (scored, folder / "samples.jsonl")


def keep_answers(folder: Path, cell: Cell) -> tuple[Json, list[Sample]] | None:
    """What `find_answers` finds, and the lines; from now on they are in files of their own, which no score replaces."""
    if (found := find_answers(folder, cell)) is None:
        return None
    about, file = found
    lines = read_lines(file)
    if file.name != "answers.jsonl":
        write_answered(folder, about, lines)
    return about, lines


def read_lines(path: Path) -> list[Sample]:
    """The objects of a file with one per line."""
    return read_json_lines(path)


def _write_lines(target: Path, result: Json, lines_target: Path, samples: list[Sample]) -> Json:
    content = write_json_lines(lines_target, samples)
    digest = hashlib.sha256(content).hexdigest()
    evidence = {"schema_version": SCHEMA, "samples_bytes": len(content), "samples_sha256": digest}
    written = evidence | result | evidence  # a result made of answers still has the evidence of these
    write_json(target, written)
    return written
