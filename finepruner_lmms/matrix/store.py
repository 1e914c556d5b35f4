"""The store: a directory a cell, and what is true about it.

    runs/<name>/
      matrix.json                   rows and cells of the latest `run`
      launches/<n>/                 plan.json, events.jsonl and log.txt of one worker
      cells/<slug>-<id>/
        status.json                 the attempt that is running or ran last: host, pid, start, launch
        attempt-<n>/                files that lmms-eval writes by itself
        cache/                      answers of an unfinished attempt
        answers.jsonl, answered.json   where a judge scores: what samples and result are made of
        samples.jsonl               a line a question: target, answer, score, image
        submission.json, .xlsx      for the server, where only that scores
        result.json                 written last, atomically; a cell is done if and only if this is valid
        error.json                  why the last attempt failed
      judgements.jsonl              what a judge said, by question, answer and judge, for all cells

Nothing is ever deleted but the cache of a finished cell; cells of other settings or code stay where they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.errors import Failure

SCHEMA = 1
Json = dict[str, Any]


class StoreError(Failure, ValueError):
    """An output directory that cannot be used as asked."""


@dataclass(frozen=True)
class State:
    """`name`: done, waiting (for the judge), failed, running or missing; `reason` says why, where there is a why."""

    name: str
    reason: str = ""
    result: Json | None = None


def write_json(path: Path, value: Any) -> None:
    """Replace a file as a whole, so that no reader and no power cut ever sees half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_json(path: Path) -> Json | None:
    """A JSON object, or None where there is no such file or it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


class Store:
    """An output directory."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    # -- the matrix -----------------------------------------------------------------------------------------------

    def save_matrix(self, record: Json) -> None:
        """Remember what `status` and `table` are to show."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(self.root / "matrix.json", record)

    def matrix(self) -> Json:
        """What `save_matrix` was given; `StoreError` where nothing was run."""
        if not self.root.is_dir():
            raise StoreError(f"output: {str(self.root)!r} is not a folder; `run` makes one under runs/<name>")
        record = read_json(self.root / "matrix.json")
        if record is None:
            raise StoreError(f"output: {str(self.root)!r} holds no matrix.json, so nothing was run into it")
        return record

    # -- cells ----------------------------------------------------------------------------------------------------

    def cell_dir(self, cell: Json) -> Path:
        """The directory of a cell."""
        return self.root / "cells" / str(cell["folder"])

    def state(self, cell: Json, live: bool) -> State:
        """What is true about a cell; `live` says whether a run is working in this directory now."""
        folder = self.cell_dir(cell)
        problem, result = check_result(folder, cell)
        if result is not None:
            return State("done", result=result)
        status, error = read_json(folder / "status.json"), read_json(folder / "error.json")
        if (found := find_answers(folder, cell)) is not None:
            return State("waiting", problem or f"{found[0]['answered']} questions answered, waiting for the judge")
        if live and status is not None and status.get("state") == "running":
            return State("running", f"attempt {status['attempt']} on {status['host']}, process {status['pid']}")
        if error is not None:
            return State("failed", f"{error['error']}: {error['message']}")
        if problem:
            return State("failed", problem)
        return State("missing", "interrupted" if status is not None else "")

    def states(self, cells: Iterable[Json]) -> list[State]:
        """The state of each cell."""
        live = self.is_live()
        return [self.state(cell, live) for cell in cells]

    def others(self, cells: Iterable[Json]) -> int:
        """How many finished cells there are that do not belong to the matrix: other settings, code or checkpoint."""
        mine = {cell["folder"] for cell in cells}
        return sum(1 for result in self.root.glob("cells/*/result.json") if result.parent.name not in mine)

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
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise StoreError(
                    f"output: {str(self.root)!r} is in use by {file.read().strip() or 'another run'}"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            yield

    def is_live(self) -> bool:
        """Whether a run holds this directory now."""
        try:
            with (self.root / ".lock").open("r", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def check_result(folder: Path, cell: Json) -> tuple[str, Json | None]:
    """The result if it is valid; otherwise what is wrong with it, or "" where there is none.

    Valid: of this cell, its metric a number (or its submission there), as many questions answered as the task has, the
    samples unchanged, and scored by whom the cell names: its `judge`, any judge if that is None, none without the key.
    """
    path = folder / "result.json"
    if not path.exists():
        return "", None
    result = read_json(path)
    if result is None:
        return "result.json is not readable as JSON", None
    if flaw := _flaw(folder, cell, result):
        return flaw, None
    if waits := _waits_for(cell, result):
        return f"{result['answered']} questions answered, waiting {waits}", None
    return "", result


def _flaw(folder: Path, cell: Json, result: Json) -> str:
    """What is wrong with a result, whoever scored it, or ""."""
    if result.get("schema_version") != SCHEMA or result.get("id") != cell["id"]:
        return f"result.json is of {result.get('id')!r}, schema {result.get('schema_version')!r}"
    metric = BENCHMARKS[cell["task"]].metric
    written = result.get("submission")
    for name in () if written else (metric, "percent", "standard_error"):
        value = result["metrics"].get(name) if name == metric else result.get(name)
        if name == "standard_error" and value is None:  # not measured
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return f"result.json: {name} is {value!r}, not a number"
    if written and not _is_file_of(folder / written["file"], written["bytes"]):
        return f"{written['file']} is missing or was changed after the result was written"
    if result.get("answered") != result.get("expected") or not result.get("expected"):
        return f"result.json: {result.get('answered')!r} of {result.get('expected')!r} questions answered"
    if not _is_file_of(folder / "samples.jsonl", result.get("samples_bytes")):
        return "samples.jsonl is missing or was changed after the result was written"
    return ""


def _waits_for(cell: Json, result: Json) -> str:
    """Whom a result must be scored anew by, or "" if that is who scored it."""
    judged = result["judge"]["name"] if "judge" in result else None
    before = "" if judged is None else f"; {judged!r} judged before"
    if "judge" not in cell:
        return before and f"to be scored without a judge{before}"
    if judged is None:
        return "for the judge"
    return "" if cell["judge"] in (None, judged) else f"for the judge {cell['judge']!r}{before}"


def _is_file_of(path: Path, size: int | None) -> bool:
    return path.is_file() and path.stat().st_size == size


def publish_submission(folder: Path, source: Path) -> Json:
    """Put a file for a server beside where the result will be; what the result says of it."""
    content = source.read_bytes()
    target = folder / f"submission{source.suffix}"
    partial = folder / f".{target.name}.{os.getpid()}"
    partial.write_bytes(content)
    partial.replace(target)
    return {"file": target.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


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
    status = read_json(folder / "status.json") or {}
    write_json(folder / "status.json", status | {"state": state})


def write_error(folder: Path, error: str, message: str, details: str = "") -> None:
    """Say why an attempt failed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "error.json", {"error": error, "message": message, "details": details})
    end_attempt(folder, "failed")


def write_result(folder: Path, result: Json, samples: list[Json]) -> None:
    """Samples first, then the result: what makes a cell done comes last."""
    _write_lines(folder / "result.json", result, folder / "samples.jsonl", samples)
    end_attempt(folder, "done")


def write_answered(folder: Path, result: Json, answers: list[Json]) -> None:
    """Keep the answers that a judge scores: `result` and `answers` lack nothing but what the judge says."""
    _write_lines(folder / "answered.json", result, folder / "answers.jsonl", answers)
    end_attempt(folder, "answered")


def find_answers(folder: Path, cell: Json) -> tuple[Json, Path] | None:
    """What is known of a cell's answers before a judge scores them, and the file with a line each.

    They are what `write_answered` was told, or else samples that were scored without a judge. None where they are not
    there, or are no longer those.
    """
    answered, scored = read_json(folder / "answered.json"), read_json(folder / "result.json")
    if answered is not None and answered.get("schema_version") == SCHEMA and answered.get("id") == cell["id"]:
        whole = _is_file_of(folder / "answers.jsonl", answered.get("samples_bytes"))
        if whole and answered.get("answered") == answered.get("expected"):
            return answered, folder / "answers.jsonl"
    if scored is None or {"judge", "submission"} & set(scored) or _flaw(folder, cell, scored):
        return None
    return scored, folder / "samples.jsonl"


def keep_answers(folder: Path, cell: Json) -> tuple[Json, list[Json]] | None:
    """What `find_answers` finds, and the lines; from now on they are in files of their own, which no score replaces."""
    if (found := find_answers(folder, cell)) is None:
        return None
    about, file = found
    lines = read_lines(file)
    if file.name != "answers.jsonl":
        write_answered(folder, about, lines)
    return about, lines


def read_lines(path: Path) -> list[Json]:
    """The objects of a file with one a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(target: Path, result: Json, lines_target: Path, samples: list[Json]) -> None:
    lines = "".join(json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in samples).encode()
    partial = lines_target.with_name(f".{lines_target.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(lines_target)
    digest = hashlib.sha256(lines).hexdigest()
    evidence = {"schema_version": SCHEMA, "samples_bytes": len(lines), "samples_sha256": digest}
    write_json(target, evidence | result | evidence)  # a result made of answers still has the evidence of these
