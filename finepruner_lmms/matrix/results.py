"""What came of a cell: `result.json`, `samples.jsonl` and what a judge scores, written, read and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from finepruner_lmms.benchmarks import BENCHMARKS
from finepruner_lmms.files import read_json_lines, read_object, write_bytes, write_json, write_json_lines
from finepruner_lmms.matrix.attempts import end_attempt
from finepruner_lmms.matrix.plan import Cell
from finepruner_lmms.matrix.records import Damage, Result, Sample, Submission, load, parse

SCHEMA = 2
Json = dict[str, Any]


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
